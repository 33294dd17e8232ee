"""The rows that stage prepare works on: generated, or the user's own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data.clean import SURROGATE, Cleaned, split_by_prompt, to_prepared
from tasks.data.formats import RawRow
from tasks.data.readers import read_rows
from tasks.params.schema import Params
from tasks.problems.problem import Problem
from tasks.problems.table import generated_problem, problem_of

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


def material(params: Params) -> Material:
    """Return the rows of prepare.format: generated, or read from prepare.path or prepare.hub."""
    section = params.prepare
    generated = generated_problem(section.format)
    if isinstance(generated, Generated):
        return generated.generate(params)
    path = None if section.hub else Path(section.path)
    rows = read_rows(path, section.hub, section.format, section.answer_pattern, section.preference_base)
    rows = rows[: section.limit]
    # If all rows are broken, they are counted and rejected later, for any task.
    problem = problem_of(next((row.kind for row in rows if not row.fault), "demonstration"))
    texts = [text for row in rows for text in row.texts if not SURROGATE.search(text)]
    name = section.hub or Path(section.path).name
    return Material(problem, name, rows, texts, section.max_dropped, lambda cleaned: _split(problem, cleaned, params))


def _split(problem: Problem, cleaned: Cleaned, params: Params) -> Files:
    """Split the user's rows by prompt into training, development and test, and a split for a judge model if needed."""
    section = params.prepare
    held_out = {"development": section.development_fraction, "test": section.test_fraction}
    if problem.needs_judge_model:
        held_out["judge"] = section.judge_fraction
    splits = split_by_prompt(cleaned.rows, {"train": 1 - sum(held_out.values()), **held_out}, params.run.seed)
    return to_prepared(splits, problem.kind, params.collect.scale)
