"""Online DPO: DPO on pairs that the policy samples itself. Guo et al. 2024, arXiv:2402.04792, algorithm 1; iterated
forms before it: Xu et al. 2023, arXiv:2312.16682; Xiong et al. 2023, arXiv:2312.11456.

Departure: Guo et al. have a language model name the better response. Here the reward model labels the pair, softly
with σ(r_1 - r_2) or by a draw from it; `argmax` is the hard label, which is nearest to theirs.

Two responses per prompt come from the current policy. Soft and drawn labels have DPO's optimum. The label of the larger
score alone (argmax) has no finite optimum.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

from rlhf_core.algorithms.base.algorithm import OnPolicyAlgorithm, State
from rlhf_core.common.batch import Outputs, Rollout
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor, torch
from rlhf_core.maths.losses import dpo
from rlhf_core.maths.reductions import at_last_token, sequence_sum


@dataclass(frozen=True, kw_only=True)
class OnlineDPO(OnPolicyAlgorithm):
    """Rows alternate the first and second response to a prompt; `targets` sets each row's preference."""

    name = "online_dpo"
    title = "Online DPO"

    beta: float = setting(0.1, "weight of the KL to the reference model", title="Beta", gt=0)
    labels: Literal["soft", "sampled", "argmax"] = setting(
        "soft", "σ(r_1 - r_2) itself, a draw from it, or the higher score"
    )

    group_size = 2  # not a setting: two responses make a pair

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.labels == "argmax":
            warnings.warn("online DPO with argmax labels has no finite optimum: margins grow on", stacklevel=2)

    @property
    def rows_per_unit(self) -> int:
        """A pair."""
        return 2

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """The preference of each row: its probability of being the better one of its pair."""
        margin = rollout.scores[0::2] - rollout.scores[1::2]
        first = margin.sigmoid()
        if self.labels == "sampled":
            first = torch.bernoulli(first)
        elif self.labels == "argmax":
            first = (margin.sign() + 1) / 2
        rewards = at_last_token(rollout.scores, rollout.response_mask)
        nothing = torch.zeros_like(rewards)
        labelled = replace(rollout, preferences=torch.stack([first, 1 - first], -1).flatten())
        return labelled.with_targets(advantages=nothing, rewards=rewards)

    def losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """DPO's loss with the first response as chosen and its label, (N,)."""
        logratios = sequence_sum(outputs.logprobs - batch.ref_logprobs, batch.response_mask)
        return dpo(logratios[0::2], logratios[1::2], self.beta, batch.preferences[0::2])

    def weights(self, batch: Rollout) -> Tensor:
        """One pair, one vote, (N,)."""
        return batch.row_weights[0::2] / batch.row_weights[0::2].sum()

    def statistics(self, outputs: Outputs, batch: Rollout) -> dict[str, Tensor]:
        """How often the implicit reward ranks a pair as its label does, and the size of the margin, (N,)."""
        logratios = self.beta * sequence_sum(outputs.logprobs - batch.ref_logprobs, batch.response_mask).detach()
        margin = logratios[0::2] - logratios[1::2]
        agrees = (margin > 0) == (batch.preferences[0::2] > 0.5)
        return {"accuracy": agrees.float(), "margin": margin.abs()}
