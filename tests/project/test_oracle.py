"""A subset of the oracle suite; `make oracle` runs all of it and writes docs/proof.md."""

import math
import re

import pytest
import torch
from oracle.exact import make_training, orders
from oracle.formulas import each_state, expected_advantage, reversed_kl, standardised, tilted, whole_responses
from oracle.gradients import METHODS, compare_baselines, enumerated_gradient, largest_z, variance_by_baseline
from oracle.methods import EXACT, PLACES, distance
from oracle.page import Evidence, render, trust_region
from oracle.problem import PROBLEM, all_pairs, kl
from oracle.reward_models import MODELS
from oracle.reward_models import orders as ranked
from oracle.tabular import Table

from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.rloo import RLOO
from rlhf_core.algorithms.trpo import TRPO
from tools.closure import ROOT


def test_the_problem_is_enumerated():
    """2 tokens and an end token, up to 3 steps: 1 + 2 + 4 responses end and 8 are cut off. Probabilities sum to 1."""
    assert len(PROBLEM.responses()) == 15
    torch.testing.assert_close(PROBLEM.logprobs(PROBLEM.reference()).exp().sum(-1), torch.ones(2).double())
    table = Table(PROBLEM)
    torch.testing.assert_close(table.logprobs(table.reference), PROBLEM.logprobs(PROBLEM.reference()))


def test_every_wrong_optimum_is_far_from_the_right_one():
    """At least 0.05 nats, so that a method that ends at one of them cannot pass."""
    optimum = PROBLEM.optimum()
    assert kl(whole_responses(PROBLEM, tilted), optimum) == pytest.approx(0, abs=1e-12)
    assert kl(PROBLEM.logprobs(PROBLEM.reference()), optimum) > 0.05  # nothing learned
    for wrong in (each_state(PROBLEM, tilted), each_state(PROBLEM, reversed_kl), whole_responses(PROBLEM, reversed_kl)):
        assert kl(wrong, optimum) > 0.05
    assert kl(standardised(PROBLEM, 2, 1e-4, fixed_point=300), optimum) > 0.05


def test_reversed_kl_by_hand():
    """π_ref = ½, ½, Q = 0, 1, β = 1: ½/λ + ½/(λ−1) = 1 gives λ² − 2λ + ½ = 0, so λ = 1 + √½ and π = ½/λ = 0.2929."""
    found = reversed_kl(torch.tensor([0.5, 0.5]).double(), torch.tensor([0.0, 1.0]).double(), 1.0)
    assert found[0].item() == pytest.approx(0.5 / (1 + math.sqrt(0.5)))


def test_expected_advantage_by_hand():
    """Two responses, r = 0 and 1, π = ¼, ¾, G = 2, ε = 0: against the other ∓1, against itself 0: −¾ and ¼."""
    found = expected_advantage(torch.tensor([0.25, 0.75]).double(), torch.tensor([0.0, 1.0]).double(), 2, 0.0)
    assert found.tolist() == pytest.approx([-0.75, 0.25])


def test_groups_are_counted_by_their_orders():
    """3!/(2! 1!) = 3, 3!/3! = 1, 3! = 6; and 12 rankings of shares 1, 1, 2: 1, 2, 1, 2, 3, 3 of the six orders."""
    assert [orders(group) for group in ((0, 0, 1), (2, 2, 2), (0, 1, 2))] == [3, 1, 6]
    assert len(ranked(whole=True)) == 2 * 12


@pytest.mark.parametrize("name", ["REINFORCE, Ψ = Â, λ = 0.95", "DPO, all pairs, exact labels"])
def test_methods_reach_the_optimum(name):
    case = next(case for case in EXACT if case.name == name)
    to_target, to_optimum = distance(case, case.run())
    assert to_target == to_optimum < case.bound


def test_k3_in_the_loss_ends_at_its_formula_and_not_at_the_optimum():
    case = next(case for case in PLACES if case.name == "k3, per token")
    to_target, to_optimum = distance(case, case.run())
    assert to_target < case.bound
    assert to_optimum > 0.05


