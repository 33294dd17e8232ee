"""Reward model from all pairs of a ranking. InstructGPT, Ouyang et al. 2022 (arXiv:2203.02155) eq. 1.

L = 1 / C(K,2) Σ -log σ(r_w - r_l) over the C(K,2) pairs of a ranking of K responses. A tie is the mean of both
directions.
"""

from dataclasses import dataclass

from rlhf_core.algorithms.base.rankings import RankingLoss, ranked_pairs
from rlhf_core.common.lazy import Tensor, torch
from rlhf_core.maths.losses import bradley_terry


@dataclass(frozen=True, kw_only=True)
class RankingPairs(RankingLoss):
    """The mean Bradley-Terry loss over all pairs of a ranking."""

    name = "ranking_pairs"
    title = "Pairs of a ranking"

    def ranking_loss(self, scores: Tensor, ranks: Tensor) -> Tensor:
        """1 / C(K,2) Σ -log σ(r_w - r_l), (K,), (K,) -> ()."""
        better, worse = ranked_pairs(ranks, ties=True)
        label = torch.where(ranks[better] == ranks[worse], 0.5, 1.0)
        return bradley_terry(scores[better], scores[worse], label=label).mean()
