"""Reading: every common format, every type of source, and the messages about broken ones."""

import gzip
import json
import os
import re

import datasets
import pytest

from rlhf_core.common.errors import UserError
from rlhf_core.scoring.answers import ANSWER_PATTERN
from tasks.data.fields import Fields, MissingFieldError
from tasks.data.formats import RawRow, parse_row
from tasks.data.readers import FORMATS, kind_of, read_rows

USER = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def reply(text):
    return {"role": "assistant", "content": text}


def write(path, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read_one(tmp_path, row, format="auto", **options):
    (only,) = read_rows(write(tmp_path / "data.jsonl", row), "", format, **options)
    return only


PAIR = {"chosen": "Yes.", "rejected": "No."}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Why?", **PAIR}, [USER]),
        ({"prompt": [SYSTEM, USER], **PAIR}, [SYSTEM, USER]),
        ({"prompt": "Why?", "system": "Be brief.", **PAIR}, [SYSTEM, USER]),
        ({"prompt": [USER], "chosen": [reply("Yes.")], "rejected": [reply("No.")]}, [USER]),
        # Whole conversations, with and without the prompt.
        ({"prompt": "Why?", "chosen": [USER, reply("Yes.")], "rejected": [USER, reply("No.")]}, [USER]),
        ({"chosen": [SYSTEM, USER, reply("Yes.")], "rejected": [SYSTEM, USER, reply("No.")]}, [SYSTEM, USER]),
        # Turns that continue the prompt.
        (
            {
                "prompt": "Hi.",
                "chosen": [reply("Hi!"), USER, reply("Yes.")],
                "rejected": [reply("Hi!"), USER, reply("No.")],
            },
            [{"role": "user", "content": "Hi."}, reply("Hi!"), USER],
        ),
        # LLaMA-Factory's two forms.
        (
            {
                "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Why?"}],
                "chosen": {"from": "gpt", "value": "Yes."},
                "rejected": {"from": "gpt", "value": "No."},
            },
            [SYSTEM, USER],
        ),
        ({"instruction": "Why?", "input": "", **PAIR}, [USER]),
    ],
)
def test_preferences_in_every_form(tmp_path, row, prompt):
    read = read_one(tmp_path, row)
    assert (read.kind, read.prompt, read.chosen, read.rejected) == ("preference", prompt, "Yes.", "No.")
    assert read.same_prompt
    assert (read.file, read.line) == ("data.jsonl", 1)


def test_messages_that_begin_with_another_prompt_are_marked(tmp_path):
    row = {"prompt": "What?", "chosen": [USER, reply("Yes.")], "rejected": [USER, reply("No.")]}
    assert not read_one(tmp_path, row).same_prompt
    other = [{"role": "user", "content": "How?"}, reply("No.")]
    assert not read_one(tmp_path, {"chosen": [USER, reply("Yes.")], "rejected": other}).same_prompt


def test_implicit_prompt_is_everything_before_the_last_assistant_turn(tmp_path):
    """Two Human turns with an Assistant turn between them. Blank lines inside a turn are kept."""
    start = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nTell me.\n\nHuman: Why?\n\nAssistant:"
    read = read_one(tmp_path, {"chosen": start + " Yes.", "rejected": start + " No."})
    assert read.prompt == [{"role": "user", "content": "Hi."}, reply("Hello.\n\nTell me."), USER]
    assert (read.chosen, read.rejected, read.same_prompt) == ("Yes.", "No.", True)


def test_implicit_prompts_that_differ_are_marked(tmp_path):
    chosen = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And?\n\nAssistant: Yes."
    rejected = "\n\nHuman: Why?\n\nAssistant: No."
    assert not read_one(tmp_path, {"chosen": chosen, "rejected": rejected}).same_prompt


