"""DPO: Direct Preference Optimization. Rafailov et al. 2023, arXiv:2305.18290, eq. 7.

L = -log σ(β [log π_θ(y_w|x)/π_ref(y_w|x) - log π_θ(y_l|x)/π_ref(y_l|x)]), with log-probabilities summed over response
tokens. β is the weight of the KL constraint (eq. 3). The reference is the SFT model; its log-probabilities are computed
once, before training. A tie (preference ½) is the mean of both directions.
"""

from dataclasses import dataclass

from rlhf_core.algorithms.base.pairs import PairAlgorithm
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.losses import dpo


@dataclass(frozen=True, kw_only=True)
class DPO(PairAlgorithm):
    """The DPO loss, eq. 7."""

    name = "dpo"
    title = "DPO"

    beta: float = setting(0.1, "weight of the KL to the reference model (sec. 6)", title="Beta", gt=0)

    def __post_init__(self) -> None:
        check_bounds(self)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Eq. 7 for each pair, (N,)."""
        logratios = self.logratios(outputs, batch)
        return dpo(logratios[0::2], logratios[1::2], self.beta, batch.preferences[0::2])
