"""From raw rows to the files of data/prepared: cleaning, splitting, and the data card."""

import json
from collections import Counter

import pytest

from rlhf_core.common.errors import UserError
from tasks.data.clean import Cleaned, check_dropped, clean, split_by_prompt, to_prepared
from tasks.data.data_card import card_markdown, data_card, dropped_text, length_summary
from tasks.data.formats import RawRow
from tasks.files.jsonl import read_jsonl, write_jsonl

FRACTIONS = {"train": 0.6, "development": 0.1, "test": 0.1, "judge": 0.2}


def user(text):
    return [{"role": "user", "content": text}]


def pair(line, prompt, chosen="yes", rejected="no", **more):
    return RawRow("d.jsonl", line, user(prompt), chosen=chosen, rejected=rejected, **more)


def demo(line, prompt, response="yes", **more):
    return RawRow("d.jsonl", line, user(prompt), response=response, **more)


def count_words(messages, response):
    """Tokens are words; each side has one more token, the generation prompt or the end token."""
    return sum(len(message["content"].split()) for message in messages) + 1, len(response.split()) + 1


def cleaned(rows, **limits):
    return clean(rows, count_tokens=count_words, **{"max_prompt_tokens": 4, "max_response_tokens": 4, **limits})


@pytest.mark.pitfall(6)
def test_dropped_rows_are_listed_with_line_and_reason():
    rows = [
        pair(1, "a b c", "d e f"),  # 4 tokens each, the limit
        pair(2, " \n"),
        pair(3, "a", chosen=" "),
        pair(4, "a", rejected=""),
        pair(5, "a", "same", "same"),
        pair(6, "a", same_prompt=False),
        pair(7, "a b c d"),
        pair(8, "a", "b", "c d e f"),
        pair(9, "half an emoji \ud83d"),
        pair(10, "a b c", "d e f"),
        RawRow("d.jsonl", 11, [], response="a"),
        RawRow("d.jsonl", 12, [], fault="no value in 'chosen'"),
        pair(13, "a", source="half \ud83d"),
        demo(14, "a", answer="half \ud83d"),
    ]
    result = cleaned(rows)
    assert result.dropped == [
        {"file": "d.jsonl", "line": line, "reason": reason}
        for line, reason in [
            (2, "empty prompt"),
            (3, "empty response"),
            (4, "empty response"),
            (5, "chosen equal to rejected"),
            (6, "different prompts for chosen and rejected"),
            (7, "prompt too long"),
            (8, "response too long"),
            (9, "invalid Unicode text"),
            (10, "duplicate"),
            (11, "empty prompt"),
            (12, "no value in 'chosen'"),
            (13, "invalid Unicode text"),
            (14, "invalid Unicode text"),
        ]
    ]
    assert result.rows == [rows[0]]
    assert result.read == 14
    # "d e f" and its end are 4 tokens, "no" and its end 2.
    assert (result.prompt_tokens, result.response_tokens) == ([4], [4, 2])


def rating(line, prompt, response, score, **more):
    return demo(line, prompt, response, score=score, **more)


def ranking(line, prompt, responses, ranks, **more):
    return RawRow("d.jsonl", line, user(prompt), ranked=tuple(responses), ranks=tuple(ranks), **more)


def test_invalid_scores_and_ranks_are_listed_with_line_and_reason():
    """The scale is 1 to 5 by default. Ranks must only be numbers."""
    rows = [
        rating(1, "a", "b", 1),
        rating(2, "a", "c", 5.0),
        rating(3, "a", "d", 0),
        rating(4, "a", "e", 5.5),
        rating(5, "a", "f", "4"),
        rating(6, "a", "g", float("nan")),
        rating(7, "a", "h", True),
        rating(8, "a", "b", 1),
        rating(9, "a", "b", 2),
        ranking(10, "a", "bcd", (0, 2.5, 0)),
        ranking(11, "a", "b", (1,)),
        ranking(12, "a", "bb", (1, 2)),
        ranking(13, "a", "bcd", (1, 2)),
        ranking(14, "a", "bc", (1, "2")),
        ranking(15, "a", ["b", " "], (1, 2)),
        ranking(16, "a", (), ()),
        pair(17, "a", margin=-0.5),
        pair(18, "a", margin="1"),
    ]
    assert [(row["line"], row["reason"]) for row in cleaned(rows).dropped] == [
        (3, "score outside 1 to collect.scale 5"),
        (4, "score outside 1 to collect.scale 5"),
        (5, "score not a number"),
        (6, "score not a number"),
        (7, "score not a number"),
        (8, "duplicate"),
        (11, "ranking of fewer than 2 different responses"),
        (12, "ranking of fewer than 2 different responses"),
        (13, "different numbers of responses and ranks"),
        (14, "rank not a number"),
        (15, "empty response"),
        (16, "ranking of fewer than 2 different responses"),
        (18, "margin not a number"),
    ]
    assert [row["line"] for row in cleaned([rating(1, "a", "b", 7), rating(2, "a", "b", 11)], scale=10).dropped] == [2]


