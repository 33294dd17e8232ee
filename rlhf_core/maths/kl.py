"""KL estimators from samples, and the adaptive controller of the KL coefficient.

Per token d_t = log π_θ(a_t|s_t) - log π_ref(a_t|s_t), with a_t drawn from π_θ.
Schulman 2020, "Approximating KL divergence".
"""

from rlhf_core.common.errors import UserError
from rlhf_core.common.lazy import Tensor


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """d: unbiased, can be negative, (B, R)."""
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """d²/2: biased, never negative, (B, R)."""
    return (logprobs - ref_logprobs).square() / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(-d) - 1 + d: unbiased, never negative, (B, R).

    Its value estimates KL(π_θ‖π_ref). Its expected gradient on samples is that of KL(π_ref‖π_θ) at each state.
    """
    return k3(ref_logprobs - logprobs)


def k3(logratio: Tensor) -> Tensor:
    """exp(x) - 1 - x, which is never negative, for log-ratios x of tokens (B, R) or of responses (B,)."""
    return logratio.exp() - 1 - logratio


def adapted_kl_coef(kl_coef: float, kl: float, target: float, horizon: float, responses: int) -> float:
    """One step of the adaptive controller of Ziegler et al. 2019 (arXiv:1909.08593, sec. 2.2).

    e = clip(KL/target - 1, ±0.2); β <- β (1 + e · responses/horizon). `kl` and `target` are in nats per response.

    Raises:
        UserError: if the horizon is shorter than one rollout: β could overshoot and become negative.
    """
    if horizon < responses:
        raise UserError(f"kl_horizon is {horizon}, less than the {responses} responses of one rollout. Raise it.")
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * responses / horizon)
