"""Reward models from rankings of K responses: all pairs, Plackett-Luce, and the best of N.

The K responses to a prompt stand in one unit, so that each is read once and no split parts them. Labels are ranks,
1 the best; equal ranks are ties.
"""

from dataclasses import dataclass
from itertools import combinations, permutations, product
from math import factorial, prod
from typing import ClassVar

from rlhf_core.algorithms.base.algorithm import Algorithm, Data, Link
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.errors import UserError
from rlhf_core.common.lazy import Tensor, torch
from rlhf_core.maths.losses import best_of, bradley_terry, plackett_luce
from rlhf_core.maths.reductions import unit_mean

MOST_ORDERS = 5040  # orders of tied entries that one ranking is averaged over


class Ranking(Algorithm[Batch]):
    """What the three losses share: one ranking, one vote."""

    data = Data.RANKINGS
    link: ClassVar[Link | None] = "logistic"  # of two responses, in Plackett-Luce's and Luce's models too

    def ranking_loss(self, scores: Tensor, ranks: Tensor) -> Tensor:
        """The loss of one ranking, (K,), (K,) -> ()."""
        raise NotImplementedError

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """One number per ranking, (N,)."""
        sizes = batch.unit_sizes
        rankings = zip(outputs.scores.split(sizes), batch.labels.split(sizes), strict=True)
        return torch.stack([self.ranking_loss(scores, ranks) for scores, ranks in rankings])

    def weights(self, batch: Batch) -> Tensor:
        """One ranking, one vote, (N,)."""
        return unit_mean(len(batch.unit_sizes), batch.input_ids.device)

    def statistics(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Share of the pairs of each ranking that the scores order alike (equal scores are half right), (N,)."""
        sizes = batch.unit_sizes
        rankings = zip(outputs.scores.detach().split(sizes), batch.labels.split(sizes), strict=True)
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


@dataclass(frozen=True, kw_only=True)
class RankingPairs(Ranking):
    """Bradley-Terry on all C(K, 2) pairs of a ranking, their mean. InstructGPT (arXiv:2203.02155) eq. 1."""

    name = "ranking_pairs"
    title = "Pairs of a ranking"

    def ranking_loss(self, scores: Tensor, ranks: Tensor) -> Tensor:
        """1 / C(K,2) Σ -log σ(r_w - r_l); a tie is the mean of both directions."""
        better, worse = ranked_pairs(ranks, ties=True)
        label = torch.where(ranks[better] == ranks[worse], 0.5, 1.0)
        return bradley_terry(scores[better], scores[worse], label=label).mean()


@dataclass(frozen=True, kw_only=True)
class PlackettLuce(Ranking):
    """The likelihood of the whole order. Plackett 1975; Luce 1959."""

    name = "plackett_luce"
    title = "Plackett-Luce"

    def ranking_loss(self, scores: Tensor, ranks: Tensor) -> Tensor:
        """-log P(order), tied entries averaged over their orders.

        Raises:
            UserError: if ties leave more than MOST_ORDERS orders.
        """
        tied = [(ranks == rank).nonzero().flatten().tolist() for rank in ranks.unique()]
        if prod(factorial(len(group)) for group in tied) > MOST_ORDERS:
            raise UserError(
                f"a ranking of {len(ranks)} has so many ties that {MOST_ORDERS} orders are not enough. "
                "Set reward.loss to ranking_pairs."
            )
        orders = [[i for group in order for i in group] for order in product(*(permutations(group) for group in tied))]
        return plackett_luce(scores[torch.tensor(orders, device=scores.device)]).mean()


@dataclass(frozen=True, kw_only=True)
class BestOfNChoice(Ranking):
    """The likelihood that the best is chosen of N; ranks below it are not looked at. Luce 1959."""

    name = "best_of_n"
    title = "Best of N"

    def ranking_loss(self, scores: Tensor, ranks: Tensor) -> Tensor:
        """logsumexp_j r_j - r_best; several best ones are averaged."""
        best = (ranks == ranks.min()).nonzero().flatten().tolist()
        return torch.stack([best_of(scores, index) for index in best]).mean()
