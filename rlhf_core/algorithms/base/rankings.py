"""What reward-model losses on rankings of K responses share.

The K responses to a prompt form one unit: each is read once, and no split separates them. Rank 1 is the best; equal
ranks are ties.
"""

from itertools import combinations
from typing import ClassVar

from rlhf_core.algorithms.base.algorithm import Algorithm, Data, Link
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.lazy import Tensor, torch
from rlhf_core.maths.reductions import unit_mean


class RankingLoss(Algorithm[Batch]):
    """One ranking, one vote."""

    data = Data.RANKINGS
    link: ClassVar[Link | None] = "logistic"  # of two responses, in Plackett-Luce's and Luce's models too

    def ranking_loss(self, scores: Tensor, ranks: Tensor) -> Tensor:
        """The loss of one ranking, (K,), (K,) -> ()."""
        raise NotImplementedError

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """One number per ranking, (N,)."""
        sizes = batch.unit_sizes
        rankings = zip(outputs.scores.split(sizes), batch.ranks.split(sizes), strict=True)
        return torch.stack([self.ranking_loss(scores, ranks) for scores, ranks in rankings])

    def weights(self, batch: Batch) -> Tensor:
        """One ranking, one vote, (N,)."""
        return unit_mean(len(batch.unit_sizes), batch.input_ids.device)

    def statistics(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Share of the pairs of each ranking that the scores order alike (equal scores are half right), (N,)."""
        sizes = batch.unit_sizes
        rankings = zip(outputs.scores.detach().split(sizes), batch.ranks.split(sizes), strict=True)
        return {"accuracy": torch.stack([ordered_alike(scores, ranks) for scores, ranks in rankings])}


def ordered_alike(scores: Tensor, ranks: Tensor) -> Tensor:
    """Share of the pairs with different ranks that the scores order alike; ½ where all ranks are equal."""
    better, worse = ranked_pairs(ranks, ties=False)
    if not better:
        return scores.new_tensor(0.5)
    margin = scores[better] - scores[worse]
    return ((margin > 0).float() + 0.5 * (margin == 0).float()).mean()


def ranked_pairs(ranks: Tensor, *, ties: bool) -> tuple[list[int], list[int]]:
    """Indices of the better and the worse of all pairs, tied ones (in either order) only if `ties`."""
    pairs = [(i, j) if ranks[i] <= ranks[j] else (j, i) for i, j in combinations(range(len(ranks)), 2)]
    kept = [(i, j) for i, j in pairs if ties or ranks[i] != ranks[j]]
    return [i for i, _ in kept], [j for _, j in kept]
