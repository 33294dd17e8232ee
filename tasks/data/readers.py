"""Read rows from a file, a folder of files, a saved data set, or a data set hub at a pinned revision.

`datasets` and pyarrow are imported only when needed, since the first rows of a text file are checked before each run.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.common.errors import UserError
from rlhf_core.scoring.answers import ANSWER_PATTERN
from rlhf_core.scoring.answers import answer_pattern as checked_pattern
from tasks.data.detect import detect_format, missing_field
from tasks.data.fields import Fields, MissingFieldError
from tasks.data.formats import RawRow, faulty, parse_row
from tasks.data.text_files import TEXT_SUFFIXES, read_text_file
from tasks.files.formats import AUTO, ROWS

if TYPE_CHECKING:
    import datasets

FORMATS = (AUTO, *ROWS)
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
LOOKED_AT = 20  # number of first rows from which the format is detected
MOST_FILES = 100_000  # per folder; a folder with more files is probably not a data set
HUB_ID = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{7,40})(:(?P<config>[^#]+))?(#(?P<split>.+))?", re.ASCII
)


def read_rows(
    path: Path | None,
    hub: str,
    format: str = AUTO,
    answer_pattern: str = ANSWER_PATTERN,
    preference_base: int | None = None,
) -> list[RawRow]:
    """Return every row of the source in order. An unreadable row has a `fault`.

    `auto` detects the format from the first row. All files of a folder are read, and all splits of a saved or hub data
    set unless one is named, since the pipeline makes its own splits by prompt.

    Raises:
        UserError: the source is missing, empty, truncated or of unknown type; the first row lacks a field of the
            format; none of the first rows is readable; all preferences are 0 or 1 and `preference_base` is not set;
            or the hub id is not pinned.
    """
    if (path is None) == (not hub):
        raise UserError("the data needs exactly one source. Set either prepare.path or prepare.hub.")
    source = _from_hub(hub) if path is None else _from_path(path)
    choices: set[object] = set()
    rows = list(_parse(_noting_choices(source, choices), str(path or hub), format, answer_pattern, preference_base))
    if preference_base is None and choices and choices <= {0, 1}:
        raise UserError(
            f"'preference' is always 0 or 1 in {path or hub}, so it is unclear which response 1 means. "
            "Set prepare.preference_base to 1 (1 first, 2 second, 0 tie) or to 0 (0 first, 1 second)."
        )
    return rows


def with_file_sources(rows: Iterable[RawRow]) -> list[RawRow]:
    """Return the rows, each without `source` with the name of its file as source.

    In a folder, it is the first part of the path below it: FOLDER/helpful.jsonl and FOLDER/helpful/train.jsonl.gz are
    both `helpful`, as is helpful.jsonl alone.
    """
    return [replace(row, source=_file_source(row.file)) if row.source is None else row for row in rows]


def _file_source(file: str) -> str:
    """`hh/helpful-base/train.jsonl.gz` -> `helpful-base`; `hh/helpful.jsonl` and `helpful.jsonl` -> `helpful`."""
    parts = file.split("/")
    part = parts[1] if len(parts) > 1 else parts[0]
    suffix = next((suffix for suffix in SUFFIXES if part.endswith(suffix)), "")
    return part.removesuffix(suffix)


def first_rows(
    path: Path,
    format: str,
    answer_pattern: str = ANSWER_PATTERN,
    count: int = LOOKED_AT,
    preference_base: int | None = None,
) -> list[RawRow]:
    """Return the first `count` rows of a local source without reading the rest.

    Raises:
        UserError: see `read_rows`, as far as these rows show it.
    """
    rows = _parse(_from_path(path), str(path), format, answer_pattern, preference_base)
    return list(islice(rows, count))


def kind_of(rows: Sequence[RawRow]) -> str:
    """Return the kind of the rows of one source, that of the first readable row."""
    return next(row.kind for row in rows if not row.fault)


def _noting_choices(source: Iterable[Fields], choices: set[object]) -> Iterator[Fields]:
    """Yield the same rows and add the values of `preference` for numbered responses to `choices`."""
    for fields in source:
        if fields.has("preference") and fields.has("response_1") and not fields.first("chosen", "rejected"):
            value = fields.values["preference"]
            choices.add(value if isinstance(value, int | float) else None)
        yield fields


def _parse(
    source: Iterator[Fields], where: str, format: str, answer_pattern: str, preference_base: int | None
) -> Iterator[RawRow]:
    if format not in FORMATS:
        raise UserError(f"prepare.format is {format!r}. Choose one of: {', '.join(FORMATS)}.")
    checked_pattern(answer_pattern)
    base = 1 if preference_base is None else preference_base
    first = list(islice(source, LOOKED_AT))
    if not first:
        raise UserError(f"{where} contains no rows. Set prepare.path or prepare.hub to a data set with rows.")
    readable = [fields for fields in first if not fields.fault]
    try:
        if readable and format == AUTO:
            format = detect_format(readable)
        for fields in readable[:1]:
            parse_row(fields, format, answer_pattern, base)
    except MissingFieldError as error:
        at = readable[0]
        raise UserError(f"{at.file}, line {at.line}: {missing_field(at, error)}") from error

    def parsed(fields: Fields) -> RawRow:
        try:
            return parse_row(fields, format, answer_pattern, base)
        except MissingFieldError as error:
            return faulty(fields, str(error))

    rows = [parsed(fields) for fields in first]
    if all(row.fault for row in rows):
        raise UserError(
            f"{rows[0].file}, line {rows[0].line}: {rows[0].fault}. "
            f"None of the first {len(rows)} rows is readable. Correct them, or set prepare.format."
        )
    yield from chain(rows, map(parsed, source))


def _from_path(path: Path) -> Iterator[Fields]:
    mode = _mode(path)
    if stat.S_ISREG(mode):
        yield from _from_file(path, path.name)
    elif (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        import datasets

        with _readable(str(path), datasets.exceptions.DatasetsError):
            saved = datasets.load_from_disk(str(path))
        yield from _from_dataset(saved, path.name)
    else:
        for file in _files(path):
            # The data card can contain only file names in UTF-8.
            name = f"{path.name}/{file.relative_to(path).as_posix()}".encode(errors="replace").decode()
            yield from _from_file(file, name)


def _mode(path: Path) -> int:
    """Return the mode of a regular file or a folder on a disk.

    Raises:
        UserError: the path is anything else; reading a pipe, for example, could block forever.
    """
    try:
        mode = path.stat().st_mode
        real = path.resolve()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Set prepare.path to a data file or folder.") from error
    except (OSError, RuntimeError, ValueError) as error:  # for example circular links
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {why}. Set prepare.path to a data file or folder.") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or any(map(real.is_relative_to, ("/proc", "/sys"))):
        raise UserError(f"{path} is not a file or folder on a disk. Set prepare.path to a file or folder.")
    return mode


def _files(folder: Path) -> list[Path]:
    """Return the data files in a folder and its subfolders, sorted so that the order is the same on every machine."""
    files: list[Path] = []
    for here, folders, names in os.walk(folder, onerror=_unreadable):
        if link := next((name for name in folders if os.path.islink(os.path.join(here, name))), ""):
            # DVC does not follow such links, so the files would not be tracked.
            raise UserError(f"{here}/{link} is a link to a folder. Copy that folder here, or remove the link.")
        files += [Path(here, name) for name in names]
        if len(files) > MOST_FILES:
            raise UserError(
                f"{folder} contains more than {MOST_FILES:,} files. Set prepare.path to the folder of the data."
            )
    files = sorted(file for file in files if file.name.endswith(SUFFIXES))
    if not files:
        raise UserError(f"{folder} contains no data file ({', '.join(SUFFIXES)}). Set prepare.path to another folder.")
    return files


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}. Correct its permissions.") from error


def _from_file(path: Path, name: str) -> Iterator[Fields]:
    """Yield the rows of one file. `name` is the file's name in messages and in the data card."""
    _mode(path)
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path} has an unknown file type. Use a file that ends in {', '.join(SUFFIXES)}.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty. Download or copy it again.")
    yield from _from_parquet(path, name) if path.suffix == ".parquet" else read_text_file(path, name)


