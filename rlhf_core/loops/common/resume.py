"""Resume states of training: one file, replaced atomically and deleted on success."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


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
