"""The KL to the reference, its place and its estimator: options that PPO and GRPO share.

The choices have different optima (docs/algorithms.md; `make oracle` shows them by enumeration). π* ∝ π_ref exp(r/β).

    in the reward, k1                                       π*
    in the loss, k2 of whole responses                      π*
    in the loss per token, k2, exact, or weighted k1 or k3  ignores the KL of the tokens that follow
    in the loss, unweighted k3                              penalises KL(π_ref‖π_θ) at each state
    in the loss, unweighted k1                              no penalty: the expected gradient is zero
"""

from dataclasses import dataclass
from typing import Literal

from rlhf_core.common.batch import Outputs, Rollout
from rlhf_core.common.fields import setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.advantages import token_rewards
from rlhf_core.maths.kl import kl_k1, kl_k2, kl_k3
from rlhf_core.maths.reductions import at_last_token, sequence_sum

ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


@dataclass(frozen=True, kw_only=True)
class KLPenalty:
    """β KL(π_θ‖π_ref), in the token reward or in the loss."""

    kl_coef: float = setting(0.05, "β, weight of the KL to the reference", title="KL weight", ge=0)
    kl_in: Literal["reward", "loss"] = setting("reward", "where to add the KL to the reference: reward or loss")
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = setting(
        "k1", "k1, k2 or k3 on the sampled tokens, or exact: the sum over the vocabulary; only k1 in the reward"
    )
    kl_per: Literal["token", "response"] = setting("token", "in the loss: estimate per token or per response")
    kl_weighted: bool = setting(False, "in the loss: multiply by π_θ/π_old and include its gradient")

    def check_kl(self) -> None:
        """Raise ValueError for combinations that have no effect or a wrong optimum."""
        if self.kl_in == "reward" and self.kl_estimator != "k1":
            raise ValueError(
                f"kl_estimator {self.kl_estimator} in the reward makes the policy collapse; "
                "set kl_estimator to k1, or kl_in to loss"
            )
        if self.kl_in == "loss" and self.kl_estimator == "k1" and not self.kl_weighted:
            raise ValueError(
                "kl_estimator k1 in the loss has no effect, because its expected gradient is zero; "
                "set kl_in to reward, kl_weighted to true, or kl_estimator to k2, k3 or exact"
            )
        if self.kl_in == "reward" and (self.kl_per != "token" or self.kl_weighted):
            raise ValueError("kl_per and kl_weighted have no effect while kl_in is reward; leave them out")
        if self.kl_estimator == "exact" and (self.kl_per != "token" or self.kl_weighted):
            raise ValueError("kl_per and kl_weighted have no effect while kl_estimator is exact; leave them out")

    @property
    def uses_exact_kl(self) -> bool:
        """Whether the loop must compute the exact KL."""
        return self.kl_in == "loss" and self.kl_estimator == "exact" and self.kl_coef > 0

    def token_rewards(self, rollout: Rollout) -> Tensor:
        """The score at the last token, minus β k1 at each token if the KL is in the reward, (B, R)."""
        kl = kl_k1(rollout.old_logprobs, rollout.ref_logprobs)
        return token_rewards(rollout.scores, kl, self.kl_coef if self.kl_in == "reward" else 0.0, rollout.response_mask)

    def kl_losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """The KL term of the loss, times β, (B, R); 0 if the KL is in the reward."""
        if self.kl_in == "reward" or self.kl_coef == 0:
            return outputs.logprobs.new_zeros(outputs.logprobs.shape)
        if self.kl_estimator == "exact":
            return self.kl_coef * outputs.exact_kl
        return self.kl_coef * self._estimate(outputs, batch)

    def _estimate(self, outputs: Outputs, batch: Rollout) -> Tensor:
        estimator, mask = ESTIMATORS[self.kl_estimator], batch.response_mask
        logratio = outputs.logprobs - batch.old_logprobs
        if self.kl_per == "token":
            kl = estimator(outputs.logprobs, batch.ref_logprobs)
            return logratio.exp() * kl if self.kl_weighted else kl
        kl = estimator(sequence_sum(outputs.logprobs, mask), sequence_sum(batch.ref_logprobs, mask))
        if self.kl_weighted:
            kl = sequence_sum(logratio, mask).exp() * kl
        return at_last_token(kl, mask)
