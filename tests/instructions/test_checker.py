"""Strict and loose checks, the guard, the score and the figures, worked by hand."""

import pytest

from instructions.checker import Task, content_words, fluency_limit, is_degenerate, stem, variants
from instructions.figures import accuracies
from instructions.table import make_constraint
from instructions.text import distinct_2, sentences, words

ANSWER = "Bake the loaf in a very hot oven today."  # 9 words


def task(*constraints, about=("baking bread", "oven"), group=""):
    return Task(tuple(make_constraint(id, values, "") for id, values in constraints), tuple(about), group)


NO_COMMA, LOWER = ("punctuation:no_comma", None), ("change_case:english_lowercase", None)


def test_words_and_sentences():
    assert words("It's 3.50, e-mail me!") == ["It", "s", "3", "50", "e", "mail", "me"]
    assert sentences("One. Two!\nThree") == ["One.", "Two!", "Three"]
    assert sentences('He said "No." Then 2.5 km, e.g. home.') == ['He said "No."', "Then 2.5 km, e.g. home."]
    assert sentences("...") == [] and sentences("- a\n- b\n") == ["- a", "- b"]


def test_distinct_pairs():
    """a b, b a, a b: two of three are different."""
    assert distinct_2("a b A b") == pytest.approx(2 / 3)
    assert distinct_2("a") == distinct_2("") == 1


def test_an_empty_response_meets_nothing():
    assert task(NO_COMMA).strict(" \n") == [False]
    assert task(NO_COMMA).loose("") == [False]
    assert task(NO_COMMA, LOWER).strict("One word") == [True, False]


def test_the_eight_variants():
    assert variants("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]
    assert variants("a") == ["a", "", "", ""] * 2


@pytest.mark.parametrize(
    "response", ["Sure:\nall small", "all small\nBye", "Sure:\nall small\nBye", "all small", "Sure:\nall small*"]
)
def test_loose_ignores_first_and_last_lines(response):
    assert task(LOWER).loose(response) == [True]
    assert task(LOWER).strict(response) == [response == "all small"]


def test_loose_removes_asterisks():
    ends = ("startend:end_checker", {"end_phrase": "Bye."})
    assert (task(ends).strict("**Bye.**"), task(ends).loose("**Bye.**")) == ([False], [True])
    assert task(LOWER).loose("Sure:\nNo") == [False]


def test_each_constraint_may_be_met_by_another_variant():
    """IFEval compares each constraint with all variants, not one variant with all constraints."""
    bullets = ("detectable_format:number_bullet_lists", {"num_bullets": 1})
    assert task(bullets, LOWER).loose("Sure\n* a") == [True, True]


@pytest.mark.parametrize(
    "response",
    [
        ANSWER,
        "one two three four five six seven bread",  # 8 words
        '{"tip": "Bake it in a hot oven today."}',
        "BAKED GOODS NEED A HOT PLACE AND TIME",  # baked is baking
        "* Heat the oven well\n* Bake it for an hour",
        "Heat the oven first. " * 2 + "Then wait.",
    ],
)
def test_answers_pass_the_guard(response):
    assert task(NO_COMMA).is_answer(response)


@pytest.mark.parametrize(
    "response",
    [
        "Bake the loaf in a hot oven.",  # 7 words
        "Walk the dog in the park every single day.",
        "oven oven oven oven oven oven oven oven oven",
        "bake bread bake bread bake bread bake bread bake",
        "",
    ],
)
def test_other_texts_do_not(response):
    assert not task(NO_COMMA).is_answer(response)


def test_half_of_the_pairs_must_be_different():
    """Five words twice have nine pairs, of which five are different; four words three times have 4 of 11."""
    assert not is_degenerate("a b c d e " * 2)
    assert is_degenerate("a b c d " * 3)
    assert not is_degenerate("a b a")  # two of two
    assert not is_degenerate("a a a b a b c")  # 6 pairs: aa aa ab ba ab bc; 4 different


def test_content_words():
    assert content_words(["What can you say about the old oven?"]) == {"say", "old", "oven"}
    assert [stem(word) for word in ("swimming", "swim", "bakes", "baking", "tea", "berries", "string", "kiss")] == [
        "swim", "swim", "bak", "bak", "tea", "berr"[:-1], "string"[:3], "kiss"[:3],
    ]  # fmt: skip


def test_a_prompt_without_content_words_accepts_any_topic():
    assert task(NO_COMMA, about=("a b",)).is_answer("one two three four five six seven eight")


def test_the_score_is_the_share_met_and_0_without_an_answer():
    both = task(NO_COMMA, LOWER)
    assert (both.score(ANSWER), both.fraction(ANSWER)) == (0.5, 0.5)
    assert (both.score(ANSWER.lower()), both.score("short")) == (1.0, 0.0)
    assert both.fraction("short") == 1.0


def test_the_fluency_limit():
    """0, 1, ..., 99: the 95th percentile is 95, three times that is 285."""
    assert fluency_limit([float(n) for n in reversed(range(100))]) == 285
    assert fluency_limit([2.0]) == 6


def test_figures_with_and_without_the_guard():
    """Trained: [both], [one of two], [both but short]; held out: [one of one, not fluent]."""
    pair = task(NO_COMMA, LOWER, group="trained")
    tasks = [pair, pair, pair, task(NO_COMMA, group="held_out_types")]
    texts = [ANSWER.lower(), ANSWER, "short", ANSWER]
    found = accuracies(tasks, texts, [True, True, True, False])
    values = {name: (sum(met), sum(asked)) for name, (met, asked) in found.items()}
    assert values == {
        "trained/answers": (2, 3),
        "trained/prompt_level_strict_acc": (2, 3),
        "trained/inst_level_strict_acc": (5, 6),
        "trained/prompt_level_loose_acc": (2, 3),
        "trained/inst_level_loose_acc": (5, 6),
        "trained/guarded_prompt_level_strict_acc": (1, 3),
        "trained/guarded_inst_level_strict_acc": (3, 6),
        "trained/guarded_prompt_level_loose_acc": (1, 3),
        "trained/guarded_inst_level_loose_acc": (3, 6),
        "held_out_types/answers": (0, 1),
        "held_out_types/prompt_level_strict_acc": (1, 1),
        "held_out_types/inst_level_strict_acc": (1, 1),
        "held_out_types/prompt_level_loose_acc": (1, 1),
        "held_out_types/inst_level_loose_acc": (1, 1),
        "held_out_types/guarded_prompt_level_strict_acc": (0, 1),
        "held_out_types/guarded_inst_level_strict_acc": (0, 1),
        "held_out_types/guarded_prompt_level_loose_acc": (0, 1),
        "held_out_types/guarded_inst_level_loose_acc": (0, 1),
    }
    assert all(len(met) == len(asked) == 4 for met, asked in found.values())


def test_loose_figures_count_the_variants():
    found = accuracies([task(LOWER, group="g")], [f"Sure:\n{ANSWER.lower()}"], [True])
    assert (found["g/prompt_level_strict_acc"], found["g/prompt_level_loose_acc"]) == (([0.0], [1.0]), ([1.0], [1.0]))