def _from_parquet(path: Path, name: str) -> Iterator[Fields]:
    from pyarrow import parquet

    with _readable(str(path)), parquet.ParquetFile(path) as table:
        rows = (values for batch in table.iter_batches(batch_size=1000) for values in batch.to_pylist())
        for number, values in enumerate(rows, 1):
            yield Fields(name, number, values)


def _from_dataset(data: "datasets.Dataset | datasets.DatasetDict", name: str) -> Iterator[Fields]:
    if isinstance(data, dict):  # the splits
        for split, part in data.items():
            yield from _from_dataset(part, f"{name}#{split}")
    else:
        for number, values in enumerate(data, 1):
            yield Fields(name, number, values)


def pinned(hub: str) -> re.Match[str]:
    """Return the match of HUB_ID for a hub id. Raises UserError if the id names no commit."""
    match = HUB_ID.fullmatch(hub)
    if match is None:
        raise UserError(
            f"prepare.hub {hub} is not pinned to a commit. Write org/name@COMMIT, followed by :CONFIG and #SPLIT if "
            "needed. The commit is on the data set's page under Files, History."
        )
    return match


def _from_hub(hub: str) -> Iterator[Fields]:
    match = pinned(hub)
    import datasets

    with _readable(f"prepare.hub {hub}", datasets.exceptions.DatasetsError):
        data = datasets.load_dataset(match["name"], match["config"], revision=match["revision"], split=match["split"])
    yield from _from_dataset(data, hub)


@contextmanager
def _readable(what: str, *more: type[Exception]) -> Iterator[None]:
    """Convert a library's exception about a broken or unreachable source into a UserError."""
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, *more)
    try:
        yield
    except kinds as error:
        cause = error.__cause__ or error
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise UserError(f"{what} could not be read: {first.rstrip('.')}. Check that it is complete.") from error
