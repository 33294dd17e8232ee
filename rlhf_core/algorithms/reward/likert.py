"""Reward model by regression on Likert scores, by least squares.

L = (r(x, y) - score)² on scores standardised over the training data; mean and standard deviation are saved with the
model, so that its prediction can be read on the annotators' scale.
"""

from dataclasses import dataclass
from typing import ClassVar

from rlhf_core.algorithms.base.algorithm import Algorithm, Data, Link
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.losses import squared_error
from rlhf_core.maths.reductions import unit_mean


@dataclass(frozen=True, kw_only=True)
class Likert(Algorithm[Batch]):
    """One row, one standardised score."""

    name = "likert"
    title = "Likert regression"
    data = Data.RATINGS
    link: ClassVar[Link | None] = None  # a rating is no probability

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """(r - score)², (B,)."""
        return squared_error(outputs.scores, batch.ratings)

    def weights(self, batch: Batch) -> Tensor:
        """One rating, one vote, (B,)."""
        return unit_mean(batch.rows, batch.input_ids.device)
