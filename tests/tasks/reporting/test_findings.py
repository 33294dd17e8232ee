"""The report's first sentences: when it says learned, better and best, at the limits of each rule."""

import math

import pytest

from tasks.reporting.findings import accuracy_interval, did_not_move, is_at_chance, ranked, summary, title

FINE = {"accuracy": 0.66, "log_loss": 0.62, "log_loss_se": 0.02, "held_out_pairs": 560}
COIN = {"accuracy": 0.51, "log_loss": 0.6925, "log_loss_se": 0.004, "held_out_pairs": 560}
RIGHT = (
    "The reward model is right on 66.0 % of 560 held-out pairs; the verdicts it learned from agree with gold on 78.0 %."
)


def judged(value, low, high, kl=4.0):
    rate = {"value": value, "low": low, "high": high, "n": 300, "judge": "gold rubric"}
    return {"win_rate_vs_sft": rate, "win_rate_vs_reference": rate | {"value": 0.7}, "kl": kl}


def said(policies, model=FINE, why=None, judge=None):
    models = {"reward_model": model, "no_reward_model": why, "judge_model": judge}
    return summary({"policies": policies, "feedback": {"agreement_with_gold": 0.78}} | models)


def test_the_best_wins_and_overlaps_with_none():
    """0.86 (0.82 to 0.90) and 0.79 (0.75 to 0.815)."""
    assert said({"ppo": judged(0.79, 0.75, 0.815), "dpo": judged(0.86, 0.82, 0.9)}) == [
        "DPO is the best policy: it wins 86.0 % of 300 held-out prompts against the SFT model "
        "(95 % interval 82.0 % to 90.0 %), judged by: gold rubric.",
        "The others: PPO 79.0 %; DPO wins 70.0 % against the reference responses.",
        RIGHT,
    ]


def test_a_policy_with_an_overlapping_interval_is_not_called_best():
    """The interval ends at 0.82, where the other begins."""
    first, second, _ = said({"ppo": judged(0.79, 0.75, 0.82), "dpo": judged(0.86, 0.82, 0.9)})
    assert first.startswith("DPO has the highest win rate: it wins 86.0 %")
    assert second.endswith("The interval of DPO overlaps with that of PPO: their order may be due to chance.")


def test_no_policy_is_called_better_whose_interval_includes_one_half():
    first, *_ = said({"a": judged(0.6, 0.5, 0.71), "b": judged(0.4, 0.3, 0.48)})
    assert first == (
        "No policy is shown to be better than the SFT model: A, with the highest win rate, wins 60.0 % of 300 held-out "
        "prompts against the SFT model (95 % interval 50.0 % to 71.0 %), judged by: gold rubric."
    )
    assert said({"a": judged(0.6, 0.501, 0.71), "b": judged(0.4, 0.3, 0.48)})[0].startswith("A is the best policy")


def test_a_lower_win_rate_with_a_narrower_interval_may_be_the_proven_one():
    """Many ties make an interval narrow: 0.55 (0.52 to 0.58) is above one half, 0.6 (0.49 to 0.71) includes it."""
    first, *_ = said({"a": judged(0.6, 0.49, 0.71), "b": judged(0.55, 0.52, 0.58)})
    assert first.startswith(
        "B is better than the SFT model; A, with the highest win rate, is not shown to be: it wins 60.0 %"
    )


def test_a_single_policy_is_better_or_not_but_never_best():
    first, second, _ = said({"dpo": judged(0.6, 0.55, 0.65)})
    assert first.startswith("DPO is better than the SFT model: it wins 60.0 % of 300")
    assert second == "It is the only policy that was judged; DPO wins 70.0 % against the reference responses."
    assert said({"dpo": judged(0.6, 0.5, 0.65)})[0].startswith("DPO is not shown to be better than the SFT model: it")


def test_if_no_policy_moved_the_report_says_so_first_and_calls_none_best():
    sentences = said({"a": judged(0.6, 0.55, 0.65, kl=0.0), "b": judged(0.52, 0.5, 0.54, kl=9e-4)})
    assert sentences == [
        "Nothing was learned: no policy has moved from the SFT model (KL below 0.001 nats per response).",
        "Win rates against the SFT model on 300 held-out prompts, judged by gold rubric: "
        "A 60.0 % (95 % interval 55.0 % to 65.0 %), B 52.0 % (95 % interval 50.0 % to 54.0 %).",
        RIGHT,
    ]
    assert said({"a": judged(0.6, 0.55, 0.65, kl=0.0)})[0] == (
        "Nothing was learned: A has not moved from the SFT model (KL below 0.001 nats per response)."
    )


