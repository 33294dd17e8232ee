"""Random streams. Each is named by its purpose, so that a resumed run continues with the same numbers."""

import hashlib
import random

import numpy as np
import torch


def stream_seed(run_seed: int, *names: str | int) -> int:
    """Return a seed in [0, 2**63) for the stream named by (run seed, stage, rank, step, ...).

    Streams are independent of each other and of the order in which they are used, so no generator state must be saved:
    step n draws the same numbers whether or not the run was interrupted before.
    """
    text = "/".join(str(part) for part in (run_seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def row_seeds(count: int, run_seed: int, *names: str | int) -> list[int]:
    """Return one seed per row of the stream named by (run seed, ...). A row's seed depends only on its number."""
    return [stream_seed(run_seed, *names, row) for row in range(count)]


def seed_everything(run_seed: int, *names: str | int) -> None:
    """Seed the global generators of Python, NumPy and torch from one named stream."""
    seed = stream_seed(run_seed, *names)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