@pytest.mark.pitfall(6)
def test_context_must_fit_prompt_and_longest_response():
    """A prompt of 2 tokens and up to 3 response tokens fit a context of 5. A prompt of 3 tokens never does."""
    rows = [demo(1, "a", "b c"), demo(2, "a b", "b")]
    assert cleaned(rows, max_response_tokens=3, context=5).dropped == [
        {"file": "d.jsonl", "line": 2, "reason": "prompt plus max_response_tokens 3 longer than the context of 5"}
    ]
    assert cleaned(rows, max_response_tokens=3, context=6).dropped == []


def test_only_identical_rows_are_duplicates():
    rows = [pair(1, "a"), pair(2, "a", "no", "yes"), pair(3, "a", "maybe"), pair(4, "A"), pair(5, "a")]
    assert [row["line"] for row in cleaned(rows).dropped] == [5]
    labels = [pair(1, "a"), pair(2, "a", label=0.5), pair(3, "a", label=0.75), pair(4, "a", label=0.5)]
    assert [row["line"] for row in cleaned(labels).dropped] == [4]
    margins = [pair(1, "a", margin=1), pair(2, "a", margin=2.5), pair(3, "a", margin=1)]
    assert [row["line"] for row in cleaned(margins).dropped] == [3]
    labelled = [demo(1, "a", label=True), demo(2, "a", label=False), demo(3, "a", label=True)]
    assert [row["line"] for row in cleaned(labelled).dropped] == [3]


def test_a_repeated_fault_counts_each_time():
    """Otherwise a file that repeats one broken row would only have duplicates."""
    assert [row["reason"] for row in cleaned([demo(1, "a", ""), demo(2, "a", "")]).dropped] == ["empty response"] * 2


def test_too_many_dropped_rows_are_an_error():
    """1 of 20 rows is 5 % and allowed, 2 of 20 rows are not. Duplicates do not count."""
    good = [demo(line, f"p{line}") for line in range(1, 18)]
    result = cleaned([*good, demo(18, "p1"), demo(19, "p2"), demo(20, "a", "")])
    check_dropped(result, 0.05)
    result = cleaned([*good, demo(18, "p1"), demo(19, "a b c d"), demo(20, "a", "")])
    with pytest.raises(UserError) as caught:
        check_dropped(result, 0.05)
    assert str(caught.value) == (
        "2 of 20 rows are unusable, more than prepare.max_dropped 0.05 allows: "
        "prompt too long (1, first in d.jsonl, line 19); empty response (1, first in d.jsonl, line 20). "
        "Correct the rows, change the token limits, or raise prepare.max_dropped."
    )


def lines(splits):
    return {name: sorted(row.line for row in rows) for name, rows in splits.items()}


def test_splits_have_their_fractions_of_the_prompts():
    """50 prompts, two rows each: 30, 5, 5 and 10 prompts."""
    splits = split_by_prompt([pair(line, f"p{line % 50}") for line in range(100)], FRACTIONS, seed=0)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 60,
        "development": 10,
        "test": 10,
        "judge": 20,
    }
    where = {}
    for name, rows in splits.items():
        for row in rows:
            assert where.setdefault(row.prompt[0]["content"], name) == name


def test_prompts_that_differ_only_in_case_and_spaces_share_a_split():
    rows = [pair(line, text) for line, text in enumerate(["Why  me?", "why me?", " Why me? ", *"abcdefghi"])]
    together = [{0, 1, 2} & set(part) for part in lines(split_by_prompt(rows, FRACTIONS, seed=0)).values()]
    assert sorted(map(len, together)) == [0, 0, 0, 3]


def test_split_depends_on_seed_and_prompts_but_not_on_order():
    rows = [pair(line, f"p{line}") for line in range(40)]
    splits = lines(split_by_prompt(rows, FRACTIONS, seed=1))
    assert lines(split_by_prompt(rows[::-1], FRACTIONS, seed=1)) == splits
    assert lines(split_by_prompt(rows, FRACTIONS, seed=2)) != splits


