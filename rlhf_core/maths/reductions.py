"""Averaging as weights: `loss = (losses * weights).sum()`, with weights computed once per minibatch.

The weights come from the whole minibatch, so splitting it into microbatches changes only rounding.
`row_weights` (B,) is the weight of each row (Rollout.row_weights); without it every row has weight 1.
"""

from rlhf_core.common.lazy import Tensor, torch


def token_mean(response_mask: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """Equal weight for every response token of the minibatch, (B, R). DAPO, arXiv:2503.14476, eq. 8."""
    weights = response_mask * _rows(response_mask, row_weights)[:, None]
    return weights / weights.sum()


def sequence_mean(response_mask: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """Mean over a response's tokens, then over responses, (B, R). DeepSeekMath, arXiv:2402.03300, eq. 3."""
    rows = _rows(response_mask, row_weights)[:, None]
    return response_mask * rows / (response_mask.sum(-1, keepdim=True) * rows.sum())


def fixed_length(response_mask: Tensor, length: float, row_weights: Tensor | None = None) -> Tensor:
    """Sum over tokens divided by a constant, then mean over responses, (B, R). Dr. GRPO, arXiv:2503.20783."""
    rows = _rows(response_mask, row_weights)[:, None]
    return response_mask * rows / (length * rows.sum())


def unit_mean(units: int, device: "torch.device") -> Tensor:
    """Equal weight for every unit (a response, a pair or a ranking), (units,)."""
    return torch.full((units,), 1.0 / units, device=device)


def sequence_sum(values: Tensor, response_mask: Tensor) -> Tensor:
    """Σ_t over response tokens, (B, R) -> (B,)."""
    return (values * response_mask).sum(-1)


def at_last_token(values: Tensor, response_mask: Tensor) -> Tensor:
    """Put one number per response on its last token and 0 on the others, (B,) -> (B, R).

    A loss term per response then gets the weight of the response's last token.
    """
    last = response_mask.sum(-1, keepdim=True).long() - 1
    spread = torch.zeros(response_mask.shape, dtype=values.dtype, device=values.device)
    return spread.scatter(-1, last, values.unsqueeze(-1))


def _rows(response_mask: Tensor, row_weights: Tensor | None) -> Tensor:
    return response_mask.new_ones(response_mask.shape[0]) if row_weights is None else row_weights
