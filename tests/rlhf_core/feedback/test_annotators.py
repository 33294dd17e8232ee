"""The simulated panel and its records, with numbers worked by hand."""

import json
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from helpdesk.generate import DEMONSTRATOR, split_cases, write_reply
from helpdesk.rubric import GOLD_WEIGHTS, features, gold_score
from helpdesk.world import World
from rlhf_core.common.errors import UserError
from rlhf_core.feedback.judgement import Judgement
from rlhf_core.feedback.judgements import agreement, cyclic_triples, preferences, read_judgement
from rlhf_core.feedback.member import Member, judge
from rlhf_core.feedback.panel import panel

PLAIN = Member("ann", {"good": 1.0}, 0.0, 0.0, 0.0, 1.0, 0.0)
PROMPT = [{"role": "user", "content": "Hello?"}]
GOOD, BAD = {"good": 1.0}, {"good": 0.0}


def scripted(*numbers):
    """A generator that returns these numbers."""
    numbers = iter(numbers)
    return SimpleNamespace(random=lambda: next(numbers))


def verdict(annotator, chance, flip=0.99, a=GOOD, b=BAD, length_a=0, length_b=0):
    return judge(annotator, a, b, length_a, length_b, scripted(chance, flip))


def judgement(choice, first="x", second="y", annotator="ann", prompt=PROMPT, order=0):
    return Judgement("side_by_side", prompt, [first, second], [None, [5, 2]], choice, annotator, "key", order)


# --- one verdict ---


def test_bradley_terry_threshold():
    """d = 1 - 0, P(A) = σ(1) = 0.731059: a draw below it gives A, a draw above it B."""
    assert verdict(PLAIN, 0.7310) == "A"
    assert verdict(PLAIN, 0.7311) == "B"


def test_scale_sharpens():
    """σ(2 x 1) = 0.880797."""
    sharp = replace(PLAIN, scale=2.0)
    assert (verdict(sharp, 0.8807), verdict(sharp, 0.8808)) == ("A", "B")


def test_length_liking_is_per_ten_units():
    """d = 1 + 0.2 x (30 - 10) / 10 = 1.4, σ(1.4) = 0.802184."""
    wordy = replace(PLAIN, length_liking=0.2)
    assert verdict(wordy, 0.8021, length_a=30, length_b=10) == "A"
    assert verdict(wordy, 0.8022, length_a=30, length_b=10) == "B"


def test_position_bias_favours_what_is_shown_first():
    """Equal responses: d = 0.5 and σ(0.5) = 0.622459 for both orders."""
    biased = replace(PLAIN, position_bias=0.5)
    assert (verdict(biased, 0.6224, b=GOOD), verdict(biased, 0.6225, b=GOOD)) == ("A", "B")


def test_tie_band():
    """d = 1, band 0.5: P(A) = σ(0.5) = 0.622459, P(B) = σ(-1.5) = 0.182426, so draws from 0.817574 give B."""
    unsure = replace(PLAIN, tie_band=0.5)
    assert [verdict(unsure, u) for u in (0.6224, 0.6225, 0.8175, 0.8176)] == ["A", "tie", "tie", "B"]


def test_flips_change_verdicts_but_not_ties():
    erring = replace(PLAIN, flip_probability=0.1, tie_band=0.5)
    assert [verdict(erring, 0.3, flip) for flip in (0.0999, 0.1)] == ["B", "A"]
    assert [verdict(erring, 0.9, flip) for flip in (0.0999, 0.1)] == ["A", "B"]
    assert verdict(erring, 0.7, 0.0) == "tie"


def test_huge_differences_do_not_overflow():
    certain = replace(PLAIN, scale=1e6)
    assert verdict(certain, 0.999999) == "A"
    assert verdict(certain, 0.000001, a=BAD, b=GOOD) == "B"


def test_frequencies_match_the_formula():
    """P(A) = 0.9 σ(0.5) + 0.1 σ(-1.5) = 0.578456; 20,000 draws have a standard error of 0.0035."""
    annotator = replace(PLAIN, flip_probability=0.1, tie_band=0.5)
    rng = random.Random(0)
    share = sum(judge(annotator, GOOD, BAD, 0, 0, rng) == "A" for _ in range(20_000)) / 20_000
    assert share == pytest.approx(0.578456, abs=0.014)


# --- the panel ---


def test_panel_is_deterministic_and_a_larger_panel_only_adds_members():
    assert panel(GOLD_WEIGHTS, 5, 3) == panel(GOLD_WEIGHTS, 5, 3)
    assert panel(GOLD_WEIGHTS, 2, 3) == panel(GOLD_WEIGHTS, 5, 3)[:2]
    assert panel(GOLD_WEIGHTS, 5, 3) != panel(GOLD_WEIGHTS, 5, 4)
    assert len({annotator.id for annotator in panel(GOLD_WEIGHTS, 12, 3)}) == 12


def test_panel_shares_the_direction_of_every_weight():
    for annotator in panel(GOLD_WEIGHTS, 20, 0):
        assert all(annotator.weights[key] * weight > 0 for key, weight in GOLD_WEIGHTS.items())
        assert 0 <= annotator.flip_probability <= 0.1


def test_panel_without_taste_is_the_gold_reward():
    (annotator,) = panel(GOLD_WEIGHTS, 1, 0, taste=0, length_liking=0, position_bias=0, max_flip_probability=0)
    assert annotator.weights == GOLD_WEIGHTS
    assert (annotator.length_liking, annotator.position_bias, annotator.flip_probability) == (0, 0, 0)


