"""Best-of-N sampling: the best of N samples of the SFT model. Stiennon et al. 2020, arXiv:2009.01325.

Nothing is trained: the policy is the SFT model with the reward model behind it. Its KL to the SFT model is at most
log N - (N - 1)/N (Beirami et al. 2024, arXiv:2401.01879), tight where no single response has appreciable mass. The
baseline that every optimiser must be held against.
"""

import math
from dataclasses import dataclass

from rlhf_core.algorithms.base.algorithm import Data, Method
from rlhf_core.common.fields import check_bounds, setting


@dataclass(frozen=True, kw_only=True)
class BestOfN(Method):
    """Of N samples, the one that the reward model scores highest."""

    name = "best_of_n"
    title = "Best of N"

    best_of: int = setting(16, "N, responses sampled per prompt, of which the best is answered", title="N", ge=2)

    data = Data.NOTHING

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def kl_bound(self) -> float:
        """log N - (N - 1)/N, nats per response."""
        return math.log(self.best_of) - (self.best_of - 1) / self.best_of