def test_an_empty_split_is_an_error():
    """The bounds for 4 prompts are round(2.4), round(2.8), round(3.2) and 4: the slice from 3 to 3 is empty."""
    rows = [pair(line, f"p{line}") for line in range(4)]
    with pytest.raises(UserError, match=r"4 distinct prompts are too few .* development 0.1, .*: test is empty"):
        split_by_prompt(rows, FRACTIONS, seed=0)
    assert lines(split_by_prompt(rows, {"train": 1.0, "judge": 0.0}, seed=0)) == {"train": [0, 1, 2, 3], "judge": []}
    for wrong in ({"train": 1.1, "test": -0.1}, {"train": 0.5, "test": 0.4}):
        with pytest.raises(UserError, match=r"sum to 1, not train"):
            split_by_prompt(rows, wrong, seed=0)


def test_preferences_become_demonstrations_prompts_and_pairs():
    splits = {
        "train": [pair(1, "a", "b", "c"), pair(2, "a", "b", "d", margin=0.5)],
        "development": [pair(3, "e", "f", "g")],
        "test": [pair(4, "h", "i", "j")],
        "judge": [pair(5, "k", "l", "m")],
    }
    assert to_prepared(splits, "preference") == {
        "demonstrations_train": [{"prompt": user("a"), "response": "b"}],
        "demonstrations_development": [{"prompt": user("e"), "response": "f"}],
        "prompts_train": [{"prompt": user("a")}],
        "prompts_development": [{"prompt": user("e"), "response": "f"}],
        "prompts_test": [{"prompt": user("h"), "response": "i"}],
        "preferences_train": [
            {"prompt": user("a"), "chosen": "b", "rejected": "c"},
            {"prompt": user("a"), "chosen": "b", "rejected": "d", "margin": 0.5},
        ],
        "preferences_development": [{"prompt": user("e"), "chosen": "f", "rejected": "g"}],
        "preferences_judge": [{"prompt": user("k"), "chosen": "l", "rejected": "m"}],
    }


@pytest.mark.pitfall(38)
def test_labels_of_pairs_are_kept_and_a_tie_is_not_a_demonstration():
    splits = {
        "train": [pair(1, "a", "b", "c", label=0.75), pair(2, "a", "d", "e", label=0.5)],
        "development": [pair(3, "e", "f", "g", label=0.5)],
        "test": [pair(4, "h", "i", "j", label=0.5), pair(5, "k", "l", "m", label=0.6)],
    }
    files = to_prepared(splits, "preference")
    assert [row.get("label") for row in files["preferences_train"]] == [0.75, 0.5]
    assert files["demonstrations_train"] == [{"prompt": user("a"), "response": "b"}]
    assert files["demonstrations_development"] == []
    assert files["prompts_test"] == [{"prompt": user("k"), "response": "l"}]


def test_prompts_without_responses_yield_no_demonstrations_or_references():
    splits = {name: [RawRow("d.jsonl", 1, user(name))] for name in ("train", "development", "test")}
    files = to_prepared(splits, "prompts")
    assert files == {f"prompts_{name}": [{"prompt": user(name)}] for name in splits}
    result = cleaned([row for rows in splits.values() for row in rows])
    assert (result.prompt_tokens, result.response_tokens) == ([2, 2, 2], [])
    assert data_card("d.jsonl", "prompts", result, files)["unused_rows"] == []


def test_demonstrations_and_answers_have_no_pairs():
    splits = {name: [demo(1, name, "so 4", answer="4")] for name in ("train", "development", "test")}
    assert to_prepared(splits, "question_answer") == {
        "demonstrations_train": [{"prompt": user("train"), "response": "so 4"}],
        "demonstrations_development": [{"prompt": user("development"), "response": "so 4"}],
        "prompts_train": [{"prompt": user("train"), "answer": "4"}],
        "prompts_development": [{"prompt": user("development"), "answer": "4", "response": "so 4"}],
        "prompts_test": [{"prompt": user("test"), "answer": "4", "response": "so 4"}],
    }
    with pytest.raises(ValueError, match="'judge' must be empty"):
        to_prepared({**splits, "judge": [demo(1, "j")]}, "demonstration")


UNPAIRED = {
    "train": [
        demo(1, "a", "good", label=True),
        demo(2, "a", "fine", label=True),
        demo(3, "a", "bad", label=False),
        demo(4, "b", "bad", label=False),
    ],
    "development": [demo(5, "c", "good", label=True)],
    "test": [demo(6, "d", "bad", label=False), demo(7, "d", "good", label=True), demo(8, "e", "bad", label=False)],
}


