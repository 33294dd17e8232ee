"""Reward model from the best of N responses, fitted by the likelihood of the choice. Luce 1959.

L = logsumexp_j r_j - r_best. Differences between the other ranks are ignored.
"""

from dataclasses import dataclass

from rlhf_core.algorithms.base.rankings import RankingLoss
from rlhf_core.common.lazy import Tensor, torch
from rlhf_core.maths.losses import best_of


@dataclass(frozen=True, kw_only=True)
class BestOfNChoice(RankingLoss):
    """The loss -log P(best is chosen)."""

    name = "best_of_n"
    title = "Best of N"

    def ranking_loss(self, scores: Tensor, ranks: Tensor) -> Tensor:
        """logsumexp_j r_j - r_best, (K,), (K,) -> (); the mean over all responses that share the best rank."""
        best = (ranks == ranks.min()).nonzero().flatten().tolist()
        return torch.stack([best_of(scores, index) for index in best]).mean()
