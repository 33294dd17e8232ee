"""Shared by the reward-model losses on rankings of K responses.

The K responses to a prompt are one unit: each response is scored once, and a microbatch never splits a unit. Rank 1 is
the best; equal ranks are ties.
"""

from itertools import combinations
from typing import ClassVar

from rlhf_core.algorithms.base.algorithm import Algorithm, Link
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.data import Data
from rlhf_core.common.lazy import Tensor, torch
from rlhf_core.maths.accuracy import correct
from rlhf_core.maths.reductions import unit_mean


class RankingLoss(Algorithm[Batch]):
    """The mean over rankings of a loss per ranking."""

    data = Data.RANKINGS
    link: ClassVar[Link | None] = "logistic"  # for two responses, the Plackett-Luce and Luce models are logistic too

    def ranking_loss(self, scores: Tensor, ranks: Tensor) -> Tensor:
        """The loss of one ranking, (K,), (K,) -> ()."""
        raise NotImplementedError

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The loss of each ranking, (N,)."""
        sizes = batch.unit_sizes
        rankings = zip(outputs.scores.split(sizes), batch.ranks.split(sizes), strict=True)
        return torch.stack([self.ranking_loss(scores, ranks) for scores, ranks in rankings])

    def weights(self, batch: Batch) -> Tensor:
        """Equal weight for every ranking, (N,)."""
        return unit_mean(len(batch.unit_sizes), batch.input_ids.device)

    def statistics(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Fraction of pairs in each ranking that the scores order like the ranks; equal scores count ½, (N,)."""
        sizes = batch.unit_sizes
        rankings = zip(outputs.scores.detach().split(sizes), batch.ranks.split(sizes), strict=True)
        return {"accuracy": torch.stack([ordered_alike(scores, ranks) for scores, ranks in rankings])}


def ordered_alike(scores: Tensor, ranks: Tensor) -> Tensor:
    """Fraction of pairs with different ranks that the scores order like the ranks; ½ if all ranks are equal."""
    better, worse = ranked_pairs(ranks, ties=False)
    if not better:
        return scores.new_tensor(0.5)
    return correct(scores[better], scores[worse]).mean()


def ranked_pairs(ranks: Tensor, *, ties: bool) -> tuple[list[int], list[int]]:
    """Indices of the better and the worse response of all pairs; tied pairs, in either order, only if `ties`."""
    pairs = [(i, j) if ranks[i] <= ranks[j] else (j, i) for i, j in combinations(range(len(ranks)), 2)]
    kept = [(i, j) for i, j in pairs if ties or ranks[i] != ranks[j]]
    return [i for i, _ in kept], [j for _, j in kept]
