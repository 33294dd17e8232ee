"""Agreement of verdicts with the gold rubric."""

from dataclasses import replace

from rlhf_core.feedback.judgement import Judgement
from tasks.params.load import load_params
from tasks.problems.table import problem_of
from tasks.stages.collect import _agreement_with_gold
from tools.closure import ROOT

PROMPT = [{"role": "user", "content": "Emma writes about an oven: it has not arrived. I am really annoyed."}]
GOOD = "Dear Emma, I am sorry that your oven has not arrived. Our driver will call you today."


def test_ties_of_verdict_or_gold_are_left_out():
    """Gold prefers the good reply to none. Right, wrong, a tie, and two equal replies: one of two."""
    gold = problem_of("helpdesk").gold(load_params(ROOT / "params.yaml").prepare)
    right = Judgement("side_by_side", PROMPT, [GOOD, ""], [None, None], "A", "a", "", 0)
    tie = replace(right, choice="tie")
    verdicts = [right, replace(right, choice="B"), tie, replace(right, responses=[GOOD, GOOD])]
    assert _agreement_with_gold(verdicts, gold) == 0.5
    assert _agreement_with_gold([right, tie], gold) == 1.0
    assert _agreement_with_gold([tie], gold) is None
