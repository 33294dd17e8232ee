"""Token rewards, generalised advantage estimation, group baselines, whitening. Nothing here has a gradient."""

from typing import Literal

from rlhf_core.common.batch import Rollout
from rlhf_core.common.lazy import F, Tensor, torch


def token_rewards(scores: Tensor, kl: Tensor, kl_coef: float, response_mask: Tensor) -> Tensor:
    """r̃_t = -β kl_t + 1[t = T] r(x, y), (B, R). InstructGPT (arXiv:2203.02155) eq. 2.

    scores (B,); kl (B, R) is k1 of the policy that sampled, and is not read if β is 0. A row sums to
    score - β Σ kl_t over the mask.
    """
    rewards = -kl_coef * kl * response_mask if kl_coef else torch.zeros_like(kl)
    last = response_mask.sum(-1, keepdim=True).long() - 1
    return rewards.scatter_add(-1, last, scores.to(rewards.dtype).unsqueeze(-1))


def gae(rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, R) and 0 outside the mask. Schulman et al. 2015, arXiv:1506.02438, eq. 16.

    δ_t = r̃_t + γ V_{t+1} - V_t and Â_t = Σ_l (γλ)^l δ_{t+l}; G_t = Â_t + V_t.
    V after the last response token is 0, also where the response was cut off: the cut-off text is what is scored.
    """
    values = values * response_mask
    deltas = rewards * response_mask + gamma * F.pad(values[:, 1:], (0, 1)) - values
    advantages = returns_to_go(deltas, response_mask, gamma * lam)
    return advantages, (advantages + values) * response_mask


def with_gae(rollout: Rollout, rewards: Tensor, gamma: float, lam: float, *, whitened: bool) -> Rollout:
    """The rollout with token rewards, GAE from its old values (whitened if `whitened`) and returns."""
    advantages, returns = gae(rewards, rollout.old_values, rollout.response_mask, gamma, lam)
    if whitened:
        advantages = whiten(advantages, rollout.token_weights)
    return rollout.with_targets(advantages=advantages, returns=returns, rewards=rewards)


def returns_to_go(rewards: Tensor, response_mask: Tensor, gamma: float) -> Tensor:
    """G_t = Σ_{i>=t} γ^{i-t} r̃_i, (B, R), 0 outside the mask: one scan from the last token back."""
    returns = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = (rewards[:, t] + gamma * following) * response_mask[:, t]
        returns[:, t] = following
    return returns


def no_advantage(rollout: Rollout) -> Tensor:
    """The rows whose advantages are all 0, bool, (B,)."""
    return (rollout.advantages == 0).all(-1)


def leave_one_out(returns: Tensor, group_size: int) -> Tensor:
    """The mean of the other members of each response's group, (B,) -> (B,). Kool et al. 2019; arXiv:2402.14740.

    The baseline does not depend on the response it is subtracted from, so the expected gradient does not change.
    """
    groups = _groups(returns, group_size)
    others = (groups.sum(-1, keepdim=True) - groups) / (group_size - 1)
    # If all returns of a group are equal, the advantage must be exactly 0; the sum and difference above round.
    same = equal_groups(returns, group_size)[:, None]
    return torch.where(same, groups, others).reshape(-1)


def whiten(
    values: Tensor,
    weights: Tensor,
    *,
    shift_mean: bool = True,
    unbiased: bool = True,
    std_eps: float | None = None,
) -> Tensor:
    """Scale entries to variance 1, and shift them to mean 0 unless `shift_mean` is False; 0 where the weight is 0.

    weights: the weight of each entry, of the same shape: a mask, or Rollout.token_weights. The variance is the sample
    variance (n - 1) by default, as in the PPO code base; for a single entry it is 0. The divisor is
    sqrt(variance + 1e-8), as in that code base, or std + `std_eps`.
    """
    count = weights.sum()
    mean = (values * weights).sum() / count
    squares = ((values - mean).square() * weights).sum()
    variance = squares / (count - 1).clamp(min=1) if unbiased else squares / count
    divisor = (variance + 1e-8).sqrt() if std_eps is None else variance.sqrt() + std_eps
    whitened = (values - mean) / divisor
    if not shift_mean:
        whitened = whitened + mean
    return whitened * (weights > 0)


def group_standardize(
    scores: Tensor,
    group_size: int,
    *,
    std: Literal["group", "batch", "none"] = "group",
    unbiased_std: bool = False,
    eps: float = 1e-4,
) -> Tensor:
    """(r_i - mean r) / (std r + ε) within each group of adjacent rows, (B,) -> (B,).

    Shao et al. 2024 (arXiv:2402.03300) sec. 4.1.2; Dr. GRPO (arXiv:2503.20783) omits the division; `std` "batch"
    divides by the std of all scores instead.
    The std is the population std (1/G) unless `unbiased_std`. If all scores of a group are equal, the advantage is
    exactly 0: the mean may differ from the scores by rounding, and a small std would amplify that.

    Raises:
        ValueError: if the rows do not form complete groups, or a group has only one member.
    """
    groups = _groups(scores, group_size)
    centred = groups - groups.mean(-1, keepdim=True)
    centred = torch.where(equal_groups(scores, group_size)[:, None], 0.0, centred)
    if std != "none":
        spread = groups if std == "group" else scores.expand(groups.shape[0], -1)
        centred = centred / (spread.std(-1, keepdim=True, correction=int(unbiased_std)) + eps)
    return centred.reshape(-1)


def _groups(scores: Tensor, group_size: int) -> Tensor:
    if group_size < 2 or scores.shape[0] % group_size:
        raise ValueError(f"{scores.shape[0]} rows are not groups of {group_size}; a group needs at least 2 members")
    return scores.view(-1, group_size)


def equal_groups(scores: Tensor, group_size: int) -> Tensor:
    """True for each group whose scores are all equal, so that nothing can be learned from it. (B,) -> (B/G,).

    The tolerance covers float32 rounding: scores of identical responses can differ if they are sums or come from
    different batches.
    """
    groups = scores.view(-1, group_size)
    spread = groups.amax(-1) - groups.amin(-1)
    return spread <= 1e-6 * groups.abs().amax(-1)