def test_consecutive_turns_of_one_speaker_are_merged_only_in_the_prompt(tmp_path):
    start = "\n\nHuman: Hi.\n\nAssistant: One.\n\nAssistant: Two.\n\nHuman: Why?\n\nAssistant:"
    read = read_one(tmp_path, {"chosen": start + " Yes.", "rejected": start + " No."})
    assert read.prompt == [{"role": "user", "content": "Hi."}, reply("One.\n\nTwo."), USER]


def test_a_transcript_that_ends_with_the_human_has_no_response(tmp_path):
    """Cleaning drops and counts it as empty. The human's last words must not become a response."""
    talk = "\n\nHuman: Why?\n\nAssistant: Yes.\n\nHuman: Oh."
    assert read_one(tmp_path, {"chosen": talk, "rejected": talk}).chosen == ""


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Why?", "response": "So."}, [USER]),
        ({"prompt": "Why?", "completion": "So."}, [USER]),
        ({"prompt": [USER], "completion": [reply("So.")]}, [USER]),
        ({"messages": [SYSTEM, USER, reply("So.")]}, [SYSTEM, USER]),
        ({"messages": [SYSTEM, USER, reply("So.")], "system": "Be long."}, [SYSTEM, USER]),  # one system turn
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, [USER]),
        ({"instruction": "Add.", "input": "1 and 2", "output": "So."}, [{"role": "user", "content": "Add.\n1 and 2"}]),
        (
            {"instruction": "Why?", "output": "So.", "history": [["Hi.", "Hello."]]},
            [{"role": "user", "content": "Hi."}, reply("Hello."), USER],
        ),
    ],
)
def test_demonstrations_in_every_form(tmp_path, row, prompt):
    read = read_one(tmp_path, row)
    assert (read.kind, read.prompt, read.response) == ("demonstration", prompt, "So.")


@pytest.mark.pitfall(38)
@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_unpaired_rows_have_their_label(tmp_path, label):
    for row in ({"prompt": "Why?", "completion": "So."}, {"messages": [USER, reply("So.")]}):
        read = read_one(tmp_path, {**row, "label": label})
        assert (read.kind, read.prompt, read.response, read.label) == ("unpaired", [USER], "So.", bool(label))


@pytest.mark.parametrize("row", [{"score": 4}, {"rating": 4}])
def test_ratings_have_their_score_unchanged(tmp_path, row):
    for shown in ({"prompt": "Why?", "completion": "So."}, {"messages": [USER, reply("So.")]}):
        read = read_one(tmp_path, {**shown, **row})
        assert (read.kind, read.prompt, read.response, read.score) == ("ratings", [USER], "So.", 4)
    assert read_one(tmp_path, {"prompt": "Why?", "response": "So.", **row}, "demonstration").kind == "demonstration"


def test_rankings_have_responses_and_ranks(tmp_path):
    read = read_one(tmp_path, {"prompt": "Why?", "responses": ["a", "b", "c"], "ranks": [2, 1, "?"]})
    assert (read.kind, read.prompt, read.ranked, read.ranks) == ("rankings", [USER], ("a", "b", "c"), (2, 1, "?"))
    assert read.responses == ["a", "b", "c"]


@pytest.mark.pitfall(38)
def test_pairs_may_have_a_margin_unchanged(tmp_path):
    assert read_one(tmp_path, {"prompt": "Why?", **PAIR, "margin": 0.5}).margin == 0.5
    assert read_one(tmp_path, {"prompt": "Why?", **PAIR, "margin": "much"}).margin == "much"
    assert read_one(tmp_path, {"prompt": "Why?", "response": "a", "margin": 0.5}).margin is None


def test_rows_may_name_the_data_set_they_come_from(tmp_path):
    assert read_one(tmp_path, {"prompt": "Why?", **PAIR, "source": "forum"}).source == "forum"
    assert read_one(tmp_path, {"prompt": "Why?", **PAIR, "source": 3}).source is None


