"""Averaging as weights: `loss = (losses * weights).sum()`, with weights fixed for a whole minibatch.

Because the weights know the whole minibatch, its split into microbatches changes nothing but rounding.
"""

import torch
from torch import Tensor


def token_mean(response_mask: Tensor) -> Tensor:
    """Every response token of the minibatch counts the same, (B, R). DAPO, arXiv:2503.14476, eq. 8."""
    return response_mask / response_mask.sum()


def sequence_mean(response_mask: Tensor) -> Tensor:
    """Mean over a response's tokens, then over responses, (B, R). DeepSeekMath, arXiv:2402.03300, eq. 3."""
    return response_mask / (response_mask.sum(-1, keepdim=True) * response_mask.shape[0])


def fixed_length(response_mask: Tensor, length: int) -> Tensor:
    """Sum over tokens divided by a constant, then mean over responses, (B, R). Dr. GRPO, arXiv:2503.20783."""
    return response_mask / (length * response_mask.shape[0])


def unit_mean(units: int, device: torch.device) -> Tensor:
    """Every response, or every pair, counts the same, (units,)."""
    return torch.full((units,), 1.0 / units, device=device)


def sequence_sum(values: Tensor, response_mask: Tensor) -> Tensor:
    """Σ_t over response tokens, (B, R) -> (B,)."""
    return (values * response_mask).sum(-1)
