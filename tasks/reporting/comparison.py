"""The comparison of policies: its figures, their order, headings and formats.

The report page, its markdown version, the terminal and Prefect show COLUMNS. `reports/metrics.json` has the
figures for `dvc metrics` and `dvc exp show`, `reports/curves.csv` the curves for `dvc plots`. The MLflow run of a
whole flow run gets the same figures under the same names.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.files import paths
from tasks.files.jsonl import read_jsonl
from tasks.reporting.findings import ranked
from tasks.reporting.formats import NONE, duration, number, rate

Figures = Mapping[str, Any]
CURVE = ("loss", "kl", "score", "accuracy", "response_length")  # of each step of a training
REWARD_MODEL = ("accuracy", "log_loss", "ece")


def terms(value: Mapping[str, float]) -> tuple[str, ...]:
    """The terms of a reward, one text for each: `model 1.88`."""
    return tuple(f"{name} {number(mean)}" for name, mean in value.items())


@dataclass(frozen=True)
class Column:
    """One figure of each policy.

    key: its name in report.json. text: writes a value; several texts are several lines on the page.
    is_short: shown on the terminal and in Prefect too. is_logged: in metrics.json and MLflow too.
    is_under: the page shows it in small print in the cell of the column before it.
    has_interval: KEY_low and KEY_high are its 95 % interval, which the page shows in small print.
    """

    key: str
    heading: str
    text: Callable[[Any], str | tuple[str, ...]] = number
    is_short: bool = False
    is_logged: bool = False
    is_under: bool = False
    has_interval: bool = False

    @property
    def is_rate(self) -> bool:
        """Whether the page draws the value as a bar from 0 to 1."""
        return self.text is rate

    @property
    def is_number(self) -> bool:
        """Whether the value is a plain number, which markdown aligns to the right."""
        return self.text is number

    def lines(self, figures: Figures) -> tuple[str, ...]:
        """The value as lines of text; no line if the value is missing."""
        value = figures.get(self.key)
        if value is None:
            return ()
        text = self.text(value)
        return (text,) if isinstance(text, str) else text

    def cell(self, figures: Figures) -> str:
        """The value as one text; a dash if it is missing."""
        bound = " (upper bound)" if self.is_bound(figures) else ""
        return (", ".join(self.lines(figures)) or NONE) + bound

    def is_bound(self, figures: Figures) -> bool:
        """Whether the value is an upper bound and not a measurement."""
        return bool(figures.get(f"{self.key}_is_bound"))

    def interval(self, figures: Figures) -> str:
        """Return `4.50 to 5.00`, or that the value is a bound; '' without an interval."""
        if self.is_bound(figures):
            return "upper bound"
        if not self.has_interval or figures.get(self.key) is None:
            return ""
        return f"{number(figures[f'{self.key}_low'])} to {number(figures[f'{self.key}_high'])}"


COLUMNS = (
    Column("win_rate_vs_sft", "win rate vs SFT", rate, is_short=True, is_logged=True),
    Column("win_rate_vs_reference", "win rate vs reference", rate, is_short=True, is_logged=True),
    Column("kl", "KL", is_short=True, is_logged=True, has_interval=True),
    Column("reward", "reward", is_short=True, is_logged=True, has_interval=True),
    Column("reward_terms", "its terms", terms, is_under=True),
    Column("reward_model_score", "reward model score", has_interval=True),
    Column("mean_length", "length", is_short=True, is_logged=True),
    Column("ended_fraction", "share ended", is_under=True),
    Column("judge_score", "judge score", is_logged=True, has_interval=True),
    Column("distinct_1", "distinct-1"),
    Column("distinct_2", "distinct-2", is_under=True),
    Column("sampled_tokens", "tokens sampled"),
    Column("trained_tokens", "tokens trained on", is_under=True),
    Column("steps", "steps"),
    Column("best_snapshot", "best snapshot", "step {:,}".format, is_under=True),
    Column("seconds", "wall time", duration, is_under=True),
)


def column(key: str) -> Column:
    """The column of one figure."""
    return next(column for column in COLUMNS if column.key == key)


def page_columns() -> list[tuple[Column, list[Column]]]:
    """The columns of the page, each with those that it shows in small print in the same cell."""
    grouped: list[tuple[Column, list[Column]]] = []
    for item in COLUMNS:
        if item.is_under:
            grouped[-1][1].append(item)
        else:
            grouped.append((item, []))
    return grouped


def short_table(report: Mapping[str, Any]) -> list[list[str]]:
    """Return headings, then one row per policy, best first: [["policy", "KL", ...], ["ppo", "1.50", ...]].

    Empty if the report has no policies.
    """
    shown = [column for column in COLUMNS if column.is_short]
    policies = ranked(report.get("policies") or {})
    rows = [[name, *(column.cell(figures) for column in shown)] for name, figures in policies.items()]
    return [["policy", *(column.heading for column in shown)], *rows] if rows else []


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a markdown table, the first one as headings; '' without rows."""
    if not rows:
        return ""
    headings, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *others))


