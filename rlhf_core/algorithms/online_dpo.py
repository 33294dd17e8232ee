"""Online DPO: DPO on pairs sampled from the current policy. Guo et al. 2024, arXiv:2402.04792, algorithm 1; earlier
iterated variants: Xu et al. 2023, arXiv:2312.16682; Xiong et al. 2023, arXiv:2312.11456.

Departure: in Guo et al., a language model selects the better response. Here the reward model labels the pair, with the
probability σ(r_1 - r_2) or with a draw from it. `argmax` gives a hard label, which is closest to theirs.

The current policy samples two responses per prompt. Soft and sampled labels have the optimum of DPO. Argmax labels have
no finite optimum.
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
    """DPO on rollouts: rows alternate between the first and second response to a prompt; `targets` labels them."""

    name = "online_dpo"
    title = "Online DPO"

    beta: float = setting(0.1, "weight of the KL to the reference model", title="Beta", gt=0)
    labels: Literal["soft", "sampled", "argmax"] = setting(
        "soft", "label of a pair: soft is σ(r_1 - r_2), sampled a draw from it, argmax 1 for the higher score"
    )

    group_size = 2  # not an option: a pair has two responses

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.labels == "argmax":
            warnings.warn("online DPO with argmax labels has no finite optimum; margins keep growing", stacklevel=2)

    @property
    def rows_per_unit(self) -> int:
        """2, because the loss needs both rows of a pair."""
        return 2

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """The preference of each row: the probability that it is the better one of its pair."""
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
        """DPO's loss for each pair with the first response as chosen and its label, (N,)."""
        logratios = sequence_sum(outputs.logprobs - batch.ref_logprobs, batch.response_mask)
        return dpo(logratios[0::2], logratios[1::2], self.beta, batch.preferences[0::2])

    def weights(self, batch: Rollout) -> Tensor:
        """Equal weight for every pair, (N,)."""
        return batch.row_weights[0::2] / batch.row_weights[0::2].sum()

    def statistics(self, outputs: Outputs, batch: Rollout) -> dict[str, Tensor]:
        """Whether the implicit reward orders a pair as its label does, and the size of the margin, (N,)."""
        logratios = self.beta * sequence_sum(outputs.logprobs - batch.ref_logprobs, batch.response_mask).detach()
        margin = logratios[0::2] - logratios[1::2]
        agrees = (margin > 0) == (batch.preferences[0::2] > 0.5)
        return {"accuracy": agrees.float(), "margin": margin.abs()}
