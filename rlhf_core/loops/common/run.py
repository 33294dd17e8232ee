"""Shared by both loops: the training run, and the order in which data is visited."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from rlhf_core.common.seeding import stream_seed
from rlhf_core.loops.common.resume import ResumeStore

Metrics = dict[str, float]


def _no_report(metrics: Metrics, step: int, total: int, tokens: int) -> None:
    """Do not report."""


def _no_snapshot(step: int) -> None:
    """Do not save a snapshot."""


@dataclass(frozen=True)
class Run:
    """Seed and name of a training, its resume state, and its callbacks.

    report(metrics, step, total, tokens): called after every step; `tokens` is the number processed in that step.
    snapshot(step): called at evenly spaced steps to save the current model.
    """

    seed: int
    name: str
    resume: ResumeStore
    report: Callable[[Metrics, int, int, int], None] = field(default=_no_report)
    snapshot: Callable[[int], None] = field(default=_no_snapshot)


def is_mark(step: int, total: int, marks: int) -> bool:
    """Return whether 1-based `step` is one of `marks` evenly spaced steps, the last of which is `total`."""
    return marks > 0 and (step * marks) // total > ((step - 1) * marks) // total


def minibatch_indices(step: int, count: int, size: int, seed: int, name: str) -> list[int]:
    """Return the items that 0-based `step` visits when `count` items are visited in shuffled epochs.

    This is a pure function of the step. The last minibatch of an epoch may be smaller; no item is omitted.
    """
    per_epoch = -(-count // size)
    epoch, position = divmod(step, per_epoch)
    return shuffled(count, epoch, seed, name)[position * size : (position + 1) * size]


def stream_indices(step: int, count: int, size: int, seed: int, name: str) -> list[int]:
    """Return the `size` items that 0-based `step` visits in an endless sequence of shuffled passes over `count` items.

    This is a pure function of the step. Every step has `size` items; a step may span the end of a pass.
    """
    start = step * size
    passes = range(start // count, -(-(start + size) // count))
    stream = [index for number in passes for index in shuffled(count, number, seed, name)]
    return stream[start % count : start % count + size]


def shuffled(count: int, epoch: int, seed: int, name: str) -> list[int]:
    """Return the order in which pass `epoch` visits `count` items."""
    generator = torch.Generator().manual_seed(stream_seed(seed, name, "order", epoch))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
