"""DPO: Direct Preference Optimization. Rafailov et al. 2023, arXiv:2305.18290, eq. 7; seeds S0, S3, S4.

L = -log σ(β [log π_θ(y_w|x)/π_ref(y_w|x) - log π_θ(y_l|x)/π_ref(y_l|x)]), log-probabilities summed over response
tokens. β is the weight of the KL constraint (seed S4 says there is none). The reference is the SFT model; its
log-probabilities are computed once, before training.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlhf_core.batch import Batch, Outputs
from rlhf_core.fields import check_bounds, setting
from rlhf_core.losses import dpo
from rlhf_core.reductions import sequence_sum, unit_mean


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Rows alternate chosen, rejected."""

    beta: float = setting(0.1, "weight of the KL to the reference model (sec. 6)", gt=0)

    needs: ClassVar[frozenset[str]] = frozenset()
    rows_per_unit: ClassVar[int] = 2
    on_policy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_bounds(self)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Eq. 7 per pair, (N,)."""
        logratios = self._logratios(outputs, batch)
        return dpo(logratios[0::2], logratios[1::2], self.beta)

    def weights(self, batch: Batch) -> Tensor:
        """One pair, one vote, (N,)."""
        return unit_mean(batch.rows // 2, batch.input_ids.device)

    def statistics(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Implicit rewards β log π_θ/π_ref of both sides, their margin, and how often it has the right sign, (N,)."""
        implicit = self.beta * self._logratios(outputs, batch).detach()
        chosen, rejected = implicit[0::2], implicit[1::2]
        logprobs = sequence_sum(outputs.logprobs.detach(), batch.response_mask)
        return {
            "implicit_reward_chosen": chosen,
            "implicit_reward_rejected": rejected,
            "margin": chosen - rejected,
            "accuracy": (chosen > rejected).float() + 0.5 * (chosen == rejected).float(),
            "logprobs_chosen": logprobs[0::2],
        }

    def _logratios(self, outputs: Outputs, batch: Batch) -> Tensor:
        return sequence_sum(outputs.logprobs - batch.ref_logprobs, batch.response_mask)
