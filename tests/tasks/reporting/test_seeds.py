"""Figures over seeds: which runs count as seeds of one experiment, means and t-intervals worked by hand."""

from dataclasses import dataclass, field

import pytest

from tasks.files import paths
from tasks.reporting.seeds import code_and_data, estimate, estimates, same_but_seed, table


@dataclass(frozen=True)
class Run:
    name: str
    params: dict[str, str]
    code_and_data: str = "c1"
    metrics: dict[str, float] = field(default_factory=dict)


def run(name: str, seed: int, code: str = "c1", **params: str) -> Run:
    return Run(name, {"run.seed": str(seed), "run.parallel": "2", "policy.dpo.beta": "0.1", **params}, code)


def test_mean_and_interval_of_three_seeds_by_hand() -> None:
    """1, 2, 3: mean 2, s = √((1 + 0 + 1)/2) = 1, t_{0.975, 2} = 4.30265, so ± 4.30265/√3 = 2.48414."""
    found = estimate({2: 3.0, 0: 1.0, 1: 2.0})
    assert (found.mean, list(found.values)) == (2, [0, 1, 2])
    assert found.interval == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert (found.text(), found.each()) == ("2.00 (−0.484 to 4.48)", "0: 1.00, 1: 2.00, 2: 3.00")


def test_interval_of_two_seeds_by_hand() -> None:
    """0.5 and 0.7: s = √(2 × 0.1²) = 0.141421, s/√2 = 0.1, t_{0.975, 1} = 12.7062; it may exceed [0, 1]."""
    assert estimate({0: 0.5, 1: 0.7}).interval == pytest.approx((0.6 - 1.27062, 0.6 + 1.27062), abs=1e-5)


def test_one_seed_has_no_interval() -> None:
    only = estimate({3: 0.625})
    assert (only.mean, only.interval, only.text(".3f")) == (0.625, None, "0.625")


def test_policies_are_ranked_by_their_mean_win_rate() -> None:
    """DPO: (0.5 + 0.5)/2. PPO: (0.75 + 0.5)/2. A figure that one seed lacks is left out, as is an unjudged policy."""
    first = {"win_rate_vs_sft/dpo": 0.5, "win_rate_vs_sft/ppo": 0.75, "win_rate_vs_sft/ppo_low": 0.7, "kl/ppo": 1.0}
    second = {
        "win_rate_vs_sft/dpo": 0.5,
        "win_rate_vs_sft/ppo": 0.5,
        "kl/ppo": 3.0,
        "mean_length/ppo": 9.0,
        "kl/x": 1.0,
    }
    found = estimates({0: first, 1: second})
    assert {name: list(row) for name, row in found.items()} == {
        "ppo": ["win_rate_vs_sft", "kl"],
        "dpo": ["win_rate_vs_sft"],
    }
    assert (found["ppo"]["win_rate_vs_sft"].mean, found["ppo"]["kl"].mean) == (0.625, 2.0)
    headings, ppo, dpo = table({0: first, 1: second})
    assert headings == ["policy", "win rate vs SFT", "KL", "length", "win rate of each seed"]
    assert ppo[0] == "ppo" and ppo[3:] == ["–", "0: 0.750, 1: 0.500"]
    assert dpo == ["dpo", "0.500 (0.500 to 0.500)", "–", "–", "0: 0.500, 1: 0.500"]


def test_runs_that_differ_only_in_the_seed_belong_together() -> None:
    """run.parallel changes no result. Other parameters, other code, and runs without that record are apart."""
    runs = [
        run("s1", 1),
        run("s0", 0, **{"run.parallel": "3"}),
        run("s0 earlier", 0),
        run("other beta 0", 0, **{"policy.dpo.beta": "0.2"}),
        run("other code 1", 1, "c2"),
        run("old 0", 0, ""),
        run("old 1", 1, ""),
    ]
    groups = [{seed: item.name for seed, item in group.items()} for group in same_but_seed(runs)]
    assert groups == [{0: "s0", 1: "s1"}]
    assert [list(group) for group in same_but_seed([run("b", 10), run("a", 9)])] == [[9, 10]]  # as numbers


def test_code_and_data_leave_out_what_depends_on_the_seed() -> None:
    def report(**inputs: str) -> dict[str, object]:
        read = {"rlhf_core/maths": "m1", "my/rows.jsonl": "d1", str(paths.PREPARED): "p1", "models/policies/ppo": "w1"}
        return {"sources": {"stages": {"prepare": {"inputs": read | inputs}, "report": {"inputs": {}}}}}

    same = code_and_data(report())
    assert same == code_and_data(report(**{str(paths.PREPARED): "p2", "models/policies/ppo": "w2"}))
    assert same != code_and_data(report(**{"rlhf_core/maths": "m2"}))
    assert same != code_and_data(report(**{"my/rows.jsonl": "d2"}))
    assert code_and_data({}) == ""
