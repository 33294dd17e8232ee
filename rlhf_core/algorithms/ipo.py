"""IPO: Identity Preference Optimization. Azar et al. 2023, arXiv:2310.12036, eq. 17.

L = (h - 1/(2τ))² with h = log π_θ(y_w)/π_ref(y_w) - log π_θ(y_l)/π_ref(y_l), summed over tokens as in the paper. The
field `beta` is its τ. The paper has hard labels; here a label p strictly between 0 and 1 weights the two directions by
p and 1 - p. The optimum is π_ref exp(E_{y'~μ} p(y ≻ y')/τ), not π*: it depends on how often a response wins, not on
the size of the reward difference.
"""

from dataclasses import dataclass

from rlhf_core.algorithms.base.pairs import PairAlgorithm
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.losses import ipo


@dataclass(frozen=True, kw_only=True)
class IPO(PairAlgorithm):
    """The IPO loss, eq. 17."""

    name = "ipo"
    title = "IPO"

    beta: float = setting(0.1, "τ of the paper, weight of the KL to the reference model", title="Beta", gt=0)
    per_token: bool = setting(False, "divide each log-ratio by its length, as later code does; the paper does not")

    def __post_init__(self) -> None:
        check_bounds(self)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Eq. 17 for each pair, (N,)."""
        logratios = self.logratios(outputs, batch)
        return ipo(logratios[0::2], logratios[1::2], self.beta, batch.preferences[0::2])

    def logratios(self, outputs: Outputs, batch: Batch) -> Tensor:
        """log π_θ(y|x) - log π_ref(y|x), (B,); `per_token` divides both terms by the length (docs/pitfalls.md, 22)."""
        logratios = super().logratios(outputs, batch)
        return logratios / batch.lengths if self.per_token else logratios
