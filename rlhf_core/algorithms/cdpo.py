"""cDPO: conservative DPO. Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO" (not on arXiv).

DPO under the assumption that each label is flipped with probability ε:
L = (1 - ε) L_DPO(y_w, y_l) + ε L_DPO(y_l, y_w). The margin has a finite optimum: log((1 - ε)/ε) on a pair that always
gets the same label. The unbiased correction of Chowdhury et al. 2024 (rDPO, arXiv:2403.00409), which subtracts the
second term, is a different loss and is not implemented.
"""

from dataclasses import dataclass

from rlhf_core.algorithms.base.pairs import PairAlgorithm
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.losses import dpo, smoothed


@dataclass(frozen=True, kw_only=True)
class CDPO(PairAlgorithm):
    """DPO with smoothed labels."""

    name = "cdpo"
    title = "cDPO"

    beta: float = setting(0.1, "weight of the KL to the reference model, as in DPO", title="Beta", gt=0)
    label_smoothing: float = setting(0.1, "ε, probability that a label is wrong", gt=0, lt=0.5)

    def __post_init__(self) -> None:
        check_bounds(self)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """DPO's loss per pair, averaged over both directions with weights 1 - ε and ε, (N,)."""
        logratios = self.logratios(outputs, batch)
        preferences = smoothed(batch.preferences[0::2], self.label_smoothing)
        return dpo(logratios[0::2], logratios[1::2], self.beta, preferences)