def test_unpaired_rows_are_kept_unchanged():
    assert to_prepared(UNPAIRED, "unpaired") == {
        "demonstrations_train": [{"prompt": user("a"), "response": "good"}, {"prompt": user("a"), "response": "fine"}],
        "demonstrations_development": [{"prompt": user("c"), "response": "good"}],
        "prompts_train": [{"prompt": user("a")}, {"prompt": user("b")}],
        "prompts_development": [{"prompt": user("c"), "response": "good"}],
        "prompts_test": [{"prompt": user("d"), "response": "good"}],
        "unpaired_train": [
            {"prompt": user("a"), "response": "good", "label": True},
            {"prompt": user("a"), "response": "fine", "label": True},
            {"prompt": user("a"), "response": "bad", "label": False},
            {"prompt": user("b"), "response": "bad", "label": False},
        ],
        "unpaired_development": [{"prompt": user("c"), "response": "good", "label": True}],
    }


def test_ratings_are_kept_and_the_best_of_a_prompt_is_its_demonstration():
    """On a scale of 1 to 5 the middle is 3, so the best response to prompt b, rated 3, is not a demonstration."""
    splits = {
        "train": [rating(1, "a", "x", 4), rating(2, "a", "y", 5, source="s"), rating(3, "b", "z", 3)],
        "development": [rating(4, "c", "u", 4), rating(5, "c", "v", 4)],
        "test": [rating(6, "d", "w", 2), rating(7, "d", "q", 5)],
        "judge": [rating(8, "e", "p", 1)],
    }
    assert to_prepared(splits, "ratings") == {
        "demonstrations_train": [{"prompt": user("a"), "response": "y"}],
        "demonstrations_development": [{"prompt": user("c"), "response": "u"}, {"prompt": user("c"), "response": "v"}],
        "prompts_train": [{"prompt": user("a")}, {"prompt": user("b")}],
        "prompts_development": [{"prompt": user("c"), "response": "u"}],
        "prompts_test": [{"prompt": user("d"), "response": "q"}],
        "ratings_train": [
            {"prompt": user("a"), "response": "x", "score": 4},
            {"prompt": user("a"), "response": "y", "score": 5, "source": "s"},
            {"prompt": user("b"), "response": "z", "score": 3},
        ],
        "ratings_development": [
            {"prompt": user("c"), "response": "u", "score": 4},
            {"prompt": user("c"), "response": "v", "score": 4},
        ],
        "ratings_judge": [{"prompt": user("e"), "response": "p", "score": 1}],
    }


def test_rankings_keep_their_order_and_the_first_of_the_best_is_the_demonstration():
    """Ranks 0, 7, 0 become 1, 2, 1."""
    splits = {
        "train": [ranking(1, "a", "xyz", (7, 0, 0))],
        "development": [ranking(2, "b", "uv", (1, 2))],
        "test": [ranking(3, "c", "pq", (2, 1))],
    }
    files = to_prepared(splits, "rankings")
    assert files["rankings_train"] == [{"prompt": user("a"), "responses": ["x", "y", "z"], "ranks": [2, 1, 1]}]
    assert files["demonstrations_train"] == [{"prompt": user("a"), "response": "y"}]
    assert files["prompts_test"] == [{"prompt": user("c"), "response": "q"}]
    card = data_card("d.jsonl", "rankings", cleaned(row for rows in splits.values() for row in rows), files)
    assert card["unused_rows"] == []


def test_card_accounts_for_every_row():
    """Eight rows are kept and one is dropped. Lines 6 and 8 are bad responses in `test`, so they are unused."""
    result = cleaned([row for rows in UNPAIRED.values() for row in rows] + [demo(9, "f", "", label=True)])
    card = data_card("d.jsonl", "unpaired", result, to_prepared(UNPAIRED, "unpaired"))
    assert (card["read"], card["kept"], card["dropped"]) == (9, 8, {"empty response": 1})
    assert card["dropped_rows"] == [{"file": "d.jsonl", "line": 9, "reason": "empty response"}]
    assert card["unused_rows"] == [{"file": "d.jsonl", "line": line} for line in (6, 8)]
    assert card["files"]["demonstrations_train"] == 2
    assert card["overlap"] == {"train/development": 0, "train/test": 0, "development/test": 0}
    assert card["prompt_tokens"] == {"min": 2, "median": 2, "max": 2, "bins": [{"from": 0, "to": 8, "count": 8}]}
    assert json.loads(json.dumps(card)) == card


