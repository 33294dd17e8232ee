"""Unreadable rows are dropped with a reason. A source whose first row lacks a field is rejected."""

import json
import os
import socket
import subprocess
import sys

import pytest
import yaml

from rlhf_core.common.errors import UserError
from tasks.common.source import model_source
from tasks.data.readers import first_rows, read_rows
from tasks.params.load import validate, with_values
from tasks.stages.prepare import _prepared
from tools.closure import ROOT

GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def faults(path, *rows, format="auto"):
    return [row.fault for row in read_rows(lines(path / "d.jsonl", *rows), "", format)]


@pytest.mark.pitfall(38)
def test_each_unreadable_row_has_a_reason(tmp_path):
    found = faults(
        tmp_path,
        GOOD,
        GOOD | {"rejected": None},
        GOOD | {"chosen": float("nan")},
        GOOD | {"prompt": 5},
        {"prompt": "a", "response": "b"},
        '{"prompt": "a", "chosen": }',
        '"text"',
        '{"prompt": ' + "[" * 100_000,
        GOOD | {"prompt": [{"role": "tool", "content": "x"}]},
        GOOD | {"prompt": [{"role": ["user"], "content": "x"}]},
        GOOD | {"label": "good"},
        GOOD | {"label": 1.5},
        GOOD | {"label": float("nan")},
    )
    assert found == [
        "",
        "no value in 'rejected'",
        "NaN in 'chosen'",
        "int instead of text or chat messages in 'prompt'",
        "no field 'chosen' or 'response_1'",
        "not JSON (Expecting value)",
        "str instead of a JSON object {...}",
        "JSON nested too deeply",
        found[8],
        found[9],
        "label not a number",
        "label outside 0 to 1",
        "NaN in 'label'",
    ]
    assert found[8].startswith("unknown role 'tool' of a message in 'prompt' (known roles: user, ")
    assert found[9].startswith("unknown role ['user'] of a message in 'prompt' ")


@pytest.mark.pitfall(38)
def test_a_null_in_the_first_row_does_not_hide_the_format(tmp_path):
    """The first row's label is null, but the rows are good and bad responses, not demonstrations."""
    row = {"prompt": "a", "response": "b"}
    assert faults(tmp_path, row | {"label": None}, row | {"label": True}) == ["no value in 'label'", ""]
    assert faults(tmp_path, row | {"score": float("nan")}, row | {"score": 3}) == ["NaN in 'score'", ""]
    # A column that is always null is ignored.
    assert [row.kind for row in read_rows(lines(tmp_path / "d.jsonl", row | {"label": None}), "")] == ["demonstration"]


@pytest.mark.pitfall(38)
@pytest.mark.parametrize(
    ("row", "format", "missing", "near"),
    [
        ({"prompt": "a", "chosn": "b", "rejected": "c"}, "auto", "'chosen'", "chosn"),
        ({"prompt": "a", "chosn": "b", "rejectd": "c"}, "auto", "'chosen'", "chosn"),
        ({"prompt": "a", "Chosen": "b", "rejected": "c"}, "auto", "'chosen'", "Chosen"),
        ({"promt": "a", "chosen": "b", "rejected": "c"}, "auto", "'prompt'", "promt"),
        ({"prompt": "a", "respones": "b"}, "auto", "'response' or 'completion' or 'output'", "respones"),
        ({"prompt": "a", "response": "b", "lable": True}, "auto", "'label'", "lable"),
        ({"prompt": "a", "response": "b", "scor": 3}, "auto", "'score' or 'rating'", "scor"),
        ({"qestion": "a", "answer": "b"}, "auto", "'question'", "qestion"),
        ({"question": "a", "anwser": "b"}, "auto", "'answer'", "anwser"),
        ({"prompt": "a", "responses": ["b", "c"], "rank": [1, 2]}, "auto", "'ranks'", "rank"),
        ({"prompt": "a", "response_1": "b", "response_2": "c", "preferance": 1}, "auto", "'preference'", "preferance"),
        ({"prompt": "a", "response1": "b", "response2": "c", "preference": 1}, "auto", "'response_1'", "response1"),
        ({"prompt": "a", "answr": "b"}, "demonstration", "'response' or 'completion' or 'output'", None),
    ],
)
def test_a_misspelt_field_is_named_with_the_similar_name(tmp_path, row, format, missing, near):
    with pytest.raises(UserError) as caught:
        read_rows(lines(tmp_path / "d.jsonl", row, GOOD), "", format)
    message = str(caught.value)
    assert message.startswith("d.jsonl, line 1: the field ")
    assert missing in message.split(" is missing", maxsplit=1)[0]
    assert f"; the row has: {', '.join(sorted(row))}. " in message
    assert (f"; '{near}' is similar" in message and f"Rename '{near}'" in message) if near else "similar" not in message


def test_fields_with_similar_but_other_names_are_ignored(tmp_path):
    row = {"prompt": "a", "response": "b", "sources": ["x"], "labels": ["y"], "scores": {}, "category": "z"}
    assert [row.kind for row in read_rows(lines(tmp_path / "d.jsonl", row), "")] == ["demonstration"]


def test_a_source_without_a_readable_first_row_is_rejected(tmp_path):
    bad = {"prompt": "a", "chosen": "b", "rejected": None}
    path = lines(tmp_path / "d.jsonl", *[bad] * 20, GOOD)
    with pytest.raises(UserError, match=r"^d.jsonl, line 1: no value in 'rejected'. None of the first 20 rows is read"):
        read_rows(path, "", "preference")
    assert [bool(row.fault) for row in read_rows(lines(path, *[bad] * 19, GOOD), "", "preference")] == [True] * 19 + [
        False
    ]