@pytest.mark.parametrize(
    ("answer", "exact"),
    [("6 * 7 = 42\n#### 42", "42"), ("#### -1,234,567 ", "-1234567"), ("####2020-01-01", "2020-01-01")],
)
def test_exact_answers_are_extracted_from_the_reasoning(tmp_path, answer, exact):
    read = read_one(tmp_path, {"question": "Why?", "answer": answer})
    assert (read.kind, read.prompt, read.response, read.answer) == ("question_answer", [USER], answer, exact)


def test_answer_pattern_can_be_given_and_has_one_group(tmp_path):
    row = {"question": "Why?", "answer": "It is (A) or (B)."}
    assert read_one(tmp_path, row, answer_pattern=r"\((\w)\)").answer == "B"
    for pattern in ("(", "no group"):
        with pytest.raises(UserError, match=r"prepare.answer_pattern"):
            read_one(tmp_path, row, answer_pattern=pattern)


@pytest.mark.parametrize(("answer", "exact"), [("5", "5"), (5, "5"), (" New York ", "New York"), ("1,200", "1200")])
def test_a_short_answer_needs_no_pattern(tmp_path, answer, exact):
    read = read_one(tmp_path, {"question": "Why?", "answer": answer})
    assert (read.response, read.answer) == (str(answer), exact)


def test_reasoning_without_a_match_has_no_answer(tmp_path):
    for answer in ("First.\nThen 5.", "a" * 65, ["5"], True):
        with pytest.raises(UserError, match=r"data.jsonl, line 1: .* None of the first 1 rows is readable"):
            read_one(tmp_path, {"question": "Why?", "answer": answer})


def test_json_values_are_never_reinterpreted(tmp_path):
    """A JSON reader that infers types per column would turn the first column into dates and the second into numbers."""
    path = write(
        tmp_path / "d.jsonl", {"prompt": "2020-01-01", "response": "5"}, {"prompt": "2021-05-05", "response": "6"}
    )
    assert [(row.prompt[0]["content"], row.response) for row in read_rows(path, "")] == [
        ("2020-01-01", "5"),
        ("2021-05-05", "6"),
    ]


ROWS = [{"prompt": "a\u2028b\x85c", "response": "ä 🙂"}, {"prompt": "d", "response": "e\nf"}]
EXPECTED = [("a\u2028b\x85c", "ä 🙂"), ("d", "e\nf")]


def texts(rows):
    return [(row.prompt[0]["content"], row.response) for row in rows]


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json", "d[1]*.jsonl"])
def test_files_of_lines(tmp_path, name):
    assert texts(read_rows(write(tmp_path / name, *ROWS), "")) == EXPECTED


def test_line_numbers_count_blank_lines_and_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt":"a","response":"b"}\r\n\r\n\n{"prompt":"c","response":"d"}')
    assert [row.line for row in read_rows(path, "")] == [1, 4]


def test_json_list(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8")
    rows = read_rows(path, "")
    assert texts(rows) == EXPECTED
    assert [row.line for row in rows] == [1, 2]


def test_parquet_and_saved_folders(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(str(tmp_path / "d.parquet"))
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "both"))
    assert texts(read_rows(tmp_path / "d.parquet", "")) == EXPECTED
    assert texts(read_rows(tmp_path / "saved", "")) == EXPECTED
    both = read_rows(tmp_path / "both", "")
    assert [(row.file, row.line) for row in both] == [
        ("both#train", 1),
        ("both#train", 2),
        ("both#test", 1),
        ("both#test", 2),
    ]


