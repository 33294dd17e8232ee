"""Bradley-Terry reward model. Bradley & Terry 1952; InstructGPT (arXiv:2203.02155) eq. 1.

P(y_w ≻ y_l | x) = σ(r(x, y_w) - r(x, y_l)), fitted by maximum likelihood on pairs: L = -log σ(r_w - r_l - m).
A tie is the mean of both directions. Label smoothing and margins bias r; `make oracle` prints the size of the bias.
"""

from dataclasses import dataclass
from typing import ClassVar

from rlhf_core.algorithms.base.algorithm import Link
from rlhf_core.algorithms.base.scored_pairs import ScoredPairs
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor, torch
from rlhf_core.maths.losses import bradley_terry, smoothed


@dataclass(frozen=True, kw_only=True)
class BradleyTerry(ScoredPairs):
    """Maximum likelihood on pairs with the logistic link."""

    name = "bradley_terry"
    title = "Bradley-Terry"

    margin: float = setting(0.0, "m, subtracted from the difference of a pair that has no margin in the data", ge=0)
    label_smoothing: float = setting(0.0, "ε, probability that a label is wrong", ge=0, lt=0.5)

    link: ClassVar[Link | None] = "logistic"

    def __post_init__(self) -> None:
        check_bounds(self)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """-log σ(r_w - r_l - m), (N,)."""
        margins = batch.margins[0::2]
        margins = torch.where(margins.isnan(), self.margin, margins)
        preferences = smoothed(batch.preferences[0::2], self.label_smoothing)
        return bradley_terry(outputs.scores[0::2], outputs.scores[1::2], margins, preferences)
