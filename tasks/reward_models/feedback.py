"""The feedback that a reward model learns from: the rows of its loss, all of them or those of its sources."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_core.algorithms.base.table import reward_loss
from rlhf_core.common.batch import Unit
from rlhf_core.common.data import Data
from rlhf_core.common.errors import UserError
from rlhf_core.common.fields import from_section
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import PREFERENCES
from rlhf_core.feedback.table import form_feeding, stored_forms
from tasks.common.rows import READERS, rating_scale, row_sources
from tasks.files.jsonl import rows_if_any
from tasks.files.paths import FEEDBACK, rows
from tasks.params.schema import Params
from tasks.params.sections import nearest
from tasks.problems.problem import Problem
from tasks.reward_models.start import Start


@dataclass(frozen=True)
class Fit:
    """One reward model or ensemble to train. The held-out units have the same form as the training units."""

    name: str
    algorithm: Any
    train: list[Unit]
    held_out: list[Unit]
    rating_scale: tuple[float, float] | None = None  # mean and standard deviation by which scores are standardised
    members: int = 1
    sources: Sequence[str] | None = None  # of the rows; None for all rows


def present_forms() -> list[Form]:
    """The forms of feedback that have training rows."""
    return [form for form in stored_forms() if rows_if_any(rows(FEEDBACK, form.file, "train"))]


def configured(params: Params, problem: Problem, begin: Start, name: str, sources: Sequence[str] | None = None) -> Fit:
    """Return the configured loss with the rows that it learns from: all, or those of `sources`.

    Raises:
        UserError: there are no such rows; the message names a setting that makes them, and a loss for the rows present.
    """
    section, present = params.reward, present_forms()
    algorithm = from_section(reward_loss(section.loss), section)
    form = form_feeding(algorithm.data)
    if form.file not in [other.file for other in present]:
        raise UserError(
            f"reward.loss {section.loss} learns from {form.file}, but {FEEDBACK} has none. "
            f"Set {problem.setting_for(form.name, form.file)}, or reward.loss to {present[0].suggested_loss}."
        )
    train, held_out = (
        _of_sources(
            READERS[algorithm.data](FEEDBACK, split, begin.reader, None), rows(FEEDBACK, form.file, split), sources
        )
        for split in ("train", "development")
    )
    scale = rating_scale(rows(FEEDBACK, form.file, "train")) if algorithm.data is Data.RATINGS else None
    if sources is not None:
        check_sources(name, sources, form.file, train)
    return Fit(name, algorithm, train, held_out, scale, section.members, sources)


def _of_sources(units: list[Unit], path: Path, sources: Sequence[str] | None) -> list[Unit]:
    """The units whose row in `path` is of one of the sources; all if it is None."""
    if sources is None:
        return units
    return [unit for unit, source in zip(units, row_sources(path), strict=True) if source in sources]


def check_sources(name: str, sources: Sequence[str], file: str, train: Sequence[Unit]) -> None:
    """Check that the feedback has rows of every source, to learn from, and pairs to measure the model on.

    Raises:
        UserError: a source is unknown or has no rows; the message suggests a similar one.
    """
    known = sorted({source for source in row_sources(rows(FEEDBACK, file, "train")) if source is not None})
    for source in sources:
        if not known:
            raise UserError(
                f"reward model {name} learns from source {source}, but no row of the feedback names its source. "
                "Add a field `source` to the rows, or set prepare.file_sources to true."
            )
        if source not in known:
            raise UserError(
                f"reward model {name} learns from source {source}, but {file}_train.jsonl in {FEEDBACK} has no row of "
                f"it. Correct reward_models: {nearest(source, known)}"
            )
    path = rows(FEEDBACK, PREFERENCES, "development")
    pairs = [row for row in rows_if_any(path) if row.get("source") in sources and row.get("label", 1.0) != 0.5]
    if not train or not pairs:
        raise UserError(
            f"{path} has no pair of {', '.join(sources)} to measure reward model {name} on. "
            "Add data, or raise prepare.development_fraction."
        )
