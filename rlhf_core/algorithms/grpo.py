"""GRPO: Group Relative Policy Optimization. Shao et al. 2024, arXiv:2402.03300, eq. 3.

Sample G responses per prompt. A response's advantage is its score standardised within its group, the same for
all its tokens, so no critic is needed. The KL to the reference is a term of the loss, not of the reward: the
paper's k3 per token follows KL(π_ref‖π_θ) at each state and does not end at π_ref exp(r/β) exactly.
Switches: without the std and with a fixed length it is Dr. GRPO (arXiv:2503.20783), averaged over tokens DAPO's loss
(arXiv:2503.14476); the ratio of whole responses is that of one action per response, as in RLOO.
"""

from dataclasses import dataclass
from typing import Literal

from rlhf_core.algorithms.base.algorithm import Needs, OnPolicyAlgorithm, State
from rlhf_core.algorithms.base.kl_penalty import KLPenalty
from rlhf_core.common.batch import Outputs, Rollout
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.advantages import group_standardize
from rlhf_core.maths.losses import clipped_surrogate
from rlhf_core.maths.reductions import at_last_token, fixed_length, sequence_mean, sequence_sum, token_mean


@dataclass(frozen=True, kw_only=True)
class GRPO(KLPenalty, OnPolicyAlgorithm):
    """Group-standardised scores, clipped surrogate, k3 in the loss, mean per response then over responses."""

    name = "grpo"
    title = "GRPO"
    reuse_options = ("clip", "ratio")

    group_size: int = setting(64, "G, responses sampled per prompt (sec. 4.2)", ge=2)
    kl_coef: float = setting(0.04, "β, weight of the KL to the reference (sec. 4.2)", title="KL weight", ge=0)
    kl_in: Literal["reward", "loss"] = setting("loss", "where the KL to the reference stands (eq. 3: in the loss)")
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = setting(
        "k3", "k1, k2, k3 (eq. 4) from the sampled tokens, or the exact sum over the vocabulary; in the reward k1 only"
    )
    clip: float = setting(0.2, "ε of the clipped surrogate; not given in the paper, PPO's usual value", gt=0, lt=1)
    ratio: Literal["token", "response"] = setting("token", "π_θ/π_old of each token (eq. 3) or of the whole response")
    std: Literal["group", "batch", "none"] = setting("group", "whose standard deviation divides the advantages")
    std_eps: float = setting(1e-4, "ε added to the std; a tiny one amplifies rounding", gt=0)
    unbiased_std: bool = setting(False, "divide by n - 1 in the variance, as some code bases do, not by n")
    averaging: Literal["response", "token", "fixed_length"] = setting(
        "response", "mean per response then over responses (eq. 3), over all tokens, or sum over a fixed length"
    )
    length: int | None = setting(None, "the fixed length, in tokens, that averaging fixed_length divides by", ge=1)

    def __post_init__(self) -> None:
        check_bounds(self)
        self.check_kl()
        if (self.length is None) == (self.averaging == "fixed_length"):
            raise ValueError("length belongs to averaging fixed_length: set both or neither")
        if self.std == "none" and (self.std_eps != type(self).std_eps or self.unbiased_std):
            raise ValueError("std_eps and unbiased_std have no effect while std is none; leave them out")

    @property
    def needs(self) -> Needs:
        """The exact KL if that estimator is chosen."""
        return Needs(exact_kl=self.uses_exact_kl)

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """Â_{i,t} = (R_i - mean R) / (std R + ε): the same for every token of response i.

        R_i is the score, less β times the response's k1 if the KL stands in the reward.
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
        return self._surrogate(outputs, batch) + self.kl_losses(outputs, batch)

    def weights(self, batch: Rollout) -> Tensor:
        """1/G Σ_i 1/|y_i| Σ_t, or as `averaging` says, (B, R)."""
        if self.length is not None:
            return fixed_length(batch.response_mask, self.length, batch.row_weights)
        average = sequence_mean if self.averaging == "response" else token_mean
        return average(batch.response_mask, batch.row_weights)

    def statistics(self, outputs: Outputs, batch: Rollout) -> dict[str, Tensor]:
        """Size of the update, share of clipped ratios, KL term, (B, R)."""
        logratio = (outputs.logprobs - batch.old_logprobs).detach()
        whole = sequence_sum(logratio, batch.response_mask)[:, None].expand_as(logratio)
        ratio = (logratio if self.ratio == "token" else whole).exp()
        return {
            "clip_fraction": ((ratio - 1).abs() > self.clip).float(),
            "update_kl": logratio.exp() - 1 - logratio,
            "kl_term": self.kl_losses(outputs, batch).detach(),
        }

    def _surrogate(self, outputs: Outputs, batch: Rollout) -> Tensor:
        if self.ratio == "token":
            return clipped_surrogate(outputs.logprobs, batch.old_logprobs, batch.advantages, self.clip)
        mask = batch.response_mask
        whole = clipped_surrogate(
            sequence_sum(outputs.logprobs, mask),
            sequence_sum(batch.old_logprobs, mask),
            batch.advantages[:, 0],
            self.clip,
        )
        return at_last_token(whole, mask)
