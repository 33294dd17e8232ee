"""Resume states of training: one file, replaced atomically and deleted on success."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class ResumeStore:
    """The latest training state, in its own folder.

    The folder's name contains a hash of configuration, code and inputs, so a run finds only its own state. Random
    streams are named by step (`rlhf_core.common.seeding`), so no generator state is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def _file(self) -> Path:
        return self.folder / "state.pt"

    def load(self) -> dict[str, Any] | None:
        """Return the last saved state, or None."""
        if not self._file.is_file():
            return None
        return torch.load(self._file, map_location="cpu", weights_only=True)

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state atomically: write a partial file, flush it to disk, rename it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        with partial.open("wb") as handle:
            torch.save(dict(state), handle)
            handle.flush()
            os.fsync(handle.fileno())
        partial.rename(self._file)

    def clear(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without frozen weights, which a resumed run loads from their checkpoint."""
    frozen = _frozen(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def load_trained_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore what `trained_state` returned.

    Raises:
        RuntimeError: the state does not fit the model.
    """
    missing, unexpected = model.load_state_dict(dict(state), strict=False)
    if unexpected or set(missing) - _frozen(model):
        raise RuntimeError(f"the resume state belongs to another model: {[*missing, *unexpected][:3]}")


def _frozen(model: nn.Module) -> set[str]:
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}