class UncheckedPPO(PPO):
    """PPO without the check that rejects k1 in the loss."""

    def check_kl(self):
        """Accept every setting."""


@pytest.mark.pitfall(17)
def test_k1_in_the_loss_has_no_expected_gradient():
    """k1 does not change the expected gradient of PPO's loss; k3 does."""
    settings = {"kl_in": "loss", "whiten_advantages": False}
    without, with_k1, with_k3 = (
        enumerated_gradient(UncheckedPPO(kl_coef=coef, kl_estimator=estimator, **settings))
        for coef, estimator in ((0.0, "k1"), (PROBLEM.beta, "k1"), (PROBLEM.beta, "k3"))
    )
    assert without.norm() > 0.1
    torch.testing.assert_close(with_k1, without, atol=1e-10, rtol=0)
    assert (with_k3 - without).norm() > 0.1


@pytest.mark.pitfall(17)
@pytest.mark.parametrize("name", ["RLOO, G = 2", "online DPO, soft labels"])
def test_sampled_gradients_agree_with_the_enumerated_one(name):
    assert largest_z(METHODS[name]) < 4


def test_importance_weights_remove_the_bias_of_another_sampler():
    """RLOO with samples of π^(1/1.5): without weights, or with C = 1, the expected gradient is another one."""
    own = enumerated_gradient(RLOO(group_size=2, kl_coef=PROBLEM.beta))
    caps = {"weighted": 1e9, "capped": 1.0, "without": None}
    found = {
        name: enumerated_gradient(RLOO(group_size=2, kl_coef=PROBLEM.beta, importance_cap=cap), sampler_temperature=1.5)
        for name, cap in caps.items()
    }
    torch.testing.assert_close(found["weighted"], own, atol=1e-6 * own.norm().item(), rtol=0)
    for name in ("capped", "without"):
        assert (found[name] - own).norm() > 0.05 * own.norm(), name


def test_what_baselines_do_to_the_gradient():
    """A baseline does not change it, a mean that includes the response scales it by 1 − 1/G, the std rotates it."""
    found = compare_baselines()
    for name in ("batch mean", "critic", "leave-one-out, G = 2"):
        assert found[name] == pytest.approx((1.0, 1.0), abs=1e-9)
    assert found["group mean, G = 2"] == pytest.approx((0.5, 1.0), abs=1e-9)
    assert found["group mean and std, G = 2"][1] < 0.99


def test_a_baseline_lowers_the_variance_between_0_and_twice_the_best():
    _, ratios = variance_by_baseline()
    for ratio, variance in ratios:
        if ratio in (0.0, 2.0):
            assert variance == pytest.approx(1.0)
        else:
            assert (variance < 1) == (0 < ratio < 2)


def test_the_page_has_the_text_of_its_generator():
    """Everything in docs/proof.md except its tables, with the figures in the text."""

    def prose(text):
        return "\n".join(line for line in text.splitlines() if line and not line.startswith("|"))

    written = (ROOT / "docs" / "proof.md").read_text(encoding="utf-8")
    best = float(re.search(r"E\[\|∇log π\|²\] = ([\d.]+)\.", written)[1])
    empty = Evidence(rows=[], gradients=[], baselines={}, variance=(best, []), recovered=[])
    assert prose(render(empty)) in prose(written)


def test_trpo_never_breaks_its_bounds():
    training = make_training(PROBLEM, TRPO(kl_coef=PROBLEM.beta, fisher_fraction=1.0), sampled=False, steps=20)
    gain, over, accepted, failed = trust_region(training.train())
    assert gain > 0
    assert over <= 0
    assert accepted + failed == 20
    assert accepted > 10


def test_the_table_of_reward_models_names_each_loss():
    assert {type(algorithm).__name__ for algorithm, *_ in MODELS.values()} == {
        "BradleyTerry",
        "Thurstone",
        "Likert",
        "RankingPairs",
        "PlackettLuce",
        "BestOfNChoice",
        "DPO",
    }
    assert all(0 < first.preference < 1 for first, _ in all_pairs(PROBLEM, torch.sigmoid))
