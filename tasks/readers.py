"""Where rows come from: a file, a folder of files, a saved data set, or a data set hub at a pinned revision.

All of it goes through `datasets`. JSON is taken from it as text and parsed here: its own JSON reader infers a type per
column, which turns answers such as "2020-01-01" into dates and "5.5" into numbers, and it cannot name a broken line.
Its caches stand in a temporary folder, so that a changed file is never taken for the old one.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets

from rlhf_core.errors import UserError
from tasks.formats import Fields, RawRow, detect_format, parse_row

FORMATS = ("auto", "preference", "implicit", "demonstration", "unpaired", "ratings", "rankings", "question_answer")
ANSWER_PATTERN = r"####\s*(.+)$"
JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
SUFFIXES = (*JSON_SUFFIXES, ".parquet")
HUB_ID = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{7,40})(:(?P<config>[^#]+))?(#(?P<split>.+))?", re.ASCII
)


def read_rows(path: Path | None, hub: str, format: str = "auto", answer_pattern: str = ANSWER_PATTERN) -> list[RawRow]:
    """Every row of the source, in its order, none left out.

    `auto` takes the format of the first row for all. Of a folder all files are read, of a saved or hub data set all
    splits unless one is named: the pipeline makes its own splits by prompt.

    Raises:
        UserError: if the source is missing, empty, cut off or of unknown kind, a row lacks a field that its format
            needs, or the hub id is not pinned.
    """
    if format not in FORMATS:
        raise UserError(f"prepare.format is {format!r}. Choose one of: {', '.join(FORMATS)}.")
    if (path is None) == (not hub):
        raise UserError("the data needs one source. Set either prepare.path or prepare.hub.")
    pattern = _answer_pattern(answer_pattern)
    rows = []
    for fields in _from_hub(hub) if path is None else _from_path(path):
        if format == "auto":
            format = detect_format(fields)
        rows.append(parse_row(fields, format, pattern))
    if not rows:
        raise UserError(f"{path or hub} holds no rows. Name a data set that does.")
    return rows


def _answer_pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"prepare.answer_pattern {text!r} is no regular expression: {error}. Mend it.") from error
    if pattern.groups != 1:
        raise UserError(f"prepare.answer_pattern {text!r} needs one group ( ), which is the answer. Mend it.")
    return pattern


def _from_path(path: Path) -> Iterator[Fields]:
    if not path.exists():
        raise UserError(f"{path} does not exist. Set prepare.path to a data file or folder.")
    if path.is_file():
        yield from _from_file(path, path.name)
    elif (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        with _readable(str(path)):
            saved = datasets.load_from_disk(str(path))
        yield from _from_dataset(saved, path.name)
    else:
        # Sorted, and named from the folder on: the same on every machine.
        files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES))
        if not files:
            raise UserError(f"{path} holds no data file ({', '.join(SUFFIXES)}). Set prepare.path to one.")
        for file in files:
            yield from _from_file(file, f"{path.name}/{file.relative_to(path).as_posix()}")


def _from_file(path: Path, name: str) -> Iterator[Fields]:
    """Rows of one file; `name` stands for it in messages and in the data card."""
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path} is of an unknown kind. Name a file that ends in {', '.join(SUFFIXES)}.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty. Fetch or copy it again.")
    with TemporaryDirectory() as cache:
        # The library expands * and [ in names; a link of our own naming has none.
        link = Path(cache, "rows" + next(suffix for suffix in SUFFIXES if path.name.endswith(suffix)))
        link.symlink_to(path.resolve())
        if path.suffix == ".parquet":
            with _readable(str(path)):
                table = datasets.Dataset.from_parquet(str(link), cache_dir=cache)
            yield from _from_dataset(table, name)
        elif _check_text(path) == b"[":
            yield from _from_list(_text(path, link, "document")["text"][0], path, name)
        else:
            yield from _from_lines(_text(path, link, "line")["text"], path, name)


def _check_text(path: Path) -> bytes:
    """The first character of a text file that is not a space, once all of it is known to be readable."""
    first = b""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007 (the messages below need it)
                line.decode("utf-8")
                first = first or line.removeprefix(b"\xef\xbb\xbf").strip()[:1]
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}, line {number + 1} cannot be read: {error}. Fetch or copy the file again.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number} is not UTF-8 text ({error.reason}). Convert the file.") from error
    if not first:
        raise UserError(f"{path} is empty. Fetch or copy it again.")
    return first


def _text(path: Path, link: Path, unit: str) -> datasets.Dataset:
    with _readable(str(path)):
        return datasets.Dataset.from_text(str(link), cache_dir=str(link.parent), sample_by=unit, encoding="utf-8-sig")


def _from_lines(lines: Iterable[str], path: Path, name: str) -> Iterator[Fields]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                values = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number} is not JSON ({error}). Mend it, or copy the file again if it is cut off."
                ) from error
            yield _fields(values, name, number)


def _from_list(text: str, path: Path, name: str) -> Iterator[Fields]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}). Mend it, or copy it again if it is cut off.") from error
    for number, values in enumerate(rows, 1):
        yield _fields(values, name, number)


def _fields(values: Any, name: str, number: int) -> Fields:
    if not isinstance(values, dict):
        raise UserError(f"{name}, line {number} is not a JSON object {{...}} but {type(values).__name__}. Mend it.")
    return Fields(name, number, values)


def _from_dataset(data: datasets.Dataset | datasets.DatasetDict, name: str) -> Iterator[Fields]:
    if isinstance(data, datasets.DatasetDict):
        for split, part in data.items():
            yield from _from_dataset(part, f"{name}#{split}")
    else:
        for number, values in enumerate(data, 1):
            yield Fields(name, number, values)


def _from_hub(hub: str) -> Iterator[Fields]:
    match = HUB_ID.fullmatch(hub)
    if match is None:
        raise UserError(
            f"prepare.hub is {hub}, which is not pinned. Write org/name@COMMIT, with :CONFIG and #SPLIT after it where "
            "needed; the commit stands on the data set's page under Files, History."
        )
    with _readable(f"prepare.hub {hub}"):
        data = datasets.load_dataset(match["name"], match["config"], revision=match["revision"], split=match["split"])
    yield from _from_dataset(data, hub)


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turns whatever `datasets` raises for a broken or unreachable source into a message for the user."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise UserError(f"{what} could not be read: {first.rstrip('.')}. Check that it is there and whole.") from error
