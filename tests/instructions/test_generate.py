"""Generated prompts: distinct, without conflicts, held out by request and by type; and prompt files of users."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from instructions.checker import Task
from instructions.generate import TRAINED, generate, held_out_types
from instructions.prompt_files import read_prompts
from instructions.table import constraint_types
from instructions.topics import Topics
from rlhf_core.common.errors import UserError
from tools.closure import ROOT

PATH = ROOT / "instructions" / "topics.json"
TOPICS = Topics.load(PATH)


@pytest.fixture(scope="module")
def made():
    return generate(TOPICS, 0, train=2000, development=50, test=200)


def text(row):
    return row["prompt"][-1]["content"]


def request(row):
    """The frame and the topic at the beginning of a prompt."""
    return next((frame, topic.name) for topic in TOPICS.topics for frame in TOPICS.frames
                if text(row).startswith(frame.replace("{}", topic.name)))  # fmt: skip


def test_prompts_are_distinct_and_reproducible(made):
    every = made.train + made.development + made.test
    assert len({text(row) for row in every}) == 2000 + 50 + 400
    again = generate(TOPICS, 0, train=3, development=50, test=200)
    assert again.test == made.test and again.train == made.train[:3]
    assert generate(TOPICS, 1, train=3, development=1, test=1).train != again.train


def test_requests_and_types_are_held_out(made):
    trained = {request(row) for row in made.train}
    assert not trained & {request(row) for row in made.development + made.test}
    assert 550 < len(trained) <= 60 * 12 * 4 // 5 == 576
    ids = {group: Counter(id for row in made.test for id in row["instruction_id_list"] if row["group"] == group)
           for group in ("trained", "held_out_types")}  # fmt: skip
    assert set(ids["trained"]) == set(TRAINED) and len(TRAINED) == 10
    assert set(ids["held_out_types"]) == set(held_out_types()) == set(constraint_types()) - set(TRAINED)
    assert {id for row in made.train + made.development for id in row["instruction_id_list"]} == set(TRAINED)


def test_constraints_of_a_prompt_share_no_aspect_and_can_all_be_met(made):
    counts = Counter()
    for row in made.train + made.test:
        constraints = Task.of_row(row, "").constraints
        counts[len(constraints)] += 1
        for one, other in combinations(constraints, 2):
            assert not one.aspects & other.aspects
        values = {c.id: vars(c) for c in constraints}
        wanted = [*values.get("keywords:existence", {}).get("keywords", ()), request(row)[1]]
        wanted.append(ending := values.get("startend:end_checker", {}).get("end_phrase", ""))
        if (forbidden := values.get("keywords:forbidden_words")) is not None:
            assert not any(f" {word} " in f" {' '.join(wanted).lower()} " for word in forbidden["forbidden_words"])
        assert not ("punctuation:no_comma" in values and "," in ending)
    assert set(counts) == {1, 2, 3} and counts[2] > counts[1] > counts[3] > 50


def test_every_constraint_is_stated_after_the_request(made):
    for row in made.train[:200]:
        task = Task.of_row(row, "")
        frame, topic = request(row)
        assert text(row) == " ".join([frame.replace("{}", topic), *(c.phrase() for c in task.constraints)])
        assert row["about"][0] == topic and row["prompt"][0] == {"role": "system", "content": TOPICS.system}


def test_too_few_topics_are_an_error(tmp_path):
    few = Topics("", ["About {}.", "On {}."], TOPICS.topics[:1])
    with pytest.raises(UserError, match="too few topics and frames"):
        generate(few, 0, train=1, development=1, test=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "needs the keys frames"),
        ({"frames": [], "topics": {}}, "needs the keys frames"),
        ({"frames": ["About."], "topics": {}}, r"the frame 'About\.' must contain {} once"),
        ({"frames": ["{} {}"], "topics": {}}, "must contain {} once"),
        ({"frames": ["{}"], "topics": {"tea": ["cup", "cup", "hot"]}}, "topic 'tea' needs a list of at least 3"),
        ({"frames": ["{}"], "topics": {"tea": "cup"}}, "topic 'tea' needs a list"),
    ],
)
def test_wrong_topics_are_named(tmp_path, content, message):
    path = tmp_path / "topics.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        Topics.load(path)
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        Topics.load(Path("none.json"))


def write(tmp_path, *rows):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


ROW = {"key": 7, "prompt": "Write about old ovens. No commas.", "instruction_id_list": ["punctuation:no_comma"]}


def test_prompt_files_in_the_format_of_ifeval(tmp_path):
    two = ["keywords:existence", "punctuation:no_comma"]
    full = {"keywords": ["a"], "num_words": None}
    path = write(tmp_path, ROW, "", ROW | {"kwargs": [{}]}, ROW | {"kwargs": None}, ROW | {"kwargs": [None]},
                 ROW | {"instruction_id_list": two, "kwargs": [full, {"num_words": None}]})  # fmt: skip
    rows = read_prompts(path)
    assert [row["kwargs"] for row in rows] == [[{}]] * 4 + [[{"keywords": ["a"]}, {}]]
    assert rows[0] == {
        "prompt": [{"role": "user", "content": ROW["prompt"]}],
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
        "about": ["comma", "old", "oven", "writ"],
        "group": "prompts",
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"prompts\.jsonl, line 2 is not JSON"),
        ({"prompt": " "}, r"line 2 has no text in 'prompt'"),
        (ROW | {"instruction_id_list": []}, r"line 2, key 7 has no list of ids"),
        (
            ROW | {"kwargs": {}, "instruction_id_list": ["poems:rhyme"]},
            r"line 2, key 7: the instruction id poems:rhyme",
        ),
        (ROW | {"kwargs": [{}, {}]}, r"line 2, key 7 has 1 ids, but 2 kwargs"),
        (ROW | {"kwargs": ["a"]}, r"line 2, key 7: kwargs must be a list with an object or null"),
    ],
)
def test_wrong_rows_of_prompt_files_are_named(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read_prompts(write(tmp_path, ROW, row))


def test_empty_and_missing_prompt_files(tmp_path):
    with pytest.raises(UserError, match="has no rows"):
        read_prompts(write(tmp_path, ""))
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")
