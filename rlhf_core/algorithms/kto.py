"""KTO: Kahneman-Tversky Optimization on unpaired data. Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7-8.

With r = log π_θ(y|x)/π_ref(y|x): L = λ_D (1 - σ(β (r - z_0))) for a good response, λ_U (1 - σ(β (z_0 - r))) for a
bad one. The reference point is z_0 = max(0, mean r over the mismatched pairs of the whole minibatch), without gradient.

A unit has two rows: the labelled row, and a mismatched row with the same prompt and the response to another prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from rlhf_core.algorithms.base.algorithm import Algorithm
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.data import Data
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.losses import kto
from rlhf_core.maths.reductions import sequence_sum, unit_mean


@dataclass(frozen=True, kw_only=True)
class KTO(Algorithm[Batch]):
    """A loss per response: `desirable` labels it good or bad, and `reference_points` holds z_0."""

    name = "kto"
    title = "KTO"

    beta: float = setting(0.1, "β, factor on the log-ratio inside the sigmoid (sec. 4.2)", title="Beta", gt=0)
    desirable_weight: float = setting(1.0, "λ_D, weight of good responses (sec. 4.2)", gt=0)
    undesirable_weight: float = setting(1.0, "λ_U, weight of bad responses (sec. 4.2)", gt=0)

    data = Data.UNPAIRED

    def __post_init__(self) -> None:
        check_bounds(self)

    def prepare(self, batch: Batch, forward: Callable[[Batch], Outputs]) -> Batch:
        """The labelled rows only, with z_0 computed from the mismatched rows."""
        mismatched = batch.select(slice(1, None, 2))
        reference_point = self._logratios(forward(mismatched), mismatched).mean().clamp(min=0)
        labelled = batch.select(slice(0, None, 2))
        return replace(labelled, reference_points=reference_point.expand(labelled.rows))

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Eq. 7, (B,)."""
        values = kto(self._logratios(outputs, batch), batch.reference_points, batch.desirable, self.beta)
        good = batch.desirable > 0.5
        return values * good * self.desirable_weight + values * ~good * self.undesirable_weight

    def weights(self, batch: Batch) -> Tensor:
        """Equal weight for every response, (B,)."""
        return unit_mean(batch.rows, batch.input_ids.device)

    def statistics(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The reference point, and the mean implicit reward with its sign turned for bad responses, (B,)."""
        implicit = self.beta * self._logratios(outputs, batch).detach()
        return {
            "reference_point": batch.reference_points,
            "implicit_reward": implicit,
            "margin": implicit * (2 * batch.desirable - 1),
        }

    def _logratios(self, outputs: Outputs, batch: Batch) -> Tensor:
        return sequence_sum(outputs.logprobs - batch.ref_logprobs, batch.response_mask)
