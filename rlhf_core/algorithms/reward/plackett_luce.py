"""Plackett-Luce reward model, fitted by the likelihood of a whole ranking. Plackett 1975; Luce 1959.

L = Σ_k [logsumexp_{j>=k} r_(j) - r_(k)], best first. With ties, the loss is the mean over all orders of the tied
responses.
"""

from dataclasses import dataclass
from itertools import permutations, product
from math import factorial, prod

from rlhf_core.algorithms.base.rankings import RankingLoss
from rlhf_core.common.errors import UserError
from rlhf_core.common.lazy import Tensor, torch
from rlhf_core.maths.losses import plackett_luce

MOST_ORDERS = 5040  # largest number of orders in the mean of one ranking


@dataclass(frozen=True, kw_only=True)
class PlackettLuce(RankingLoss):
    """The loss -log P(order)."""

    name = "plackett_luce"
    title = "Plackett-Luce"

    def ranking_loss(self, scores: Tensor, ranks: Tensor) -> Tensor:
        """-log P(order), (K,), (K,) -> ().

        Raises:
            UserError: the ties allow more than MOST_ORDERS orders.
        """
        tied = [(ranks == rank).nonzero().flatten().tolist() for rank in ranks.unique()]
        if prod(factorial(len(group)) for group in tied) > MOST_ORDERS:
            raise UserError(
                f"a ranking of {len(ranks)} responses has too many ties: more than {MOST_ORDERS} orders. "
                "Set reward.loss to ranking_pairs."
            )
        orders = [[i for group in order for i in group] for order in product(*(permutations(group) for group in tied))]
        return plackett_luce(scores[torch.tensor(orders, device=scores.device)]).mean()
