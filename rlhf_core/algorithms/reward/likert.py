"""Reward model from Likert scores by least-squares regression.

L = (r(x, y) - score)² on scores standardised over the training data. The mean and standard deviation are saved with the
model to convert its predictions to the annotators' scale.
"""

from dataclasses import dataclass
from typing import ClassVar

from rlhf_core.algorithms.base.algorithm import Algorithm, Link
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.data import Data
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.losses import squared_error
from rlhf_core.maths.reductions import unit_mean


@dataclass(frozen=True, kw_only=True)
class Likert(Algorithm[Batch]):
    """Least squares on standardised scores, one per row."""

    name = "likert"
    title = "Likert regression"
    data = Data.RATINGS
    link: ClassVar[Link | None] = None  # a rating does not give the probability of a preference

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """(r - score)², (B,)."""
        return squared_error(outputs.scores, batch.ratings)

    def weights(self, batch: Batch) -> Tensor:
        """Equal weight for every rating, (B,)."""
        return unit_mean(batch.rows, batch.input_ids.device)
