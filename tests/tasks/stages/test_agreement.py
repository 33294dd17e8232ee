"""Agreement of verdicts with the gold rubric."""

from dataclasses import replace

from helpdesk.world import World
from rlhf_core.feedback.judgements import Judgement
from tasks.stages.collect import _agreement_with_gold

PROMPT = [{"role": "user", "content": "Emma writes about an oven: it has not arrived. I am really annoyed."}]
GOOD = "Dear Emma, I am sorry that your oven has not arrived. Our driver will call you today."


def test_ties_of_verdict_or_gold_are_left_out():
    """Gold prefers the good reply to none. Right, wrong, a tie, and two equal replies: one of two."""
    world = World.load()
    right = Judgement("side_by_side", PROMPT, [GOOD, ""], [None, None], "A", "a", "", 0)
    tie = replace(right, choice="tie")
    verdicts = [right, replace(right, choice="B"), tie, replace(right, responses=[GOOD, GOOD])]
    assert _agreement_with_gold(verdicts, world) == 0.5
    assert _agreement_with_gold([right, tie], world) == 1.0
    assert _agreement_with_gold([tie], world) is None