def test_taste_is_lognormal():
    """log(weight / gold) has standard deviation 0.3; 200 x 13 draws have standard error 0.3 / sqrt(5200) = 0.004."""
    logs = [
        math.log(annotator.weights[key] / weight)
        for annotator in panel(GOLD_WEIGHTS, 200, 0)
        for key, weight in GOLD_WEIGHTS.items()
    ]
    assert math.sqrt(sum(x * x for x in logs) / len(logs)) == pytest.approx(0.3, abs=0.015)


def test_empty_panel_is_refused():
    with pytest.raises(UserError, match="0 annotators"):
        panel(GOLD_WEIGHTS, 0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_an_annotator_agrees_with_gold_on_about_80_percent_of_pairs(seed):
    """Pairs of replies like the demonstrations; ties, and pairs with equal gold rewards, are excluded."""
    world, rng, annotators = World.load(), random.Random(seed), panel(GOLD_WEIGHTS, 40, seed)
    hits = total = 0
    for case in split_cases(world, seed)["train"][:3000]:
        prompt = world.prompt(case)
        a, b = (write_reply(world, case, DEMONSTRATOR, rng) for _ in range(2))
        seen = [features(world, prompt, text) for text in (a, b)]
        choice = judge(rng.choice(annotators), *seen, len(a.split()), len(b.split()), rng)
        gold = gold_score(world, prompt, a) - gold_score(world, prompt, b)
        if choice != "tie" and abs(gold) > 1e-9:
            total += 1
            hits += (choice == "A") == (gold > 0)
    assert 0.77 <= hits / total <= 0.83


# --- records ---


def test_record_survives_json():
    record = judgement("A", order=4)
    assert read_judgement(json.loads(json.dumps(record.to_row()))) == record


def test_record_without_a_field_or_with_a_wrong_choice_is_refused():
    row = judgement("A").to_row()
    with pytest.raises(UserError, match="line 3 has no 'annotator'"):
        read_judgement({key: row[key] for key in row if key != "annotator"}, "judgements.jsonl line 3")
    with pytest.raises(UserError, match="line 3: side_by_side needs two responses"):
        read_judgement(row | {"choice": "C"}, "judgements.jsonl line 3")
    with pytest.raises(UserError, match="two responses"):
        read_judgement(row | {"responses": ["x"]})


def test_preferences_of_verdicts():
    rows, counts = preferences([judgement("A"), judgement("B"), judgement("tie"), judgement("A", "same", "same")])
    assert rows == [
        {"prompt": PROMPT, "chosen": "x", "rejected": "y"},
        {"prompt": PROMPT, "chosen": "y", "rejected": "x"},
    ]
    assert counts == {"pairs": 2, "ties": 1, "identical": 1}
    kept, same = preferences([judgement("A"), judgement("tie")], keep_ties=True)
    assert kept == [rows[0], rows[0] | {"label": 0.5}]
    assert same == {"pairs": 1, "ties": 1, "identical": 0}


def test_agreement():
    """x against y: ann and bob prefer x (bob saw them swapped), eve prefers y: 1 of 3 comparisons agrees.

    Ties are not compared. Ann's second verdict is compared with bob's (equal) and eve's (not equal): 2 of 5.
    """
    verdicts = [judgement("A"), judgement("B", "y", "x", "bob"), judgement("B", annotator="eve")]
    assert agreement(verdicts) == pytest.approx(1 / 3)
    assert agreement([*verdicts, judgement("tie", annotator="tom"), judgement("A")]) == pytest.approx(2 / 5)


def test_agreement_needs_two_annotators_on_one_pair():
    other = [{"role": "user", "content": "Another?"}]
    assert agreement([]) is None
    assert agreement([judgement("A"), judgement("A")]) is None
    assert agreement([judgement("A"), judgement("A", annotator="bob", prompt=other)]) is None


def test_cyclic_triples():
    """x > y > z > x is a cycle in either order of presentation; with x > z there is no cycle."""
    line = [judgement("A", "x", "y"), judgement("B", "z", "y")]
    assert cyclic_triples([*line, judgement("A", "z", "x")]) == 1
    assert cyclic_triples([*line, judgement("B", "z", "x")]) == 0
    assert cyclic_triples([*line, judgement("tie", "z", "x")]) == 0
    assert cyclic_triples(line) is None


def test_cyclic_triples_take_the_majority_and_count_per_prompt():
    """Prompt 1: one cycle, although one of three verdicts on (x, y) is opposite. Prompt 2: no cycle. So 1/2.

    With a fourth response w that wins all pairs of prompt 1, there are 4 triples and still one cycle there: 1/5.
    """
    other = [{"role": "user", "content": "Another?"}]
    first = [judgement(choice, "x", "y", who) for choice, who in (("A", "ann"), ("B", "bob"), ("A", "eve"))]
    first += [judgement("A", "y", "z"), judgement("A", "z", "x")]
    second = [judgement("A", a, b, prompt=other) for a, b in (("x", "y"), ("y", "z"), ("x", "z"))]
    assert cyclic_triples(first + second) == pytest.approx(1 / 2)
    assert cyclic_triples(first + second + [judgement("A", "w", text) for text in "xyz"]) == pytest.approx(1 / 5)
