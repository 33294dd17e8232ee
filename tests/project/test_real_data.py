"""Public data sets, read row by row: counts are exact, and every row is kept or listed. Run by `make test-data`."""

import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from tasks.data.clean import DUPLICATE, check_dropped, clean, split_by_prompt, to_prepared
from tasks.data.data_card import data_card
from tasks.data.readers import read_rows
from tasks.params.sections import PrepareParams
from tasks.problems.table import problem_of

pytestmark = pytest.mark.data

HH = "hh_rlhf/harmless_base_test.jsonl.gz"
DPO = "llamafactory/dpo_en_demo.jsonl.gz"
KTO = "llamafactory/kto_en_demo.jsonl.gz"


@pytest.fixture(scope="session")
def folder():
    if not os.environ.get("DATA"):
        pytest.fail(
            "DATA is not set. Run: make test-data DATA=FOLDER, the folder that holds hh_rlhf, gsm8k and llamafactory."
        )
    return Path(os.environ["DATA"])


def raw_rows(folder, name):
    """The file's rows without any of the project's code."""
    return [json.loads(line) for line in gzip.open(folder / name, "rt", encoding="utf-8")]


def count_words(messages, response):
    return sum(len(message["content"].split()) for message in messages) + 1, len(response.split()) + 1


def clean_all(rows):
    return clean(rows, count_tokens=count_words, max_prompt_tokens=10**6, max_response_tokens=10**6)


@pytest.mark.parametrize(
    ("name", "kind", "count", "dropped"),
    [
        (HH, "preference", 2312, {"empty response": 4, "different prompts for chosen and rejected": 5}),
        ("gsm8k/train.jsonl.gz", "question_answer", 7473, {}),
        ("gsm8k/test.jsonl.gz", "question_answer", 1319, {}),
        ("gsm8k", "question_answer", 8792, {}),
        (DPO, "preference", 300, {DUPLICATE: 5}),
        (KTO, "unpaired", 300, {}),
        ("llamafactory/alpaca_en_demo.jsonl.gz", "demonstration", 999, {DUPLICATE: 14}),
    ],
)
def test_nothing_is_dropped_silently(folder, name, kind, count, dropped):
    rows = read_rows(folder / name, "")
    assert len(rows) == count
    assert {row.kind for row in rows} == {kind}
    assert len({(row.file, row.line) for row in rows}) == count
    cleaned = clean_all(rows)
    assert cleaned.reasons == Counter(dropped)
    assert len(cleaned.rows) == count - sum(dropped.values())
    check_dropped(cleaned, PrepareParams.max_dropped)
    shares = {"train": 0.6, "development": 0.1, "test": 0.1, "judge": 0.2}
    if not problem_of(kind).has_feedback:
        shares = {"train": 0.8, "development": 0.1, "test": 0.1}
    splits = split_by_prompt(cleaned.rows, shares, seed=0)
    assert sum(len(part) for part in splits.values()) == len(cleaned.rows)
    card = data_card(name, kind, cleaned, to_prepared(splits, kind))
    assert set(card["overlap"].values()) == {0}
    if kind != "unpaired":
        # Only second pairs of a test prompt are unused: the first pair gives the reference response.
        first: dict[str, int] = {}
        again = [row.line for row in splits["test"] if first.setdefault(json.dumps(row.prompt), row.line) != row.line]
        assert sorted(row["line"] for row in card["unused_rows"]) == sorted(again)


def test_hh_rlhf_row_by_row(folder):
    """Turns joined into a transcript equal the row that was read, except for spaces and doubled turns."""
    names = {"user": "Human", "assistant": "Assistant"}
    rows = read_rows(folder / HH, "", "implicit")
    for row, raw in zip(rows, raw_rows(folder, HH), strict=True):
        turns = [*row.prompt, {"role": "assistant", "content": row.chosen}]
        again = "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns)
        doubled = re.sub(
            r"(?<=\n\nAssistant:)((?:(?!\n\nHuman:).)*)\n\nAssistant:", r"\1\n\n", raw["chosen"], flags=re.S
        )
        assert again.split() in (raw["chosen"].split(), doubled.split()), row.line
        last = raw["rejected"].rpartition("\n\nAssistant:")
        assert row.rejected == last[2].strip(), row.line
        assert row.chosen == raw["chosen"].rpartition("\n\nAssistant:")[2].strip(), row.line
        assert row.same_prompt == (raw["chosen"].rpartition("\n\nAssistant:")[0] == last[0]), row.line


def test_gsm8k_row_by_row(folder):
    for name in ("gsm8k/train.jsonl.gz", "gsm8k/test.jsonl.gz"):
        for row, raw in zip(read_rows(folder / name, ""), raw_rows(folder, name), strict=True):
            assert row.prompt == [{"role": "user", "content": raw["question"]}]
            assert row.response == raw["answer"]
            assert row.answer == raw["answer"].split("####")[1].strip().replace(",", "")
            assert re.fullmatch(r"-?\d+", row.answer)


def test_llamafactory_row_by_row(folder):
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    for row, raw in zip(read_rows(folder / DPO, ""), raw_rows(folder, DPO), strict=True):
        assert row.prompt == [{"role": roles[turn["from"]], "content": turn["value"]} for turn in raw["conversations"]]
        assert (row.chosen, row.rejected) == (raw["chosen"]["value"], raw["rejected"]["value"])
    for row, raw in zip(read_rows(folder / KTO, ""), raw_rows(folder, KTO), strict=True):
        assert [*row.prompt, {"role": "assistant", "content": row.response}] == raw["messages"]
        assert row.label is raw["label"]