def comparison(report: Mapping[str, Any], *, intervals: bool = False) -> dict[str, dict[str, float]]:
    """The figures of a report that are compared: {"kl": {"ppo": 1.5, ...}, ...}; missing ones are left out.

    intervals: add the 95 % interval of the win rate against SFT, as "ppo_low" and "ppo_high" beside "ppo".
    """
    policies: Mapping[str, Any] = report.get("policies") or {}
    found: dict[str, dict[str, float | None]] = {}
    for item in COLUMNS:
        if item.is_rate:
            ends = ("low", "high") if intervals and item.key == "win_rate_vs_sft" else ()
            found[item.key] = {
                f"{name}{end}": (row.get(item.key) or {}).get(part)
                for name, row in policies.items()
                for end, part in {"": "value", **{f"_{end}": end for end in ends}}.items()
            }
        elif item.is_logged:
            found[item.key] = {name: row.get(item.key) for name, row in policies.items()}
    found["reward_model"] = {key: (report.get("reward_model") or {}).get(key) for key in REWARD_MODEL}
    several = report.get("reward_models") or {}
    found["reward_models"] = {name: model["accuracy"] for name, model in several.items()}
    for model in several:
        scores = {name: row["reward_model_scores"][model]["value"] for name, row in policies.items()}
        found[f"score_of_{model}"] = dict(scores)
    for name, row in policies.items():
        for key, outcome in row.get("task", {}).items():  # the task's own figures
            found.setdefault(key, {})[name] = outcome["value"]
    given = {key: {name: value for name, value in row.items() if value is not None} for key, row in found.items()}
    return {key: row for key, row in given.items() if row}


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the compared figures by their names in MLflow: `win_rate_vs_sft/dpo`, `kl/dpo`, ..."""
    groups = comparison(report, intervals=True)
    return {f"{group}/{name}": float(value) for group, row in groups.items() for name, value in row.items()}


def curve_rows(policies: Iterable[str], models: Path, snapshots: Path) -> list[dict[str, Any]]:
    """One row per policy and training step, with CURVE and, at a snapshot's step, its win rate on development prompts.

    Every row has every column, None if the method does not log the quantity: DVC only draws a chart of a column that
    exists, and of a table that has rows. A policy that is not trained, such as best-of-N sampling, is one empty row.
    """
    judged = {
        (row["policy"], row["step"]): row["win_rate_vs_sft"]["value"]
        for row in (read_jsonl(snapshots) if snapshots.is_file() else [])
        if row.get("win_rate_vs_sft")
    }
    rows: list[dict[str, Any]] = []
    for name in policies:
        curve = models / name / paths.CURVE
        for step in read_jsonl(curve) if curve.is_file() else [{"step": 0}]:
            beside = {"win_rate_vs_sft": judged.get((name, step["step"]))}
            rows.append({"policy": name, "step": step["step"]} | {key: step.get(key) for key in CURVE} | beside)
    return rows