def test_a_policy_that_did_not_move_is_not_the_best_one():
    policies = {"a": judged(0.62, 0.55, 0.69, kl=0.0), "b": judged(0.58, 0.52, 0.64)}
    first, second, third, _ = said(policies)
    assert first == "A has not moved from the SFT model (KL below 0.001 nats per response)."
    assert second.startswith("B is better than the SFT model: it wins 58.0 %")
    assert third.startswith("The others: A 62.0 %;")
    second = said(policies | {"c": judged(0.57, 0.5, 0.6)})[1]
    assert second.startswith("B has the highest win rate of those that moved: it wins 58.0 %")


@pytest.mark.parametrize(("kl", "still"), [(0.00099, True), (0.001, False), (None, False)])
def test_not_moving_is_a_kl_below_a_thousandth(kl, still):
    assert did_not_move({"kl": kl}) is still


def test_a_reward_model_that_learned_nothing_is_reported_first_and_no_policy_is_best():
    sentences = said({"ppo": judged(0.79, 0.75, 0.8), "dpo": judged(0.86, 0.82, 0.9)}, COIN)
    assert sentences == [
        "The reward model is not better than chance on 560 held-out pairs: log-loss 0.693 nats (chance: 0.693), "
        "accuracy 51.0 % (95 % interval 46.9 % to 55.1 %). Therefore no policy is called best.",
        "Win rates against the SFT model on 300 held-out prompts, judged by gold rubric: "
        "DPO 86.0 % (95 % interval 82.0 % to 90.0 %), PPO 79.0 % (95 % interval 75.0 % to 80.0 %).",
    ]
    assert not any("is the best" in sentence for sentence in sentences)


def test_a_judge_that_learned_nothing_is_reported_first_and_no_policy_is_best():
    first, second, third = said({"dpo": judged(0.86, 0.82, 0.9)}, judge=COIN)
    assert first.startswith(
        "The judge, a second reward model, is not better than chance on 560 held-out pairs: log-loss"
    )
    assert (second[:10], third) == ("Win rates ", RIGHT)
    assert said({"dpo": judged(0.86, 0.82, 0.9)}, judge=FINE)[0].startswith("DPO is better")


LN2 = math.log(2)


@pytest.mark.parametrize(
    ("changes", "at_chance"),
    [
        ({"log_loss": LN2 - 0.0401}, False),  # two standard errors are 0.04
        ({"log_loss": LN2 - 0.0399}, True),
        ({"log_loss": LN2 + 0.2}, True),
        ({"log_loss": LN2 - 0.00101, "log_loss_se": 1e-5}, False),  # a small difference, but a certain one
        ({"log_loss": LN2 - 0.00099, "log_loss_se": 1e-5}, True),
        ({"accuracy": 0.5417}, False),  # of 560 pairs: 0.5 + 1.96 · 0.5/√(560 + 1.96²) = 0.54127
        ({"accuracy": 0.5411}, True),
        ({"accuracy": 0.3}, True),
        ({"log_loss": None, "log_loss_se": None}, False),  # a loss that gives no probabilities
        ({"log_loss": None, "accuracy": 0.5411}, True),
    ],
)
def test_the_edges_of_being_at_chance(changes, at_chance):
    assert is_at_chance(FINE | changes) is at_chance


def test_accuracy_interval_by_hand():
    """Wilson for 8 of 10: (0.8 + 0.19208 ∓ 1.96 √(0.016 + 0.009604))/1.38416 = 0.49016, 0.94331."""
    assert accuracy_interval({"accuracy": 0.8, "held_out_pairs": 10}) == pytest.approx((0.49016, 0.94331), abs=1e-5)


def test_without_a_reward_model_the_reason_is_stated():
    assert said({"grpo": judged(0.6, 0.55, 0.65)}, None, "no preferences")[-1] == (
        "There is no reward model: no preferences."
    )


def test_policies_without_a_win_rate_come_last_and_are_not_compared():
    nothing = {"win_rate_vs_sft": None, "win_rate_vs_reference": None, "kl": None}
    policies = {"a": nothing, "b": judged(0.4, 0.3, 0.48), "c": judged(0.6, 0.55, 0.65)}
    assert list(ranked(policies)) == ["c", "b", "a"]
    assert said(policies)[0].startswith("C is the best policy")
    assert said({"a": nothing})[0] == "No policy was judged against the SFT model."


def test_titles():
    assert title(["dpo"]) == "DPO against the SFT model"
    assert title(["dpo", "best_of_n"]) == "DPO and Best of N against each other"
