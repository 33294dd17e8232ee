"""Tables as CSV, which DVC's plots and spreadsheets read."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under their keys in the order in which those first appear; a cell is empty where a row lacks the key.

    Numbers keep all their digits, so equal rows make equal bytes.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
