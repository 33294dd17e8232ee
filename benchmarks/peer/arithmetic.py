"""The least arithmetic of a step, against which both sides are measured: matrix products and attention of real tokens.

A prompt is read once per group or pair, and log-probabilities known from sampling are not computed again. A backward
pass costs two forward passes.
"""

from benchmarks.peer.cells import ONLINE, Cell


def forward(cell: Cell, lengths: list[int], rows_per_prompt: int, *, head: bool) -> float:
    """Floating-point operations of one forward pass over rows with these response lengths.

    A layer of width d has 4 d² weights in attention and 12 d² in the feed-forward part; a weight costs two operations
    per token. Attention to one key costs 4 d operations per layer.
    """
    prompts = len(lengths) // rows_per_prompt
    tokens = prompts * cell.prompt + sum(lengths)
    pairs = prompts * _triangle(cell.prompt) + sum(length * cell.prompt + _triangle(length) for length in lengths)
    layers = cell.layers * (2 * 16 * cell.hidden**2 * tokens + 4 * cell.hidden * pairs)
    return layers + (2 * cell.vocabulary * cell.hidden * sum(lengths) if head else 0.0)


def decoding(cell: Cell, step: int) -> float:
    """Operations to sample the responses of a step; 0 on fixed data."""
    return forward(cell, cell.lengths(step), cell.group, head=True) if cell.method in ONLINE else 0.0


def training(cell: Cell, step: int) -> float:
    """Operations of everything but sampling in a step.

    sft: forward and backward. reward: the same without the vocabulary head. dpo: and a forward pass of the reference.
    grpo: without KL, no reference. ppo: policy and critic in each epoch, the reference and the reward model once.
    """
    lengths = cell.lengths(step)
    shared = cell.rows // cell.units
    policy = forward(cell, lengths, shared, head=True)
    scalar = forward(cell, lengths, shared, head=False)
    passes = {"sft": (3, 0), "reward": (0, 3), "dpo": (4, 0), "grpo": (3, 0), "ppo": (3 * cell.epochs + 1, 3 * cell.epochs + 1)}
    of_policy, of_scalar = passes[cell.method]
    return of_policy * policy + of_scalar * scalar


def _triangle(length: int) -> float:
    return length * (length + 1) / 2
