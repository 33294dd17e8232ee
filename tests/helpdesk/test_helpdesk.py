"""The help desk: its world file, the rows drawn from it, and the gold rubric on handwritten replies."""

import hashlib
import json
import random

import pytest

from helpdesk.generate import (
    DEMONSTRATOR,
    GOOD_AGENT,
    THREAD_AGENT,
    generate,
    split_cases,
    write_reply,
)
from helpdesk.rubric import GOLD_WEIGHTS, LIMITS, WORD_BUDGET, features, gold_score
from helpdesk.world import DEFAULT_WORLD, Case, World, article
from rlhf_core.common.errors import UserError

WORLD = World.load()
LATE_OVEN = "Emma writes about an oven: it has not arrived. I am really annoyed."
CALM_COAT = "Omar writes about a coat: it is too small. There is no hurry."
GOOD = (
    "Dear Emma, I am sorry that your oven has not arrived. Our driver will call you today. "
    "I will write to you again on Friday."
)


def text(row):
    return row["prompt"][0]["content"]


def combination(row):
    case = WORLD.read_prompt(text(row))
    return case.name, case.product, case.issue


def found(prompt, response):
    """The features that are not 0."""
    return {key: value for key, value in features(WORLD, prompt, response).items() if value}


# --- the world ---


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        *[(noun, "an") for noun in ("oven", "urn", "umbrella", "ottoman", "oboe", "apron", "hour")],
        *[(noun, "a") for noun in ("coat", "ukulele", "uniform", "unicycle", "house")],
    ],
)
def test_article(noun, expected):
    assert article(noun) == expected


def test_world_has_the_documented_size():
    assert len(WORLD.names) == 24
    assert len(WORLD.families) == 4
    assert len(WORLD.families_of) == 16
    assert (len(WORLD.issues), len(WORLD.moods), len(WORLD.fixes)) == (6, 3, 8)
    used = {fix for row in WORLD.right_fixes.values() for fix in row.values()}
    assert used == set(WORLD.fixes)
    # 6 issues x 16 products x (3 openers + 3 apologies + 2 grovelling), 8 fixes x 2, 4 + 4 + 4 other sentences
    assert len(WORLD.phrase_book) == 6 * 16 * 8 + 16 + 12


def test_prompt_is_read_back_as_its_case():
    case = Case("Emma", "oven", "late", "annoyed", "I am really annoyed.")
    assert WORLD.prompt(case) == LATE_OVEN
    assert WORLD.read_prompt(LATE_OVEN) == case
    assert WORLD.right_fix(case) == "driver"
    assert WORLD.right_fix(WORLD.read_prompt(CALM_COAT)) == "label"


def test_prompt_of_another_world_is_rejected():
    with pytest.raises(UserError, match="is not a help-desk prompt"):
        WORLD.read_prompt("Emma writes about a spaceship: it has not arrived. I am really annoyed.")


def _set(raw, path, value):
    *parents, last = path
    for key in parents:
        raw = raw[key]
    if value is None:
        del raw[last]
    else:
        raw[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["flattery"], None, "flattery is missing"),
        (["names"], [], "names must be a non-empty list"),
        (["names", 3], "Zo\u00eb", r"names\[3\] must be plain ASCII text"),
        (["names", 3], "Mary Ann", "names must contain only single words"),
        (["names", 3], "Emma", "names contains an entry twice"),
        (["issues"], [], "issues must be a non-empty table"),
        (["issues", "late", "trouble"], "it is late", "issues.late.trouble must contain {product} once"),
        (["issues", "late", "complaint"], "it is too small", "is ambiguous in a prompt"),
        (["moods", "calm", "needs_apology"], "no", "moods.calm.needs_apology must be true or false"),
        (["promises", 0], "This {never} ends.", r"promises\[0\] must not contain braces"),
        (["right_fixes", "late", "music"], None, "right_fixes.late.music is missing"),
        (["right_fixes", "late", "music"], "magic", "names 'magic', which is not in fixes"),
        (["families", "music", 0], "oven", "a product in two families"),
        (["promises", 0], "We will trace the parcel today.", "contain a sentence with two meanings"),
        (["promises", 0], "One. Two.", "must be one sentence"),
        (["fixes"], {"only": ["We help."]}, "must contain at least two"),
    ],
)
def test_bad_world_names_file_and_key(tmp_path, path, value, message):
    raw = json.loads(DEFAULT_WORLD.read_text())
    _set(raw, path, value)
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=message) as error:
        World.load(file)
    assert "bad.json" in str(error.value)


