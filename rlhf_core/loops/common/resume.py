"""Where a killed training goes on: one file, replaced as a whole, deleted on success."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class ResumeStore:
    """The latest training state in a folder of its own.

    The folder's name holds a hash of configuration, code and inputs, so a state is only ever found by the run that
    it belongs to. Random streams are named by step (`rlhf_core.common.seeding`), hence no generator state is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def _file(self) -> Path:
        return self.folder / "state.pt"

    def load(self) -> dict[str, Any] | None:
        """The last saved state, or None."""
        if not self._file.is_file():
            return None
        return torch.load(self._file, map_location="cpu", weights_only=True)

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state: written beside, flushed to disk, renamed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        with partial.open("wb") as handle:
            torch.save(dict(state), handle)
            handle.flush()
            os.fsync(handle.fileno())
        partial.rename(self._file)

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
