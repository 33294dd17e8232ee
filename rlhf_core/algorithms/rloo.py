"""RLOO: REINFORCE with a leave-one-out baseline. Ahmadian et al. 2024, arXiv:2402.14740, after Kool et al. 2019, "Buy 4
REINFORCE samples, get a baseline for free!" (ICLR workshop on deep RL meets structured prediction).

Departure: Ahmadian et al. use plain REINFORCE on fresh samples. Here a rollout can make several steps, and the ratio of
whole responses to the policy that sampled is clipped as in PPO (arXiv:1707.06347, eq. 7). With one step per rollout the
ratio is 1, and the gradient equals theirs.

A response is one action. Its advantage is its return, which includes the KL to the reference, minus the mean return of
the other responses to the prompt. Its ratio is therefore the product over its tokens.
"""

from dataclasses import dataclass

from rlhf_core.algorithms.base.algorithm import Needs, OnPolicyAlgorithm, State
from rlhf_core.algorithms.base.groups import DynamicSampling
from rlhf_core.algorithms.base.ratio import RATIO_OPTIONS, ClippedRatio
from rlhf_core.common.batch import Outputs, Rollout
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.advantages import leave_one_out, no_advantage, token_rewards, whiten
from rlhf_core.maths.kl import k3, kl_k1
from rlhf_core.maths.reductions import sequence_sum


@dataclass(frozen=True, kw_only=True)
class RLOO(ClippedRatio, DynamicSampling, OnPolicyAlgorithm):
    """A clipped surrogate per response with a leave-one-out advantage."""

    name = "rloo"
    title = "RLOO"
    reuse_options = RATIO_OPTIONS
    ratio = "response"

    group_size: int = setting(4, "k, responses sampled per prompt (sec. 4)", ge=2)
    kl_coef: float = setting(
        0.03, "β, weight of the KL to the reference in the return (appendix B)", title="KL weight", ge=0
    )
    clip: float = setting(
        0.2, "ε of the clipped ratio of whole responses; PPO's usual value; 1 for no lower bound", gt=0, le=1
    )
    normalize_advantages: bool = setting(False, "subtract the mean and divide by std + ε, over the rollout")
    std_eps: float = setting(1e-4, "ε added to the std of normalize_advantages", gt=0)

    def __post_init__(self) -> None:
        check_bounds(self)
        self.check_ratio()
        if not self.normalize_advantages and self.std_eps != type(self).std_eps:
            raise ValueError("std_eps has no effect while normalize_advantages is false; leave it out")

    @property
    def needs(self) -> Needs:
        """The reference, for the KL in the return, and what `importance_cap` needs."""
        return Needs(reference=self.kl_coef > 0, sampler_logprobs=self.importance_cap is not None)

    def without_gradient(self, batch: Rollout) -> Tensor:
        """Rows without advantage."""
        return no_advantage(batch)

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """R_i minus the mean R_j of the other responses in its group."""
        mask = rollout.response_mask
        kl = kl_k1(rollout.old_logprobs, rollout.ref_logprobs)
        rewards = token_rewards(rollout.scores, kl, self.kl_coef, mask)
        returns = sequence_sum(rewards, mask)
        advantages = returns - leave_one_out(returns, self.group_size)
        if self.normalize_advantages:
            advantages = whiten(advantages, rollout.row_weights, std_eps=self.std_eps)
        return rollout.with_targets(advantages=advantages[:, None] * mask, rewards=rewards)

    def losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """-min(ρ Â, clip(ρ) Â) with ρ = π_θ(y|x)/π_old(y|x), (B,)."""
        return self.surrogate_losses(outputs, batch)

    def weights(self, batch: Rollout) -> Tensor:
        """Equal weight for every response, (B,)."""
        return batch.row_weights / batch.row_weights.sum()

    def statistics(self, outputs: Outputs, batch: Rollout) -> dict[str, Tensor]:
        """Size of the update in nats per response, and fraction of clipped responses, (B,)."""
        logratio = sequence_sum(outputs.logprobs - batch.old_logprobs, batch.response_mask).detach()
        return {**self.clip_statistics(outputs, batch), "update_kl": k3(logratio)}
