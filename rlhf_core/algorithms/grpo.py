"""GRPO: Group Relative Policy Optimization. Shao et al. 2024, arXiv:2402.03300, eq. 3; seeds S0, S1, S3, S4.

Sample G responses per prompt. A response's advantage is its score standardised within its group, the same for
all its tokens, so no critic is needed. The KL to the reference is a term of the loss, not of the reward: the
paper's k3 per token follows KL(π_ref‖π_θ) at each state and does not end at π_ref exp(r/β) exactly.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlhf_core.advantages import group_standardize
from rlhf_core.algorithms.base import State
from rlhf_core.batch import Outputs, Rollout
from rlhf_core.fields import check_bounds, setting
from rlhf_core.kl import kl_k3
from rlhf_core.losses import clipped_surrogate
from rlhf_core.reductions import sequence_mean


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """Group-standardised scores, clipped surrogate, k3 in the loss, mean per response then over responses."""

    group_size: int = setting(64, "G, responses sampled per prompt (sec. 4.2)", ge=2)
    kl_coef: float = setting(0.04, "β, weight of the KL in the loss (sec. 4.2)", ge=0)
    clip: float = setting(0.2, "ε of the clipped surrogate; not given in the paper, PPO's usual value", gt=0, lt=1)
    std_eps: float = setting(1e-4, "ε added to the group's std; a tiny one amplifies rounding", gt=0)

    needs: ClassVar[frozenset[str]] = frozenset()
    rows_per_unit: ClassVar[int] = 1
    on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_bounds(self)

    def initial_state(self) -> State:
        """GRPO carries nothing from rollout to rollout."""
        return {}

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """Â_{i,t} = (r_i - mean r) / (std r + ε): the same for every token of response i."""
        advantages = group_standardize(rollout.scores, self.group_size, eps=self.std_eps)
        return rollout.with_targets(advantages=advantages[:, None] * rollout.response_mask)

    def losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """Eq. 3: clipped surrogate plus KL penalty, per token, (B, R)."""
        surrogate = clipped_surrogate(outputs.logprobs, batch.old_logprobs, batch.advantages, self.clip)
        return surrogate + self.kl_coef * kl_k3(outputs.logprobs, batch.ref_logprobs)

    def weights(self, batch: Rollout) -> Tensor:
        """1/G Σ_i 1/|y_i| Σ_t, (B, R)."""
        return sequence_mean(batch.response_mask)

    def statistics(self, outputs: Outputs, batch: Rollout) -> dict[str, Tensor]:
        """Size of the update, share of clipped tokens, KL term, (B, R)."""
        logratio = (outputs.logprobs - batch.old_logprobs).detach()
        return {
            "clip_fraction": ((logratio.exp() - 1).abs() > self.clip).float(),
            "update_kl": logratio.exp() - 1 - logratio,
            "kl_term": kl_k3(outputs.logprobs, batch.ref_logprobs).detach(),
        }

    def next_state(self, state: State, metrics: dict[str, float], responses: int) -> State:
        """Unchanged."""
        return state
