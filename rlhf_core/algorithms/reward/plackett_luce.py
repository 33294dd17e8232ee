"""Plackett-Luce reward model: the likelihood of a whole ranking. Plackett 1975; Luce 1959.

L = Σ_k [logsumexp_{j>=k} r_(j) - r_(k)], best first; tied responses are averaged over their orders.
"""

from dataclasses import dataclass
from itertools import permutations, product
from math import factorial, prod

from rlhf_core.algorithms.base.rankings import RankingLoss
from rlhf_core.common.errors import UserError
from rlhf_core.common.lazy import Tensor, torch
from rlhf_core.maths.losses import plackett_luce

MOST_ORDERS = 5040  # orders of tied responses that one ranking is averaged over


@dataclass(frozen=True, kw_only=True)
class PlackettLuce(RankingLoss):
    """-log P(order)."""

    name = "plackett_luce"
    title = "Plackett-Luce"

    def ranking_loss(self, scores: Tensor, ranks: Tensor) -> Tensor:
        """-log P(order), (K,), (K,) -> ().

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
