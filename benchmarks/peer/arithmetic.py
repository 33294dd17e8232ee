"""The least arithmetic of a step, against which both sides are measured: matrix products and attention of real tokens.

A prompt is read once per group or pair, and log-probabilities known from sampling are not computed again. A backward
pass costs two forward passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peer.cells import ONLINE, Cell


@dataclass(frozen=True)
class Size:
    """What a forward pass costs: weights of the layers and of the vocabulary head, and width of attention × layers."""

    layers: int
    head: int
    attention: int

    @classmethod
    def of(cls, cell: Cell) -> "Size":
        """A layer of width d has 4 d² weights in attention and 12 d² in the feed-forward part."""
        return cls(16 * cell.layers * cell.hidden**2, cell.vocabulary * cell.hidden, cell.layers * cell.hidden)

    def forward(self, prompt: int, lengths: Sequence[int], rows_per_prompt: int, *, head: bool) -> float:
        """Floating-point operations of one forward pass over rows with these response lengths.

        A weight costs two operations per token, and attention to one key four per unit of width and layer. With
        `head`, the vocabulary head runs on the response tokens.
        """
        prompts = len(lengths) // rows_per_prompt
        tokens = prompts * prompt + sum(lengths)
        keys = prompts * _triangle(prompt) + sum(length * prompt + _triangle(length) for length in lengths)
        return 2 * self.layers * tokens + 4 * self.attention * keys + (2 * self.head * sum(lengths) if head else 0)


def decoding(cell: Cell, step: int, size: Size | None = None) -> float:
    """Operations to sample the responses of a step; 0 on fixed data."""
    if cell.method not in ONLINE:
        return 0.0
    return (size or Size.of(cell)).forward(cell.prompt, cell.lengths(step), cell.group, head=True)


def training(cell: Cell, step: int, size: Size | None = None, trained: int = 3) -> float:
    """Operations of everything but sampling in a step. trained: passes per trained row; 2 if the weights are frozen.

    sft: forward and backward. reward: the same without the vocabulary head. dpo: and a forward pass of the reference.
    grpo: without KL, no reference. ppo: policy and critic in each epoch, the reference and the reward model once.
    """
    size, lengths, shared = size or Size.of(cell), cell.lengths(step), cell.rows // cell.units
    each = trained * cell.epochs + 1
    passes = {
        "sft": (trained, 0),
        "reward": (0, trained),
        "dpo": (trained + 1, 0),
        "grpo": (trained, 0),
        "ppo": (each, each),
    }
    of_policy, of_scalar = passes[cell.method]
    policy = size.forward(cell.prompt, lengths, shared, head=True)
    return of_policy * policy + of_scalar * size.forward(cell.prompt, lengths, shared, head=False)


def _triangle(length: int) -> float:
    return length * (length + 1) / 2
