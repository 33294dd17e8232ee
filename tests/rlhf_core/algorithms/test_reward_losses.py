"""Losses of reward models and of the offline family, worked by hand."""

import math

import pytest
import torch

from rlhf_core.algorithms.base.rankings import ranked_pairs
from rlhf_core.algorithms.reward.best_of_n import BestOfNChoice
from rlhf_core.algorithms.reward.bradley_terry import BradleyTerry
from rlhf_core.algorithms.reward.likert import Likert
from rlhf_core.algorithms.reward.plackett_luce import PlackettLuce
from rlhf_core.algorithms.reward.ranking_pairs import RankingPairs
from rlhf_core.algorithms.reward.thurstone import Thurstone
from rlhf_core.common.batch import Example, Outputs, collate_units
from rlhf_core.common.errors import UserError
from rlhf_core.maths.losses import (
    best_of,
    bradley_terry,
    dpo,
    ipo,
    kto,
    plackett_luce,
    policy_gradient,
    smoothed,
    squared_error,
    surrogate,
    thurstone,
)
from tiny import END, PAD, USER


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(torch.as_tensor(found).double(), torch.tensor(expected).double(), atol=tolerance, rtol=0)


def units_of(**judged):
    """Units of rows of one token, of which what was judged is given by its name; ragged."""
    units = []
    for unit in zip(*judged.values(), strict=True):
        rows = [dict(zip(judged, row, strict=True)) for row in zip(*unit, strict=True)]
        units.append(tuple(Example([USER], [END], **row) for row in rows))
    return collate_units(units, PAD)


def loss_of(algorithm, scores, batch):
    outputs = Outputs.of(batch, scores=torch.tensor(scores))
    return algorithm.losses(outputs, batch), algorithm.weights(batch), algorithm.statistics(outputs, batch)


def test_bradley_terry_label_and_margin():
    """d = log 3: σ(d) = ¾. Label 1: -log ¾; 0: -log ¼; ½: their mean. A margin of log 3 takes d away: log 2.

    It is subtracted in both directions: σ(-2 log 3) = 1/10.
    """
    three = torch.tensor([math.log(3)])
    zero = torch.zeros(1)
    close(bradley_terry(three, zero), [math.log(4 / 3)])
    close(bradley_terry(three, zero, label=0.0), [math.log(4)])
    close(bradley_terry(three, zero, label=0.5), [(math.log(4 / 3) + math.log(4)) / 2])
    close(bradley_terry(three, zero, margin=math.log(3)), [math.log(2)])
    close(bradley_terry(three, zero, margin=math.log(3), label=0.0), [math.log(10)])


def test_smoothing():
    """ε = 0.1: 1 → 0.9, 0 → 0.1, ½ stays."""
    close(smoothed(torch.tensor([1.0, 0.0, 0.5]), 0.1), [0.9, 0.1, 0.5])


def test_thurstone():
    """Φ(0) = ½, Φ(1) = 0.841345; at -100 -log Φ is 100²/2 + log(100 √2π) to four digits; at 100 it is 0."""
    found = thurstone(torch.tensor([0.0, 1.0, -100.0, 100.0]).double(), torch.zeros(4).double())
    close(found[:2], [math.log(2), -math.log(0.8413447)], 1e-6)
    assert found[2].item() == pytest.approx(5000 + math.log(100 * math.sqrt(2 * math.pi)), abs=1e-3)
    assert found[3].item() == 0
    close(thurstone(torch.tensor([1.0]), torch.zeros(1), label=0.0), [-math.log(1 - 0.8413447)], 1e-5)


def test_plackett_luce_and_best_of():
    """exp(r) = 4, 2, 1, best first: 4/7 · 2/3 · 1. The second is the best with chance 2/7."""
    scores = torch.tensor([4.0, 2.0, 1.0]).log()
    close(plackett_luce(scores), -math.log(4 / 7 * 2 / 3))
    close(best_of(scores, 1), -math.log(2 / 7))


def test_plackett_luce_takes_many_orders_at_once():
    """1, 4 in this order: 1/5; 4, 1: 4/5."""
    close(plackett_luce(torch.tensor([[1.0, 4.0], [4.0, 1.0]]).log()), [math.log(5), math.log(5 / 4)])


def test_squared_error():
    close(squared_error(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0])), [0.25, 9.0])


def test_policy_gradient_and_surrogate():
    """-Ψ log π; and -ρ Â with ρ = 2."""
    close(policy_gradient(torch.tensor([-0.5]), torch.tensor([3.0])), [1.5])
    close(surrogate(torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)]), torch.tensor([3.0])), [-6.0])


def test_dpo_with_a_soft_label():
    """β = 2, log-ratios log 3 / 2 and 0: σ(log 3) = ¾. Label ¾: the entropy of ¾."""
    chosen, rejected = torch.tensor([math.log(3) / 2]), torch.zeros(1)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    close(dpo(chosen, rejected, 2.0, 0.75), [entropy])


def test_ipo():
    """τ = ¼, so 1/(2τ) = 2; h = 3: 1. Label 0: (-3 - 2)² = 25. ½: 13."""
    chosen, rejected = torch.tensor([2.0]), torch.tensor([-1.0])
    close(ipo(chosen, rejected, 0.25), [1.0])
    close(ipo(chosen, rejected, 0.25, 0.0), [25.0])
    close(ipo(chosen, rejected, 0.25, 0.5), [13.0])


def test_kto():
    """β = 1, z_0 = 1, r = 1 + log 3: good 1 - ¾, bad 1 - ¼."""
    logratios = torch.full((2,), 1 + math.log(3))
    close(kto(logratios, torch.ones(2), torch.tensor([1.0, 0.0]), 1.0), [0.25, 0.75])