def test_missing_and_broken_world_file(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json cannot be read"):
        World.load(tmp_path / "gone.json")
    (tmp_path / "cut.json").write_text('{"names": ["Em')
    with pytest.raises(UserError, match=r"cut\.json is not JSON"):
        World.load(tmp_path / "cut.json")


# --- the rows ---


def _digest(desk):
    return hashlib.sha256(json.dumps(vars(desk), sort_keys=True).encode()).hexdigest()


def test_rows_depend_only_on_the_seed():
    assert _digest(generate(WORLD, 7)) == _digest(generate(World.load(), 7))
    assert _digest(generate(WORLD, 7)) != _digest(generate(WORLD, 8))


def test_lists_are_drawn_independently_and_prefixes_agree():
    large, small = generate(WORLD, 0), generate(WORLD, 0, threads=10, demonstrations=20)
    assert small.threads == large.threads[:10]
    assert small.demonstrations == large.demonstrations[:20]
    assert small.prompts_test == large.prompts_test


def test_lists_do_not_repeat_each_other():
    """With a shared stream, training prompts would equal the demonstrations' prompts, in the same order."""
    desk = generate(WORLD, 0, threads=200, demonstrations=200, prompts_train=200)
    threads, demonstrations, prompts = (
        {row["prompt"][0]["content"] for row in rows}
        for rows in (desk.threads, desk.demonstrations, desk.prompts_train)
    )
    for one, other in ((threads, demonstrations), (demonstrations, prompts)):
        assert len(one & other) < 20


def test_held_out_combinations_are_disjoint():
    """24 names x 16 products x 6 issues = 2304; a fifth is 461 (460.8 rounded): 230 development and 231 test."""
    cases = {
        part: {(case.name, case.product, case.issue) for case in members}
        for part, members in split_cases(WORLD, 0).items()
    }
    assert {part: len(members) for part, members in cases.items()} == {
        "development": 230,
        "test": 231,
        "train": 1843,
    }
    assert len(set.union(*cases.values())) == 2304
    desk = generate(WORLD, 0, prompts_development=1380, prompts_test=1386)
    seen = {combination(row) for row in desk.threads + desk.demonstrations + desk.prompts_train}
    assert seen <= cases["train"]
    assert {combination(row) for row in desk.prompts_development} == cases["development"]
    assert {combination(row) for row in desk.prompts_test} == cases["test"]


def test_prompts_within_a_list_differ():
    desk = generate(WORLD, 0)
    for rows in vars(desk).values():
        assert len({text(row) for row in rows}) == len(rows)


def test_rows_are_short_plain_and_of_the_documented_shape():
    desk = generate(WORLD, 0)
    assert {key: len(rows) for key, rows in vars(desk).items()} == {
        "threads": 6000,
        "demonstrations": 2000,
        "prompts_train": 2000,
        "prompts_development": 200,
        "prompts_test": 300,
    }
    for key, rows in vars(desk).items():
        for row in rows:
            assert row["prompt"] == [{"role": "user", "content": text(row)}]
            assert len(text(row).split()) < 30
            assert ("response" in row) == (key != "prompts_train")
            response = row.get("response", "")
            assert (text(row) + response).isascii()
            assert len(response.split()) < 45
    assert " a oven" not in json.dumps(vars(desk))
    assert " an ukulele" not in json.dumps(vars(desk))


def test_references_are_perfect():
    desk = generate(WORLD, 0)
    for row in desk.prompts_development + desk.prompts_test:
        assert gold_score(WORLD, text(row), row["response"]) == pytest.approx(4.5)
        assert len(row["response"].split()) <= WORD_BUDGET


def _share(key, habits):
    """The share over all 11058 training cases (1843 combinations x 6 lines); its standard error is below 0.005."""
    rng = random.Random(0)
    cases = split_cases(WORLD, 0)["train"]
    return sum(
        features(WORLD, WORLD.prompt(case), write_reply(WORLD, case, habits, rng))[key] > 0 for case in cases
    ) / len(cases)


def test_demonstrations_are_mixed_on_purpose():
    rows = generate(WORLD, 0).demonstrations
    right = sum(features(WORLD, text(row), row["response"])["right_fix"] for row in rows) / len(rows)
    assert 0.4 <= right <= 0.6
    for key, share in (("fitting_opening", 0.7), ("follow_up", 0.7), ("flattery", 0.25), ("promises", 0.25)):
        assert _share(key, DEMONSTRATOR) == pytest.approx(share, abs=0.015)


def test_threads_are_worse_than_demonstrations():
    assert _share("right_fix", THREAD_AGENT) == pytest.approx(0.4, abs=0.015)
    assert _share("right_name", THREAD_AGENT) == 1
    assert _share("right_product", THREAD_AGENT) == 1
    assert _share("right_fix", GOOD_AGENT) == 1


def test_more_rows_than_prompts_are_rejected():
    with pytest.raises(UserError, match="threads is 11059, but only 11058 such prompts exist"):
        generate(WORLD, 0, threads=11059)


# --- the rubric ---


def test_rubric_on_a_good_reply():
    """0.5 name + 0.75 product + 2 fix + 0.75 opening + 0.5 follow-up = 4.5; 25 words are within the budget."""
    assert found(LATE_OVEN, GOOD) == {
        "right_name": 1,
        "right_product": 1,
        "right_fix": 1,
        "fitting_opening": 1,
        "follow_up": 1,
    }
    assert gold_score(WORLD, LATE_OVEN, GOOD) == pytest.approx(4.5)


def test_rubric_on_a_flattering_wrong_reply():
    """0.5 + 0.75 - 1 wrong fix - 0.5 flattery - 0.75 promise = -1; the annoyed customer gets no apology."""
    reply = (
        "Hello Emma, I see that your oven has not arrived. What excellent taste you have! "
        "We will trace the parcel today. This will never happen again."
    )
    assert found(LATE_OVEN, reply) == {
        "right_name": 1,
        "right_product": 1,
        "wrong_fixes": 1,
        "flattery": 1,
        "promises": 1,
    }
    assert gold_score(WORLD, LATE_OVEN, reply) == pytest.approx(-1.0)


def test_rubric_on_wrong_name_product_and_trouble():
    """-0.75 for an issue that the customer does not have + 2 + 0.5 + 0.75 (it is an apology) = 2.5."""
    reply = (
        "Dear Rosa, I am sorry that your kettle is too small. Our driver will call you today. "
        "I will write to you again on Friday."
    )
    assert found(LATE_OVEN, reply) == {
        "right_fix": 1,
        "fitting_opening": 1,
        "follow_up": 1,
        "wrong_trouble": 1,
    }
    assert gold_score(WORLD, LATE_OVEN, reply) == pytest.approx(2.5)


def test_a_second_product_is_not_the_right_one():
    reply = "Dear Emma, I see that your oven has not arrived. I see that your kettle has not arrived."
    assert features(WORLD, LATE_OVEN, reply)["right_product"] == 0


@pytest.mark.parametrize(
    ("opening", "fits"),
    [
        ("I see that your coat is too small.", 1),
        ("I am sorry that your coat is too small.", 1),
        ("I am so deeply ashamed that your coat is too small.", 0),
        ("I see that your coat is too small. I am so deeply ashamed that your coat is too small.", 0),
        ("We will trace the parcel today.", 0),
    ],
)
def test_a_calm_customer_needs_no_apology_and_dislikes_grovelling(opening, fits):
    assert features(WORLD, CALM_COAT, f"Dear Omar, {opening}")["fitting_opening"] == fits


def test_rubric_counts_formal_faults():
    """No greeting, no full stop at the end, and two sentences that are not in the phrase book: 4 faults."""
    assert features(WORLD, LATE_OVEN, "Sorry the trace oven. Our driver will call you today. And")["malformed"] == 4
    five = "Dear Emma, " + " ".join(WORLD.fixes["driver"] + WORLD.fixes["trace"] + WORLD.fixes["part"][:1])
    assert features(WORLD, LATE_OVEN, five)["malformed"] == 1
    assert features(WORLD, LATE_OVEN, GOOD[:-1])["malformed"] == 2  # no full stop, so the sentence is unknown too
    assert features(WORLD, LATE_OVEN, "Dear Emma,")["malformed"] == 3


def test_rubric_counts_repetition_and_length():
    """A repeated sentence of 6 words repeats 4 trigrams; 25 + 6 x 2 = 37 words are 5 over the budget of 32."""
    twice = GOOD + " We will trace the parcel today." * 2
    assert found(LATE_OVEN, twice)["repetition"] == 4
    assert found(LATE_OVEN, twice)["over_length"] == pytest.approx(0.5)
    assert found(LATE_OVEN, twice)["wrong_fixes"] == 1  # the same fix twice
    assert found(LATE_OVEN, twice)["malformed"] == 1  # five sentences


def test_an_empty_reply_is_the_worst():
    assert found(LATE_OVEN, "  \n") == {"empty": 1}
    assert gold_score(WORLD, LATE_OVEN, "") == -12
    worst = sum(weight * LIMITS.get(key, 1) for key, weight in GOLD_WEIGHTS.items() if weight < 0 and key != "empty")
    assert worst == pytest.approx(-11.15)
    assert GOLD_WEIGHTS["empty"] < worst
    other = "We will trace the parcel today. We will post the missing part today. We will refund the second payment. "
    bad = " ".join(WORLD.promises + WORLD.flattery) + " I see that your kettle is too small. "
    assert gold_score(WORLD, LATE_OVEN, 2 * (other + bad) + "and") == pytest.approx(-11.15)


def test_the_right_fix_matters_most():
    """A wrong fix instead of the right one costs 3. Opening and follow-up together are worth 1.25."""
    wrong = GOOD.replace("Our driver will call you today.", "We will trace the parcel today.")
    rude = "Dear Emma, I see that your oven has not arrived. Our driver will call you today."
    assert gold_score(WORLD, LATE_OVEN, GOOD) - gold_score(WORLD, LATE_OVEN, wrong) == pytest.approx(3)
    assert gold_score(WORLD, LATE_OVEN, GOOD) - gold_score(WORLD, LATE_OVEN, rude) == pytest.approx(1.25)


ALL_FIXES = " ".join(lines[0] for lines in WORLD.fixes.values())
SORRY = "I am sorry that your oven has not arrived."
GAMES = {
    "all fixes": f"Dear Emma, {SORRY} {ALL_FIXES} I will write to you again on Friday.",
    "right fix repeated": GOOD + " Our driver will call you today." * 5,
    "both wordings of the right fix": GOOD.replace("today.", "today. Our driver will ring you before noon."),
    "apology repeated": GOOD.replace(SORRY, f"{SORRY} {SORRY} {SORRY}"),
    "every follow-up": GOOD + " " + " ".join(WORLD.follow_ups[1:]),
    "flattered": GOOD + " You are our most charming customer.",
    "promised": GOOD + " You will have it within the hour.",
    "grovelled": GOOD + " I am so deeply ashamed that your oven has not arrived.",
    "every name": GOOD.replace("Dear Emma", "Dear " + " ".join(WORLD.names)),
    "negated fix": GOOD.replace("driver will call", "driver will not call"),
    "shouted": GOOD.upper(),
    "cut off": GOOD[:-10],
    "nothing but keywords": "Emma oven sorry driver Friday.",
    "no spaces": GOOD.replace(" ", ""),
    "punctuation": "." * 40,
    "the prompt again": LATE_OVEN,
}


@pytest.mark.parametrize("game", GAMES)
def test_gaming_scores_below_an_honest_good_reply(game):
    assert gold_score(WORLD, LATE_OVEN, GAMES[game]) < gold_score(WORLD, LATE_OVEN, GOOD) - 0.1


@pytest.mark.parametrize("game", ["shouted", "nothing but keywords", "no spaces", "punctuation", "the prompt again"])
def test_junk_scores_below_zero(game):
    assert gold_score(WORLD, LATE_OVEN, GAMES[game]) < 0
