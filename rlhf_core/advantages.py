"""Credit: token rewards, generalised advantage estimation, group baselines, whitening. No gradients anywhere."""

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, kl_coef: float, response_mask: Tensor) -> Tensor:
    """r̃_t = -β kl_t + 1[t = T] r(x, y), (B, R). Seed S3 step 3.2; InstructGPT eq. 2.

    scores (B,); kl (B, R) is k1 of the sampling policy. Masked, a row sums to score - β Σ kl_t.
    """
    rewards = -kl_coef * kl * response_mask
    last = response_mask.sum(-1, keepdim=True).long() - 1
    return rewards.scatter_add(-1, last, scores.to(rewards.dtype).unsqueeze(-1))


def gae(rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, R) and 0 outside the mask. Schulman et al. 2015, arXiv:1506.02438, eq. 16.

    δ_t = r̃_t + γ V_{t+1} - V_t and Â_t = δ_t + γλ Â_{t+1}; G_t = Â_t + V_t.
    V after the last response token is 0, also where the response was cut off: the cut-off text is what is scored.
    """
    values = values * response_mask
    rewards = rewards * response_mask
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(following)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * response_mask[:, t]
        advantages[:, t] = following
    return advantages, (advantages + values) * response_mask


def whiten(values: Tensor, response_mask: Tensor, *, shift_mean: bool = True, unbiased: bool = True) -> Tensor:
    """Scale the masked entries to unit variance, and to mean 0 unless `shift_mean` is False; 0 outside the mask.

    The variance is the sample one (n - 1) by default, as in the PPO code base; with one entry it is taken as 0.
    """
    count = response_mask.sum()
    mean = (values * response_mask).sum() / count
    squares = ((values - mean).square() * response_mask).sum()
    variance = squares / (count - 1).clamp(min=1) if unbiased else squares / count
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened * response_mask


def group_standardize(
    scores: Tensor,
    group_size: int,
    *,
    divide_by_std: bool = True,
    unbiased_std: bool = False,
    eps: float = 1e-4,
) -> Tensor:
    """(r_i - mean r) / (std r + ε) within each group of adjacent rows, (B,) -> (B,).

    Shao et al. 2024 (arXiv:2402.03300) sec. 4.1.2; without the division Dr. GRPO (arXiv:2503.20783).
    The std is the population one (1/G) unless `unbiased_std`. A group whose scores are all equal has advantage
    exactly 0: its mean may differ from its members by rounding, which a small std would blow up.

    Raises:
        ValueError: if the rows are not a whole number of groups, or a group has one member.
    """
    if group_size < 2 or scores.shape[0] % group_size:
        raise ValueError(f"{scores.shape[0]} rows are not groups of {group_size}; a group has at least 2 members")
    groups = scores.view(-1, group_size)
    centred = groups - groups.mean(-1, keepdim=True)
    centred = torch.where(equal_groups(scores, group_size)[:, None], 0.0, centred)
    if divide_by_std:
        centred = centred / (groups.std(-1, keepdim=True, correction=int(unbiased_std)) + eps)
    return centred.reshape(-1)


def equal_groups(scores: Tensor, group_size: int) -> Tensor:
    """True for each group whose scores are all the same: it teaches nothing. (B,) -> (B/G,).

    Scores of equal responses may differ by float32 rounding, as when they are sums or stood in different batches.
    """
    groups = scores.view(-1, group_size)
    spread = groups.amax(-1) - groups.amin(-1)
    return spread <= 1e-6 * groups.abs().amax(-1)
