"""Uniform numbers of a seed, and the token whose interval of the cumulative distribution contains one."""

import pytest
import torch

from rlhf_core.common.seeding import row_seeds, stream_seed
from rlhf_core.models.inverse_cdf import BLOCK, inverse_cdf, uniforms


def chosen(weights, numbers, dtype=torch.float64):
    """The token for each uniform number under the same weights."""
    rows = torch.tensor(weights, dtype=dtype).expand(len(numbers), -1)
    return inverse_cdf(rows, torch.tensor(numbers, dtype=torch.float64)).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_intervals_by_hand(dtype):
    """Weights 1, 0, 2, 1, 0 with sum 4: intervals [0, ¼), none, [¼, ¾), [¾, 1), none."""
    numbers = [0.0, 0.249, 0.25, 0.5, 0.749, 0.75, 0.999, 1 - 2**-53]
    assert chosen([1, 0, 2, 1, 0], numbers, dtype) == [0, 0, 2, 2, 2, 3, 3, 3]
    assert chosen([0, 1, 0], [0.0, 0.5, 1 - 2**-53], dtype) == [1, 1, 1]


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5])
def test_intervals_across_blocks(size):
    """Every second token has weight 1: the number (k + ½) / n is in the interval of the k-th of the n tokens."""
    weights = [float(token % 2) for token in range(size)]
    tokens = [token for token in range(size) if token % 2]
    numbers = [(place + 0.5) / len(tokens) for place in range(len(tokens))]
    assert chosen(weights, numbers, torch.float32) == tokens
    edges = [place / len(tokens) * (1 + 1e-13) for place in range(len(tokens))]
    assert chosen(weights, edges, torch.float32) == tokens


@pytest.mark.parametrize("size", [32_000, 150_000])
def test_large_vocabularies(size):
    """Against cumulative sums in float64: in 400 draws, the number is within 1e-6 of the token's interval."""
    torch.manual_seed(0)
    logits = torch.randn(8, size) * 3
    logits[:, ::2] = -torch.inf
    probabilities = logits.softmax(-1)
    ends = probabilities.double().cumsum(-1)
    ends /= ends[:, -1:]
    edge = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for draw in [*torch.rand(48, 8, dtype=torch.float64), *edge[:, None].expand(-1, 8)]:
        token = inverse_cdf(probabilities, draw)[:, None]
        assert (probabilities.gather(1, token) > 0).all()
        upper = ends.gather(1, token)[:, 0]
        lower = upper - probabilities.double().gather(1, token)[:, 0]
        assert ((draw > lower - 1e-6) & (draw < upper + 1e-6)).all()


def test_uniforms_belong_to_a_seed():
    """They do not depend on other seeds, fewer are the first of more, and their mean and variance are ½ and 1/12."""
    numbers = uniforms([3, 2**63 - 1, 3], 5)
    assert numbers.shape == (3, 5)
    assert torch.equal(numbers[0], numbers[2])
    assert torch.equal(uniforms([2**63 - 1], 3)[0], numbers[1, :3])
    assert not set(numbers[0].tolist()) & set(numbers[1].tolist())
    many = uniforms(range(500), 40)
    assert many.min() >= 0
    assert many.max() < 1
    assert many.mean().item() == pytest.approx(0.5, abs=0.01)
    assert many.var().item() == pytest.approx(1 / 12, abs=0.003)
    assert len(many.unique()) == many.numel()


def test_uniforms_are_the_same_on_every_machine():
    assert uniforms([0], 3)[0].tolist() == [0.011546754286331562, 0.24154919656271812, 0.11142585551493822]


def test_row_seeds_belong_to_a_stream_and_a_row():
    seeds = row_seeds(3, 0, "grpo", "rollout", 4)
    assert seeds == [stream_seed(0, "grpo", "rollout", 4, row) for row in range(3)]
    assert row_seeds(2, 0, "grpo", "rollout", 4) == seeds[:2]
    assert not set(seeds) & set(row_seeds(3, 0, "grpo", "rollout", 5))
