"""The table of tasks, found by their files: each class in tasks/problems/NAME.py declares the kinds of its data."""

import json
from functools import cache
from pathlib import Path

from rlhf_core.common.classes import classes_in
from tasks.files.paths import CARD
from tasks.problems.problem import Problem


@cache
def problems() -> dict[str, type[Problem]]:
    """Return every task by the kinds of its data."""
    found = classes_in("tasks.problems", Problem, "kinds")
    return {kind: problem for own in found.values() for problem in own for kind in problem.kinds}


def problem_of(kind: str) -> Problem:
    """Return the task for data of this kind (kinds are named in tasks.files.formats).

    Raises:
        ValueError: no task has this kind.
    """
    if kind not in problems():
        raise ValueError(f"no task for data of kind '{kind}'; the kinds are {', '.join(problems())}")
    return problems()[kind](kind)


def prepared_problem() -> Problem:
    """Return the task of the data that stage prepare made."""
    return problem_of(json.loads(CARD.read_text(encoding="utf-8"))["kind"])


def generated_problem(form: str) -> Problem | None:
    """Return the task that stage prepare generates for this prepare.format; None if it reads the user's rows."""
    problem = problems().get(form)
    return problem(form) if problem is not None and problem.is_generated else None


def owner_of(path: str) -> Problem | None:
    """Return the generated task that a world or a model config comes with; None if the file is the user's."""
    first = Path(path).parts[:1]
    return next((problem(kind) for kind, problem in problems().items() if first == (problem.folder,)), None)