def test_card_rejects_a_prompt_in_two_splits():
    files = {"prompts_train": [{"prompt": user("Why?")}], "prompts_test": [{"prompt": user("why? ")}], "threads": []}
    with pytest.raises(ValueError, match="'train/test': 1"):
        data_card("d.jsonl", "demonstration", cleaned([]), files)


def test_histogram_bins_double_in_width_and_cover_all_lengths():
    """1..8 | 9..16 | 17..32: counts 2, 0, 2. The lower median of 1, 8, 17, 20 is 8."""
    summary = length_summary([20, 1, 17, 8])
    assert (summary["min"], summary["median"], summary["max"]) == (1, 8, 20)
    assert [(item["from"], item["to"], item["count"]) for item in summary["bins"]] == [
        (0, 8, 2),
        (9, 16, 0),
        (17, 32, 2),
    ]
    assert length_summary([]) == {"bins": []}


def test_dropped_rows_in_a_sentence():
    """The most frequent reason first; files are counted if there are several."""
    rows = [("d/a.jsonl", "duplicate"), ("d/a.jsonl", "response too long"), ("d/b.jsonl", "response too long")]
    dropped = [{"file": file, "line": 1, "reason": reason} for file, reason in rows]
    card = data_card("d", "demonstration", Cleaned(rows=[demo(1, "a", "b")] * 1000, dropped=dropped), {})
    reasons = "response too long 2, duplicate 1"
    assert dropped_text(card) == f"3 of 1,003 rows dropped from d (d/a.jsonl 2, d/b.jsonl 1): {reasons}"
    one = card | {"dropped_rows": dropped[:2], "dropped": {"duplicate": 1, "response too long": 1}}
    assert dropped_text(one) == "2 of 1,003 rows dropped from d/a.jsonl: duplicate 1, response too long 1"
    assert dropped_text(card | {"dropped": {}}) == ""


def test_card_as_markdown():
    result = cleaned(
        [demo(1, "a", "b"), demo(2, "c", "d e f"), demo(3, "e", ""), *(demo(n, "a", "b") for n in range(4, 26))]
    )
    assert Counter(row["reason"] for row in result.dropped) == {"empty response": 1, "duplicate": 22}
    card = data_card("Some data", "demonstration", result, {"prompts_train": [{"prompt": user("a"), "response": "b"}]})
    first_twenty = ", ".join(str(line) for line in range(4, 24))
    assert card_markdown(card) == (
        "# Data card\n"
        "Some data (kind: demonstration): 25 rows read, 2 kept.\n"
        "\n## Files\n"
        "| file | rows |\n|---|---:|\n"
        "| prompts_train.jsonl | 1 |\n"
        "\nPrompts shared by two splits: only one split.\n"
        "\n## Dropped\n"
        "| reason | rows | where |\n|---|---:|---|\n"
        f"| duplicate | 22 | d.jsonl, line {first_twenty} and 2 more, listed in card.json |\n"
        "| empty response | 1 | d.jsonl, line 3 |\n"
        "\nKept, but not used by any stage: d.jsonl, line 2.\n"
        "\n## Prompt length in tokens\n"
        "Minimum 2, median 2, maximum 2.\n"
        "\n| tokens | count | |\n|---|---:|---|\n"
        f"| 0–8 | 2 | {'█' * 30} |\n"
        "\n## Response length in tokens\n"
        "Minimum 2, median 2, maximum 4.\n"
        "\n| tokens | count | |\n|---|---:|---|\n"
        f"| 0–8 | 2 | {'█' * 30} |\n"
    )


def test_files_are_read_as_written(tmp_path):
    rows = [{"prompt": user("ä\u2028🙂\n"), "response": "b"}, {"b": 1, "a": [2]}]
    write_jsonl(tmp_path / "d.jsonl", rows)
    assert read_jsonl(tmp_path / "d.jsonl") == rows
    assert (tmp_path / "d.jsonl").read_bytes().splitlines()[1] == b'{"b":1,"a":[2]}'
    with (tmp_path / "d.jsonl").open("a") as handle:
        handle.write('{"b":')
    with pytest.raises(UserError, match=r"d.jsonl, line 3 is not JSON"):
        read_jsonl(tmp_path / "d.jsonl")
    with pytest.raises(UserError, match=r"none.jsonl does not exist"):
        read_jsonl(tmp_path / "none.jsonl")
