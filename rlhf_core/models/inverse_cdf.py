"""Uniform numbers per row, and the inverse of the cumulative distribution, which makes tokens of them.

The uniform numbers of a row depend only on its seed, so its text does not depend on the other rows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256  # tokens per block of the vocabulary
BELOW = 1 - 2**-50  # of a total: a target that rounding has put at the total or above


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """Return `count` numbers in [0, 1) for each seed, float64, (B, count), on the CPU: the same on every machine.

    The generator is counter-based (Philox; Salmon et al. 2011, doi:10.1145/2063384.2063405), so fewer numbers of a seed
    are the first ones of more numbers.
    """
    numbers = np.empty((len(seeds), count))
    for row, seed in enumerate(seeds):
        np.random.Generator(np.random.Philox(key=seed)).random(out=numbers[row])
    return torch.from_numpy(numbers)


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return the token whose interval of the cumulative distribution contains `uniform`, (B,).

    weights: (B, V), not negative; their sum need not be 1. uniform: (B,), float64, in [0, 1). Token k is returned if
    uniform · Σ_j w_j is in [Σ_{j<k} w_j, Σ_{j<=k} w_j), so never a token of weight 0.

    A float32 sum along a vocabulary of 150 000 tokens loses small weights. Here the sums of blocks decide on the block,
    and the weights in it on the token; both are cumulated in float64.
    """
    size = weights.shape[1]
    whole = size // BLOCK * BLOCK
    blocks = weights[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    if whole < size:
        blocks = torch.cat([blocks, weights[:, whole:].sum(-1, keepdim=True)], 1)
    ends = pad(blocks.cumsum(-1, dtype=torch.float64), (1, 0))
    total = ends[:, -1:]
    target = torch.minimum(uniform[:, None] * total, total * BELOW)
    block = torch.searchsorted(ends, target, right=True) - 1
    columns = block * BLOCK + torch.arange(min(BLOCK, size), device=weights.device)
    inside = weights.gather(1, columns.clamp(max=size - 1))
    if whole < size:
        inside = inside.masked_fill_(columns >= size, 0.0)
    inner = inside.cumsum(-1, dtype=torch.float64)
    # The sum of a block in float32 can exceed the sum of its weights in float64 by rounding.
    target = torch.minimum(target - ends.gather(1, block), inner[:, -1:] * BELOW)
    tokens = (block * BLOCK + torch.searchsorted(inner, target, right=True))[:, 0]
    return tokens.clamp(max=size - 1)  # NaN weights: a valid index, so that the caller can report them
