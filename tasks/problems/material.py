"""The rows that stage prepare works on: generated, or the user's own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tasks.data.clean import Cleaned
from tasks.data.formats import RawRow
from tasks.params.schema import Params
from tasks.problems.problem import Problem

Files = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Material:
    """Rows, and a function that makes files of those that are kept."""

    problem: Problem
    source: str  # a description for the data card
    rows: list[RawRow]
    texts: list[str]  # the tokenizer is trained on them
    max_dropped: float  # largest allowed share of dropped rows
    files: Callable[[Cleaned], Files]  # the files of data/prepared, by name without .jsonl


class Generated(Problem):
    """A task whose data this project generates."""

    is_generated = True

    def generate(self, params: Params) -> Material:
        """Generate all rows; equal parameters give equal rows."""
        raise NotImplementedError
