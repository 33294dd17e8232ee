"""Read JSON Lines, JSON lists, CSV and TSV row by row, plain or gzipped.

The reader of `datasets` is not used, since it infers a type per column and turns answers such as "2020-01-01" into
dates and "5.5" into numbers. An unreadable row is returned with its fault. A file that is truncated or not UTF-8 text
is an error.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rlhf_core.common.errors import UserError
from tasks.data.fields import Fields, from_cell

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TEXT_SUFFIXES = tuple(kind + packed for kind in (".jsonl", ".json", *DELIMITERS) for packed in ("", ".gz"))
LONGEST_ROW = 1 << 26  # characters; this bounds the memory for a file without line ends
CHUNK = 1 << 20  # characters of a JSON list read at once
OPENING, NEXT = re.compile(r"\s*(\[)\s*(?=(\])|\S)"), re.compile(r"\s*(?:,|(\]))\s*")


def read_text_file(path: Path, name: str) -> Iterator[Fields]:
    """Yield the rows of a file that ends in one of TEXT_SUFFIXES. `name` is its name in messages and in the data card.

    Raises:
        UserError: the file is empty, truncated or not UTF-8 text, or is a table with wrong quotes or header.
    """
    delimiter = DELIMITERS.get(Path(path.name.removesuffix(".gz")).suffix)
    with _opened(path) as text:
        first = next((chunk.lstrip()[0] for chunk in _chunks(text, path, 1 << 12) if chunk.strip()), "")
    if not first:
        raise UserError(f"{path} is empty. Download or copy it again.")
    with _opened(path) as text:
        if delimiter is not None:
            yield from _table(text, path, name, delimiter)
        elif first == "[":
            yield from _list(text, path, name)
        else:
            yield from _json_lines(text, path, name)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    unpack: Any = gzip.open if path.name.endswith(".gz") else open
    # Bytes that are not UTF-8 become surrogates; _check_unicode finds them and names the line.
    with unpack(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        yield text


def _lines(text: TextIO, path: Path) -> Iterator[str]:
    """Yield lines with their line ends, each checked to be UTF-8."""
    number = 0
    try:
        while line := text.readline(LONGEST_ROW):
            number += 1
            _check_unicode(line, f"{path}, line {number}")
            if len(line) == LONGEST_ROW:
                raise UserError(
                    f"{path}, line {number} has more than {LONGEST_ROW:,} characters. Write one row per line."
                )
            yield line
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}, line {number + 1} cannot be read: {error}. Download or copy the file again."
        ) from error


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} is not UTF-8 text. Convert the file to UTF-8.") from error


def _json_lines(text: TextIO, path: Path, name: str) -> Iterator[Fields]:
    for number, line in enumerate(_lines(text, path), 1):
        if not line.strip():
            continue
        try:
            yield _fields(json.loads(line), name, number)
        except RecursionError:
            yield Fields(name, number, fault="JSON nested too deeply")
        except ValueError as error:
            if not line.endswith(("\n", "\r")):
                raise UserError(
                    f"{path}, line {number} is not JSON ({error}) and has no line end: the file is truncated. "
                    "Copy it again."
                ) from error
            yield Fields(name, number, fault=f"not JSON ({getattr(error, 'msg', 'number too long')})")


def _fields(values: Any, name: str, number: int) -> Fields:
    if not isinstance(values, dict):
        return Fields(name, number, fault=f"{type(values).__name__} instead of a JSON object {{...}}")
    return Fields(name, number, values)


def _list(text: TextIO, path: Path, name: str) -> Iterator[Fields]:
    """Yield the objects of one JSON list, with only one chunk and one row in memory."""
    decoder = json.JSONDecoder()
    buffer, at, number = "", 0, 0
    for chunk in _chunks(text, path, CHUNK):
        _check_unicode(chunk, str(path))
        buffer, at = buffer[at:] + chunk, 0
        error: Exception | None = None
        while error is None:
            separator = (NEXT if number else OPENING).match(buffer, at)
            if separator is not None and separator[separator.re.groups]:
                return
            try:
                value, end = decoder.raw_decode(buffer, len(buffer) if separator is None else separator.end())
            except RecursionError as deep:
                raise UserError(f"{path}, row {number + 1} is nested too deeply. Remove the row.") from deep
            except ValueError as incomplete:
                error = incomplete
            else:
                if end == len(buffer):  # a number may continue in the next chunk
                    break
                at, number = end, number + 1
                yield _fields(value, name, number)
        if len(buffer) > LONGEST_ROW:
            break
    raise UserError(f"{path} is not JSON after row {number}. Correct it, or copy it again if it is truncated.")


def _chunks(text: TextIO, path: Path, size: int) -> Iterator[str]:
    line = 1
    try:
        while chunk := text.read(size):
            line += chunk.count("\n")
            yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}, line {line} cannot be read: {error}. Download or copy the file again.") from error


def _table(text: TextIO, path: Path, name: str, delimiter: str) -> Iterator[Fields]:
    """Yield the rows of CSV or TSV with a header. A row's line is its first line; an empty cell is null."""
    csv.field_size_limit(LONGEST_ROW)
    rows = csv.reader(_lines(text, path), delimiter=delimiter, strict=True)
    header: list[str] = []
    begins = 1
    try:
        for cells in rows:
            if not header:
                header = _header(cells, path)
            elif cells and len(cells) != len(header):
                yield Fields(
                    name, begins, fault=f"{'more' if len(cells) > len(header) else 'fewer'} cells than the header"
                )
            elif cells:
                yield Fields(name, begins, {key: from_cell(key, cell) for key, cell in zip(header, cells, strict=True)})
            begins = rows.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {begins} is not CSV ({error}). Correct the quotes: double each quote inside a quoted cell."
        ) from error


def _header(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path} has two columns named '{twice}'. Rename one.")
    return names