def test_a_truncated_saved_folder_is_named(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(UserError, match=r"saved could not be read"):
        read_rows(tmp_path / "saved", "")


def test_messages_are_unchanged_in_parquet(tmp_path):
    """Arrow sets a field that only some messages have to null in the others, and null is not text."""
    messages = [{**USER, "name": None}, {**reply("So."), "name": "bot"}]
    datasets.Dataset.from_list([{"messages": messages}]).to_parquet(str(tmp_path / "d.parquet"))
    (row,) = read_rows(tmp_path / "d.parquet", "")
    assert (row.prompt, row.response) == ([USER], "So.")


def test_all_files_of_a_folder_are_read_in_order(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", ROWS[0])
    write(folder / "test.jsonl.gz", ROWS[1])
    (folder / "LICENSE").write_text("MIT")
    assert [(row.file, row.line) for row in read_rows(folder, "")] == [("set/test.jsonl.gz", 1), ("set/train.jsonl", 1)]


@pytest.mark.parametrize("step", [1, -1])
def test_order_of_files_does_not_depend_on_the_disk(tmp_path, monkeypatch, step):
    """Two simulated disks: one lists names forwards, the other backwards."""
    walk = os.walk

    def listing(folder, **settings):
        for here, folders, names in walk(folder, **settings):
            yield here, folders, sorted(names)[::step]

    monkeypatch.setattr(os, "walk", listing)
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        write(tmp_path / name, ROWS[0])
    assert [row.file.split("/")[1] for row in read_rows(tmp_path, "")] == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_a_changed_file_is_read_again_and_no_cache_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "d.jsonl", ROWS[0])
    assert len(read_rows(path, "")) == 1
    write(path, *ROWS)
    assert len(read_rows(path, "")) == 2
    assert [item.name for item in tmp_path.iterdir()] == ["d.jsonl"]


def test_hub_id_is_read_at_its_revision(monkeypatch):
    asked = []

    def load_dataset(name, config, revision, split):
        asked.append((name, config, revision, split))
        part = datasets.Dataset.from_list(ROWS[:1])
        return part if split else datasets.DatasetDict({"train": part})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [row.file for row in read_rows(None, "org/name@0123abcd:main#train")] == ["org/name@0123abcd:main#train"]
    assert [row.file for row in read_rows(None, "org/name@0123abcd")] == ["org/name@0123abcd#train"]
    assert asked == [("org/name", "main", "0123abcd", "train"), ("org/name", None, "0123abcd", None)]


@pytest.mark.parametrize("hub", ["org/name", "org/name@main", "name@0123abcd", "org/name#train"])
def test_hub_id_without_a_commit_is_rejected(hub):
    with pytest.raises(UserError, match=r"not pinned to a commit. Write org/name@COMMIT"):
        read_rows(None, hub)


def test_unreachable_hub(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        UserError, match=r"^prepare.hub org/name@0123abcd could not be read: Couldn't reach the Hub. Check"
    ):
        read_rows(None, "org/name@0123abcd")


def gzipped_rows(count):
    return gzip.compress(
        "".join(json.dumps({"prompt": f"{i * 7919 % 1000}", "response": "b"}) + "\n" for i in range(count)).encode()
    )


GOOD = b'{"prompt":"a","response":"b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b"", r"d.jsonl is empty"),
        ("d.jsonl", b"\n \n", r"d.jsonl is empty"),
        ("d.jsonl.gz", gzip.compress(b""), r"d.jsonl.gz is empty"),
        (
            "d.jsonl",
            GOOD + b'{"prompt":"a","resp',
            r"d.jsonl, line 2 is not JSON .* and has no line end: the file is truncated. Copy it",
        ),
        ("d.jsonl", GOOD + b"\xff\n", r"d.jsonl, line 2 is not UTF-8"),
        ("d.jsonl.gz", gzip.compress(GOOD + b"\xff\n"), r"d.jsonl.gz, line 2 is not UTF-8"),
        ("d.json", b'[{"prompt": "\xff"}]', r"d.json is not UTF-8"),
        ("d.jsonl.gz", gzipped_rows(9)[:-12], r"d.jsonl.gz, line \d+ cannot be read: Compressed file ended"),
        ("d.jsonl.gz", GOOD, r"d.jsonl.gz, line 1 cannot be read: Not a gzipped file"),
        ("d.json", b'[{"prompt": "a"', r"d.json is not JSON after row 0"),
        ("d.json", b'[{"prompt": "a", "response": "b"},]', r"d.json is not JSON after row 1"),
        ("d.json", b'[{"prompt": "a", "response": "b"} {}]', r"d.json is not JSON after row 1"),
        ("d.json", b"[" + b'{"a":' + b"[" * 100_000, r"d.json, row 1 is nested too deeply"),
        ("d.json", b"[]", r"d.json contains no rows"),
        ("d.json", b"[1]", r"d.json, line 1: int instead of a JSON object"),
        ("d.parquet", b"PAR1 and no more", r"d.parquet could not be read"),
        ("d.xlsx", b"prompt,response\n", r"d.xlsx has an unknown file type"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(tmp_path / name, "")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "format", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "auto", "the field 'rejected' is missing; the row has: chosen, prompt."),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "auto", "no value in 'rejected'. None of the first 1 rows"),
        ({"prompt": "a"}, "demonstration", "the field 'response' or 'completion' or 'output' is missing"),
        ({"text": "a"}, "auto", "the row has: text."),
        ({"question": "a"}, "auto", "the field 'answer' is missing; the row has: question."),
        ({"question": "a"}, "question_answer", "the field 'answer' is missing; the row has: question."),
        ({"prompt": "a", "response": "b"}, "unpaired", "the field 'label' is missing"),
        ({"prompt": "a", "response": "b", "label": "good"}, "auto", "label not true or false"),
        ({"prompt": "a", "response": "b"}, "ratings", "the field 'score' or 'rating' is missing"),
        ({"prompt": "a", "responses": ["b", "c"]}, "rankings", "the field 'ranks' is missing"),
        ({"prompt": "a", "responses": "b", "ranks": [1]}, "auto", "str instead of a list in 'responses'"),
        ({"prompt": "a", "responses": ["b", 5], "ranks": [1, 2]}, "auto", "'responses' is not a list of texts"),
        ({"prompt": 5, "response": "b"}, "auto", "int instead of text or chat messages in 'prompt'"),
        ({"question": 5, "answer": "b"}, "auto", "int instead of text in 'question'"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "auto", "unknown role 'tool' of a message in 'messages'"),
        ({"messages": [{"role": "user", "content": None}]}, "auto", "message without text in 'messages'"),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "auto", "'history' is not a list of pairs"),
        ({"chosen": "Yes.", "rejected": "No."}, "auto", "no 'prompt', and 'chosen' is not a transcript"),
        ({"chosen": "Yes.", "rejected": "No."}, "preference", "the field 'prompt' or"),
        ({"prompt": "a", "response": [USER, reply("b")]}, "auto", "begin with a different prompt"),
    ],
)
def test_rows_with_missing_or_wrong_fields_are_named(tmp_path, row, format, message):
    path = write(tmp_path / "d.jsonl", row)
    with pytest.raises(UserError, match="^d.jsonl, line 1: .*" + re.escape(message)):
        read_rows(path, "", format)


def test_exactly_one_existing_source_is_required(tmp_path):
    with pytest.raises(UserError, match=r"d.jsonl does not exist. Set prepare.path"):
        read_rows(tmp_path / "d.jsonl", "")
    with pytest.raises(UserError, match=r"contains no data file"):
        read_rows(tmp_path, "")
    with pytest.raises(UserError, match=r"Set either prepare.path or prepare.hub"):
        read_rows(None, "")
    with pytest.raises(UserError, match=r"prepare.format is 'pairs'. Choose one of: auto, preference"):
        read_rows(tmp_path, "", "pairs")


@pytest.mark.parametrize("form", FORMATS[1:])
def test_every_format_has_a_parser(form):
    """A row without fields lacks one of the format, whatever the format is."""
    with pytest.raises(MissingFieldError):
        parse_row(Fields("rows.jsonl", 1, {}), form, ANSWER_PATTERN)


def test_the_kind_is_that_of_the_first_readable_row():
    rows = [RawRow("rows.jsonl", 1, [], fault="not JSON"), RawRow("rows.jsonl", 2, [], response="a")]
    assert kind_of(rows) == "demonstration"