def test_first_rows_are_read_without_the_rest(tmp_path):
    path = lines(tmp_path / "d.jsonl", *[GOOD] * 30)
    with path.open("ab") as handle:
        handle.write(b"\xff\n")
    assert len(first_rows(path, "auto")) == 20
    assert [row.line for row in first_rows(path, "auto", count=2)] == [1, 2]
    with pytest.raises(UserError, match="line 31 is not UTF-8"):
        read_rows(path, "")
    # The first chunk of a list contains 20 rows; errors far behind them are not seen.
    lists = tmp_path / "d.json"
    lists.write_text("[" + ",".join([json.dumps(GOOD | {"prompt": "x" * 30_000})] * 100) + ",")
    assert len(first_rows(lists, "auto")) == 20
    with pytest.raises(UserError, match="not JSON after row 100"):
        read_rows(lists, "")


def test_first_rows_of_text_import_no_heavy_library(tmp_path):
    path = lines(tmp_path / "d.jsonl", GOOD)
    code = (
        "import sys; from pathlib import Path; from tasks.data.readers import first_rows;"
        f"first_rows(Path({str(path)!r}), 'auto');"
        "print([name for name in ('torch', 'datasets', 'pyarrow', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def refused(path):
    with pytest.raises(UserError) as caught:
        first_rows(path, "auto")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_path_that_is_not_a_file_is_rejected_without_opening_it(tmp_path):
    """Opening a pipe without a writer would block forever."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is not a file or folder on a disk" in refused(tmp_path / "pipe.jsonl")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "d.jsonl").symlink_to(tmp_path / "pipe.jsonl")
    assert "d.jsonl is not a file or folder on a disk" in refused(folder)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jsonl"))
        assert "is not a file or folder on a disk" in refused(tmp_path / "s.jsonl")
    for name in ("/dev/null", "/proc/self", "/proc/self/environ", "/sys"):
        (tmp_path / "link").symlink_to(name)
        assert "is not a file or folder on a disk" in refused(tmp_path / "link")
        (tmp_path / "link").unlink()


def test_circular_links_are_rejected(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    assert "a.jsonl cannot be read: " in refused(tmp_path / "a.jsonl")
    folder = tmp_path / "folder" / "inner"
    folder.mkdir(parents=True)
    lines(folder / "d.jsonl", GOOD)
    assert len(first_rows(folder.parent, "auto")) == 1
    (folder / "up").symlink_to(folder.parent)
    assert "inner/up is a link to a folder. Copy that folder here, or remove the link" in refused(folder.parent)


def test_a_folder_with_too_many_files_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.data.readers.MOST_FILES", 2)
    for name in "abc":
        lines(tmp_path / f"{name}.jsonl", GOOD)
    assert "contains more than 2 files" in refused(tmp_path)


def test_a_row_without_end_is_rejected_at_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.data.text_files.LONGEST_ROW", 1000)
    assert "line 1 has more than 1,000 characters" in refused(
        lines(tmp_path / "d.jsonl", GOOD | {"prompt": "a" * 1000})
    )
    monkeypatch.setattr("tasks.data.text_files.CHUNK", 100)
    path = tmp_path / "d.json"
    path.write_text(json.dumps([GOOD, GOOD | {"prompt": "a" * 5000}]))
    assert "is not JSON after row 1" in refused(path)
    path.write_text(json.dumps([GOOD | {"prompt": "a" * length} for length in (10, 500, 100, 300)]))
    assert [len(row.prompt[0]["content"]) for row in read_rows(path, "")] == [10, 500, 100, 300]


def test_a_file_name_that_is_not_utf8_can_be_written_into_the_card(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jsonl", "w") as handle:
        handle.write(json.dumps(GOOD))
    (row,) = read_rows(tmp_path, "")
    assert row.file == f"{tmp_path.name}/?.jsonl"


def test_prepare_drops_unreadable_rows_and_lists_them_by_line(tmp_path, capsys):
    """A lone surrogate, half of an emoji, would make the tokenizer's training fail."""
    demonstrations = [{"prompt": f"prompt {number}", "response": f"so {number}"} for number in range(60)]
    broken = [
        {"prompt": "a", "response": "half \ud83d"},
        {"prompt": "a", "response": None},
        '{"prompt": ' + "[" * 100_000,
    ]
    lines(tmp_path / "d.jsonl", *demonstrations[:2], *broken, *demonstrations[2:])
    overrides = {"prepare.format": "demonstration", "prepare.path": str(tmp_path / "d.jsonl")}
    raw = with_values(yaml.safe_load((ROOT / "params.yaml").read_text()), overrides)
    params = validate(raw)
    _, files, card = _prepared(params, model_source(params.model, ROOT))
    assert card["dropped_rows"] == [
        {"file": "d.jsonl", "line": 3, "reason": "invalid Unicode text"},
        {"file": "d.jsonl", "line": 4, "reason": "no value in 'response'"},
        {"file": "d.jsonl", "line": 5, "reason": "JSON nested too deeply"},
    ]
    assert (card["read"], card["kept"], len(files["prompts_test"])) == (63, 60, 6)
    assert capsys.readouterr().out == (
        "prepare      3 of 63 rows dropped from d.jsonl: JSON nested too deeply 1, invalid Unicode text 1, "
        "no value in 'response' 1. data/prepared/card.json lists them.\n"
    )
    strict = validate(with_values(raw, {"prepare.max_dropped": 0.04}))
    message = r"3 of 63 rows are unusable.* no value in 'response' \(1, first in d.jsonl, line 4\)"
    with pytest.raises(UserError, match=message):
        _prepared(strict, model_source(strict.model, ROOT))