def test_bradley_terry_margins_of_rows_and_the_constant():
    """Differences log 3; the first pair brings margin log 3, the second takes the constant 0: log 2, log 4/3."""
    batch = units_of(preference=[[1.0, 0.0], [1.0, 0.0]], margin=[[math.log(3)] * 2, [math.nan] * 2])
    losses, weights, statistics = loss_of(BradleyTerry(), [math.log(3), 0.0, math.log(3), 0.0], batch)
    close(losses, [math.log(2), math.log(4 / 3)])
    close(weights, [0.5, 0.5])
    close(statistics["accuracy"], [1.0, 1.0])
    losses, *_ = loss_of(BradleyTerry(margin=math.log(3)), [math.log(3), 0.0, math.log(3), 0.0], batch)
    close(losses, [math.log(2), math.log(2)])


def test_smoothing_reaches_both_losses_on_pairs():
    """ε = 0.1 and differences of 1 and log 3: Φ(1) = 0.841345, σ(log 3) = ¾."""
    batch = units_of(preference=[[1.0, 0.0]])
    losses, *_ = loss_of(Thurstone(label_smoothing=0.1), [1.0, 0.0], batch)
    close(losses, [-0.9 * math.log(0.841345) - 0.1 * math.log(0.158655)], 1e-5)
    losses, *_ = loss_of(BradleyTerry(label_smoothing=0.1), [math.log(3), 0.0], batch)
    close(losses, [0.9 * math.log(4 / 3) + 0.1 * math.log(4)])


def test_a_tie_is_half_right_whatever_the_scores():
    batch = units_of(preference=[[0.5, 0.5], [1.0, 0.0]])
    for algorithm in (BradleyTerry(), Thurstone()):
        losses, _, statistics = loss_of(algorithm, [1.0, -1.0, 2.0, 0.0], batch)
        close(statistics["accuracy"], [0.5, 1.0])
        close(statistics["margin"], [2.0, 2.0])
        assert losses[0] > losses[1]


def test_likert_weights_each_rating_alike():
    batch = units_of(rating=[[0.5], [-1.0]])
    losses, weights, _ = loss_of(Likert(), [1.0, -1.0], batch)
    close(losses, [0.25, 0.0])
    close(weights, [0.5, 0.5])


# exp(r): 4, 2, 1 ranked 1, 2, 3; and 1, 3 ranked 2, 1.
RAGGED = [[1.0, 2.0, 3.0], [2.0, 1.0]]
SCORES = torch.tensor([4.0, 2.0, 1.0, 1.0, 3.0]).log().tolist()


def test_ranked_pairs():
    """Ranks 2, 1, 2: the second beats the others; the tie of first and third counts only where ties do."""
    ranks = torch.tensor([2.0, 1.0, 2.0])
    assert ranked_pairs(ranks, ties=False) == ([1, 1], [0, 2])
    assert ranked_pairs(ranks, ties=True) == ([1, 0, 1], [0, 2, 2])


def test_all_pairs_of_ragged_rankings():
    """σ: 4 over 2 is 2/3, 4 over 1 is 4/5, 2 over 1 is 2/3, the mean of three; 3 over 1 is ¾. One ranking, one vote."""
    losses, weights, statistics = loss_of(RankingPairs(), SCORES, units_of(rank=RAGGED))
    close(losses, [-(2 * math.log(2 / 3) + math.log(4 / 5)) / 3, -math.log(3 / 4)])
    close(weights, [0.5, 0.5])
    close(statistics["accuracy"], [1.0, 1.0])


def test_plackett_luce_of_ragged_rankings():
    losses, *_ = loss_of(PlackettLuce(), SCORES, units_of(rank=RAGGED))
    close(losses, [-math.log(4 / 7 * 2 / 3), -math.log(3 / 4)])


def test_best_of_n_looks_at_the_best_alone():
    losses, *_ = loss_of(BestOfNChoice(), SCORES, units_of(rank=RAGGED))
    close(losses, [-math.log(4 / 7), -math.log(3 / 4)])


def test_ties_are_averaged_over_their_orders():
    """exp(r) = 4, 2, 1 with ranks 1, 2, 2: after 4/7 the orders 2, 1 (2/3) and 1, 2 (1/3), their mean log-loss."""
    batch, scores = units_of(rank=[[1.0, 2.0, 2.0]]), SCORES[:3]
    losses, *_ = loss_of(PlackettLuce(), scores, batch)
    close(losses, [-math.log(4 / 7) - (math.log(2 / 3) + math.log(1 / 3)) / 2])
    pairs, *_ = loss_of(RankingPairs(), scores, batch)
    tie = -(math.log(2 / 3) + math.log(1 / 3)) / 2
    close(pairs, [(-math.log(2 / 3) - math.log(4 / 5) + tie) / 3])


def test_a_ranking_of_ties_alone_ranks_nothing():
    _, _, statistics = loss_of(RankingPairs(), [1.0, 2.0], units_of(rank=[[1.0, 1.0]]))
    close(statistics["accuracy"], [0.5])


def test_too_many_orders_raise():
    """8! = 40,320 orders of eight tied entries."""
    with pytest.raises(UserError, match=r"a ranking of 8 has so many ties.*Set reward\.loss to ranking_pairs"):
        loss_of(PlackettLuce(), [0.0] * 8, units_of(rank=[[1.0] * 8]))


@pytest.mark.parametrize("algorithm", [BradleyTerry, Thurstone])
def test_smoothing_out_of_range_raises(algorithm):
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.5; it must be below 0\.5"):
        algorithm(label_smoothing=0.5)
