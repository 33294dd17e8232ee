"""GRPO: Group Relative Policy Optimization. Shao et al. 2024, arXiv:2402.03300, eq. 3.

Sample G responses per prompt. The advantage of a response is its score, standardised within its group. All tokens of
the response share it, so no critic is needed. The KL to the reference is a term of the loss, not of the reward. The
expected gradient of the paper's k3 per token is that of KL(π_ref‖π_θ) at each state, so the optimum is not exactly
π_ref exp(r/β).

Variants: `std` none with `averaging` fixed_length is Dr. GRPO (arXiv:2503.20783); `averaging` token, `clip_high`,
`dynamic_sampling` and kl_coef 0 are DAPO (arXiv:2503.14476); `ratio` sequence is GSPO (arXiv:2507.18071, eq. 5);
`surrogate` cispo with `averaging` token is CISPO (arXiv:2506.13585); `ratio` response treats a whole response as one
action, as RLOO does.
"""

from dataclasses import dataclass
from typing import Literal

from rlhf_core.algorithms.base.algorithm import Needs, OnPolicyAlgorithm, State
from rlhf_core.algorithms.base.groups import DynamicSampling
from rlhf_core.algorithms.base.kl_penalty import KLPenalty
from rlhf_core.algorithms.base.ratio import RATIO_OPTIONS, ClippedRatio
from rlhf_core.common.batch import Outputs, Rollout
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.advantages import group_standardize, no_advantage
from rlhf_core.maths.kl import k3
from rlhf_core.maths.reductions import at_last_token, fixed_length, sequence_mean, sequence_sum, token_mean


@dataclass(frozen=True, kw_only=True)
class GRPO(KLPenalty, ClippedRatio, DynamicSampling, OnPolicyAlgorithm):
    """Group-standardised scores, a clipped surrogate and k3 in the loss; mean over tokens, then over responses."""

    name = "grpo"
    title = "GRPO"
    reuse_options = (*RATIO_OPTIONS, "ratio")

    group_size: int = setting(64, "G, responses sampled per prompt (sec. 4.2)", ge=2)
    kl_coef: float = setting(0.04, "β, weight of the KL to the reference (sec. 4.2)", title="KL weight", ge=0)
    kl_in: Literal["reward", "loss"] = setting("loss", "where to add the KL to the reference: reward or loss (eq. 3)")
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = setting(
        "k3", "k1, k2 or k3 (eq. 4) on the sampled tokens, or exact: the sum over the vocabulary; only k1 in the reward"
    )
    clip: float = setting(
        0.2,
        "ε of the clipped ratio; the paper gives none, 0.2 is usual for PPO; 1 for no lower bound; must be set for "
        "ratio sequence",
        gt=0,
        le=1,
    )
    ratio: Literal["token", "response", "sequence"] = setting(
        "token",
        "π_θ/π_old per token (eq. 3), of the whole response, or of the sequence: to the power 1/|y| "
        "(arXiv:2507.18071, eq. 7)",
    )
    std: Literal["group", "batch", "none"] = setting("group", "std that divides the advantages: group, batch or none")
    std_eps: float = setting(1e-4, "ε added to the std; a very small value amplifies rounding errors", gt=0)
    unbiased_std: bool = setting(False, "use n - 1 instead of n in the variance, as some implementations do")
    averaging: Literal["response", "token", "fixed_length"] = setting(
        "response",
        "response: mean per response, then over responses (eq. 3); token: over all tokens; fixed_length: sum / length",
    )
    length: int | None = setting(None, "divisor in tokens for averaging fixed_length", ge=1)

    def __post_init__(self) -> None:
        check_bounds(self)
        self.check_kl()
        self.check_ratio()
        if (self.length is None) == (self.averaging == "fixed_length"):
            raise ValueError("length is only for averaging fixed_length, which requires it; set both or neither")
        if self.std == "none" and (self.std_eps != type(self).std_eps or self.unbiased_std):
            raise ValueError("std_eps and unbiased_std have no effect while std is none; leave them out")

    @property
    def needs(self) -> Needs:
        """What the KL penalty and `importance_cap` need."""
        return Needs(
            reference=self.kl_coef > 0,
            exact_kl=self.uses_exact_kl,
            sampler_logprobs=self.importance_cap is not None,
        )

    def without_gradient(self, batch: Rollout) -> Tensor | None:
        """Rows without advantage, such as those of a group with equal scores, unless the KL is a term of the loss."""
        return None if self.kl_in == "loss" and self.kl_coef > 0 else no_advantage(batch)

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """Â_{i,t} = (R_i - mean R) / (std R + ε), the same for every token of response i.

        R_i is the score, minus β times the response's k1 if the KL is in the reward.
        """
        rewards = self.token_rewards(rollout)
        advantages = group_standardize(
            sequence_sum(rewards, rollout.response_mask),
            self.group_size,
            std=self.std,
            unbiased_std=self.unbiased_std,
            eps=self.std_eps,
        )
        return rollout.with_targets(advantages=advantages[:, None] * rollout.response_mask, rewards=rewards)

    def losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """Eq. 3: clipped surrogate plus KL penalty, (B, R)."""
        surrogate = self.surrogate_losses(outputs, batch)
        if self.ratio == "response":  # its gradient is a sum over tokens, as if each had its own loss
            surrogate = at_last_token(surrogate, batch.response_mask)
        elif self.ratio == "sequence":  # its gradient is a mean over tokens, which the token weights turn into a sum
            surrogate = surrogate[:, None] * batch.response_mask
        return surrogate + self.kl_losses(outputs, batch)

    def weights(self, batch: Rollout) -> Tensor:
        """1/G Σ_i 1/|y_i| Σ_t, or another average selected by `averaging`, (B, R)."""
        if self.length is not None:
            return fixed_length(batch.response_mask, self.length, batch.row_weights)
        average = sequence_mean if self.averaging == "response" else token_mean
        return average(batch.response_mask, batch.row_weights)

    def statistics(self, outputs: Outputs, batch: Rollout) -> dict[str, Tensor]:
        """Size of the update, fraction of clipped ratios, and KL term, (B, R)."""
        logratio = (outputs.logprobs - batch.old_logprobs).detach()
        clipped = self.clip_statistics(outputs, batch)
        if self.ratio != "token":
            clipped = {name: value[:, None].expand_as(logratio) for name, value in clipped.items()}
        return {
            **clipped,
            "update_kl": k3(logratio),
            "kl_term": self.kl_losses(outputs, batch).detach(),
        }
