"""What both loops share: the run they belong to, and the order in which data is visited."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from rlhf_core.common.seeding import stream_seed
from rlhf_core.loops.common.resume import ResumeStore

Metrics = dict[str, float]


def _no_report(metrics: Metrics, step: int, total: int, tokens: int) -> None:
    """Report nothing."""


def _no_snapshot(step: int) -> None:
    """Keep no snapshot."""


@dataclass(frozen=True)
class Run:
    """Seed and name of a training, where it resumes from, and who is told about it.

    report(metrics, step, total, tokens): called after every step; `tokens` were processed in that step.
    snapshot(step): called at evenly spaced steps to save the model as it is.
    """

    seed: int
    name: str
    resume: ResumeStore
    report: Callable[[Metrics, int, int, int], None] = field(default=_no_report)
    snapshot: Callable[[int], None] = field(default=_no_snapshot)


def is_mark(step: int, total: int, marks: int) -> bool:
    """Whether 1-based `step` is one of `marks` evenly spaced steps, of which the last is `total`."""
    return marks > 0 and (step * marks) // total > ((step - 1) * marks) // total


def minibatch_indices(step: int, count: int, size: int, seed: int, name: str) -> list[int]:
    """The items that 0-based `step` visits when `count` items are passed over in shuffled epochs.

    A pure function of the step. The last minibatch of an epoch may be smaller; no item is left out.
    """
    per_epoch = -(-count // size)
    epoch, position = divmod(step, per_epoch)
    return shuffled(count, epoch, seed, name)[position * size : (position + 1) * size]


def stream_indices(step: int, count: int, size: int, seed: int, name: str) -> list[int]:
    """The `size` items that 0-based `step` visits when shuffled passes over `count` items follow each other endlessly.

    A pure function of the step. Every step has `size` items: one that reaches the end of a pass goes on in the next.
    """
    start = step * size
    passes = range(start // count, -(-(start + size) // count))
    stream = [index for number in passes for index in shuffled(count, number, seed, name)]
    return stream[start % count : start % count + size]


def shuffled(count: int, epoch: int, seed: int, name: str) -> list[int]:
    """The order in which pass `epoch` visits `count` items."""
    generator = torch.Generator().manual_seed(stream_seed(seed, name, "order", epoch))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
