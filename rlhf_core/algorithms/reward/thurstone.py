"""Thurstone reward model. Thurstone 1927, "A law of comparative judgment".

P(y_w ≻ y_l | x) = Φ(r(x, y_w) - r(x, y_l)): utilities with normal noise whose difference has unit variance. Rewards
come out on a scale about 1.7 times smaller than Bradley-Terry's; `reward.unit_scale` takes that out.
"""

from dataclasses import dataclass
from typing import ClassVar

from rlhf_core.algorithms.base.algorithm import Algorithm, Data, Link
from rlhf_core.algorithms.reward.bradley_terry import pair_statistics
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.losses import smoothed, thurstone
from rlhf_core.maths.reductions import unit_mean


@dataclass(frozen=True, kw_only=True)
class Thurstone(Algorithm[Batch]):
    """Rows alternate chosen, rejected."""

    name = "thurstone"
    title = "Thurstone"

    label_smoothing: float = setting(0.0, "ε, probability that a label is wrong", ge=0, lt=0.5)

    data = Data.PAIRS
    link: ClassVar[Link | None] = "normal"

    def __post_init__(self) -> None:
        check_bounds(self)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """-log Φ(r_w - r_l), (N,)."""
        labels = smoothed(batch.labels[0::2], self.label_smoothing)
        return thurstone(outputs.scores[0::2], outputs.scores[1::2], labels)

    def weights(self, batch: Batch) -> Tensor:
        """One pair, one vote, (N,)."""
        return unit_mean(batch.rows // 2, batch.input_ids.device)

    def statistics(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Accuracy (a tie is half) and margin, (N,)."""
        return pair_statistics(outputs, batch)
