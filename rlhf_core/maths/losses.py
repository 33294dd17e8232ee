"""Losses as pure functions of tensors, one equation each.

Shapes: (B, R) per response token, (B,) per response, (N,) per pair. These functions do not average:
`rlhf_core.maths.reductions` provides the weights that reduce them to a scalar.
"""

from rlhf_core.common.lazy import F, Tensor, torch


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log π(a_t | s_t) with π = softmax(logits / temperature): (..., V), (...) -> (...).

    Computed in at least float32: log_softmax in bf16 rounds probabilities near 1 to exactly 1.
    """
    logits = _full_precision(logits) / temperature
    chosen = logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    # Rounding can put the chosen logit slightly above the log-sum-exp; a log-probability must not exceed 0.
    return (chosen - logits.logsumexp(-1)).clamp(max=0.0)


def token_entropies(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """H(π(·|s_t)) = -Σ_a π log π in nats, with π = softmax(logits / temperature): (..., V) -> (...)."""
    logprobs = F.log_softmax(_full_precision(logits) / temperature, dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def exact_kl(logits: Tensor, ref_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(π(·|s_t) ‖ π_ref(·|s_t)) summed over the vocabulary, in nats: (..., V), (..., V) -> (...)."""
    logprobs = F.log_softmax(_full_precision(logits) / temperature, dim=-1)
    ref_logprobs = F.log_softmax(_full_precision(ref_logits) / temperature, dim=-1)
    return (logprobs.exp() * (logprobs - ref_logprobs)).sum(-1)


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def cross_entropy(logprobs: Tensor) -> Tensor:
    """-log π(a_t | s_t), per token, (B, R)."""
    return -logprobs


def smoothed(label: Tensor | float, smoothing: float) -> Tensor | float:
    """p (1 - ε) + (1 - p) ε: the probability p after the label is flipped with probability ε = `smoothing`."""
    return label * (1 - smoothing) + (1 - label) * smoothing


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, label: Tensor | float = 1.0
) -> Tensor:
    """-p log σ(r_w - r_l - m) - (1 - p) log σ(r_l - r_w - m), (N,), with p = `label` = P(chosen is better).

    Bradley & Terry 1952; InstructGPT (arXiv:2203.02155) eq. 1; margin: Llama 2 (arXiv:2307.09288) eq. 2.
    A tie, p = ½, is the mean of both directions. logsigmoid is finite for any difference; log(1 + exp) overflows.
    """
    forwards, backwards = -F.logsigmoid(chosen - rejected - margin), -F.logsigmoid(rejected - chosen - margin)
    return label * forwards + (1 - label) * backwards


def thurstone(chosen: Tensor, rejected: Tensor, label: Tensor | float = 1.0) -> Tensor:
    """-p log Φ(r_w - r_l) - (1 - p) log Φ(r_l - r_w), (N,), for a utility difference of unit variance.

    Thurstone 1927. log_ndtr is finite where Φ underflows.
    """
    difference = chosen - rejected
    return -label * torch.special.log_ndtr(difference) - (1 - label) * torch.special.log_ndtr(-difference)


def squared_error(scores: Tensor, ratings: Tensor) -> Tensor:
    """(r - rating)², (B,): regression on Likert scores."""
    return (scores - ratings).square()


def plackett_luce(scores: Tensor) -> Tensor:
    """-log P(order) = Σ_k [logsumexp_{j>=k} r_(j) - r_(k)], (..., K) best first -> (...). Plackett 1975; Luce 1959."""
    return (scores.flip(-1).logcumsumexp(-1).flip(-1) - scores).sum(-1)


def best_of(scores: Tensor, best: int) -> Tensor:
    """-log P(best) = logsumexp_j r_j - r_best, (K,) -> (): `best` is chosen from K. Luce 1959."""
    return scores.logsumexp(-1) - scores[best]


def dpo(chosen_logratio: Tensor, rejected_logratio: Tensor, beta: float, label: Tensor | float = 1.0) -> Tensor:
    """-log σ(β [log-ratio of chosen - log-ratio of rejected]), (N,). Rafailov et al. 2023, arXiv:2305.18290, eq. 7.

    A log-ratio is log π_θ(y|x) - log π_ref(y|x), summed over response tokens. `label` as in `bradley_terry`.
    """
    return bradley_terry(beta * chosen_logratio, beta * rejected_logratio, label=label)


def ipo(chosen_logratio: Tensor, rejected_logratio: Tensor, beta: float, label: Tensor | float = 1.0) -> Tensor:
    """(h - 1/(2β))² with h = log-ratio of chosen - log-ratio of rejected, (N,). Azar et al. 2023, eq. 17 (τ = β)."""
    difference, target = chosen_logratio - rejected_logratio, 1 / (2 * beta)
    return label * (difference - target).square() + (1 - label) * (-difference - target).square()


def kto(logratios: Tensor, reference_point: Tensor, good: Tensor, beta: float) -> Tensor:
    """1 - σ(β (r - z_0)) if `good` is 1, 1 - σ(β (z_0 - r)) if it is 0, (B,). Ethayarajh et al. 2024, eq. 7."""
    return 1 - (beta * (logratios - reference_point) * (2 * good - 1)).sigmoid()


def policy_gradient(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-Ψ log π, whose gradient is that of REINFORCE, (B, R). Williams 1992."""
    return -advantages * logprobs


def surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-ρ Â with ρ = π_θ/π_old, (B, R). Schulman et al. 2015, arXiv:1502.05477, eq. 14."""
    return -(logprobs - old_logprobs).exp() * advantages


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip: float,
    clip_high: float | None = None,
    *,
    dual_clip: float | None = None,
) -> Tensor:
    """-min(ρ Â, clip(ρ, 1-ε, 1+ε_high) Â) with ρ = π_θ/π_old, (B, R) or (B,).

    Schulman et al. 2017, arXiv:1707.06347, eq. 7, negated because losses are minimised. ε_high is ε unless given
    (DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 8). With `dual_clip` c > 1, the minimum is at least c Â where Â < 0
    (Ye et al. 2020, arXiv:1912.09729, eq. 5).
    """
    ratio = (logprobs - old_logprobs).exp()
    upper = clip if clip_high is None else clip_high
    bound = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + upper) * advantages)
    if dual_clip is not None:
        bound = torch.where(advantages < 0, torch.maximum(bound, dual_clip * advantages), bound)
    return -bound


def cispo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float, clip_high: float) -> Tensor:
    """-sg(clip(ρ, 1-ε, 1+ε_high)) Â log π with ρ = π_θ/π_old; sg stops the gradient, (B, R) or (B,).

    MiniMax-M1 2025, arXiv:2506.13585, eq. 4 and 5: every token keeps a gradient, whatever its ratio.
    """
    weight = (logprobs - old_logprobs).exp().clamp(1 - clip, 1 + clip_high).detach()
    return policy_gradient(logprobs, weight * advantages)


def truncated_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """min(π_old/π_sampler, C) without gradient, (B, R) or (B,): for samples of another policy than the trainer's π_old.

    Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; the truncation is ρ̄ of
    V-trace, Espeholt et al. 2018, arXiv:1802.01561, eq. 1. Without a cap the weights are unbiased.
    """
    return (old_logprobs - sampler_logprobs).exp().clamp(max=cap).detach()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """(V - G)² per token, (B, R); with `clip`, the maximum of this and the loss of V clipped to V_old ± clip.

    The clipped form comes from the PPO code base (Huang et al. 2022, "The 37 implementation details of PPO", 9).
    """
    loss = (values - returns).square()
    if clip is not None:
        held = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, (held - returns).square())
    return loss
