"""Best-of-N sampling: the best of N samples of the SFT model. Stiennon et al. 2020, arXiv:2009.01325.

Nothing is trained: the SFT model samples N responses and the reward model selects one. The KL of this policy to the SFT
model is at most log N - (N - 1)/N (Beirami et al. 2024, arXiv:2401.01879); the bound is tight if no single response has
appreciable probability. Every policy optimiser should be compared with this baseline.
"""

import math
from dataclasses import dataclass

from rlhf_core.algorithms.base.algorithm import Method
from rlhf_core.common.data import Data
from rlhf_core.common.fields import check_bounds, setting


@dataclass(frozen=True, kw_only=True)
class BestOfN(Method):
    """The highest-scoring of N samples under the reward model."""

    name = "best_of_n"
    title = "Best of N"

    best_of: int = setting(16, "N, responses sampled per prompt; the best one is returned", title="N", ge=2)

    data = Data.NOTHING

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def samples_per_answer(self) -> int:
        """N."""
        return self.best_of

    @property
    def kl_bound(self) -> float:
        """Upper bound on the KL to the SFT model: log N - (N - 1)/N, nats per response."""
        return math.log(self.best_of) - (self.best_of - 1) / self.best_of
