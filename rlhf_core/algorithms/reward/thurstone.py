"""Thurstone reward model. Thurstone 1927, "A law of comparative judgment".

P(y_w ≻ y_l | x) = Φ(r(x, y_w) - r(x, y_l)): utilities have normal noise, and the difference of two noises has unit
variance. Rewards are about 1.7 times smaller than with Bradley-Terry; `reward.unit_scale` removes this difference.
"""

from dataclasses import dataclass
from typing import ClassVar

from rlhf_core.algorithms.base.algorithm import Link
from rlhf_core.algorithms.base.scored_pairs import ScoredPairs
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.losses import smoothed, thurstone


@dataclass(frozen=True, kw_only=True)
class Thurstone(ScoredPairs):
    """Maximum likelihood on pairs with the normal link."""

    name = "thurstone"
    title = "Thurstone"

    label_smoothing: float = setting(0.0, "ε, probability that a label is wrong", ge=0, lt=0.5)

    link: ClassVar[Link | None] = "normal"

    def __post_init__(self) -> None:
        check_bounds(self)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """-log Φ(r_w - r_l), (N,)."""
        preferences = smoothed(batch.preferences[0::2], self.label_smoothing)
        return thurstone(outputs.scores[0::2], outputs.scores[1::2], preferences)
