"""Read and write JSON Lines: one compact object per line, UTF-8."""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_core.common.errors import UserError


def read_jsonl(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the rows of a file, or its first `limit` rows.

    Raises:
        UserError: the file is missing, or a line is not JSON; the message names file and line.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist. Run the stage that writes it with: dvc repro")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, limit), 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}, line {number} is not JSON ({error}). Restore it: dvc checkout") from error
    return rows


def rows_if_any(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an optional file; no rows if it does not exist."""
    return read_jsonl(path) if path.is_file() else []


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows; keys keep their order."""
    with path.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
