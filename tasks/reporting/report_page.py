"""The report page: a self-contained HTML file and a markdown version, rendered from report.json and the outputs.

Links to MLflow runs and wall times are looked up when the page is drawn, since they differ from run to run and files
that DVC tracks must not.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.files import declared, paths
from tasks.files.jsonl import rows_if_any
from tasks.reporting import reward_models
from tasks.reporting.comparison import COLUMNS, column, page_columns
from tasks.reporting.explanations import glossary, reward_sentence, sampling_sentences
from tasks.reporting.findings import label, ranked, summary, title
from tasks.reporting.formats import duration, number, signed
from tasks.reporting.page_charts import learning_curves, tradeoffs
from tasks.reporting.seeds import FIGURES, estimates, form_of, metrics_by_seed
from tasks.reporting.sources import StageRun, find_runs, origin, stale_stages

Report = Mapping[str, Any]


def render(report: Report, folder: Path) -> list[Path]:
    """Write report.html and report.md to `folder` and return their paths."""
    shown = _content(report)
    written = []
    pages: dict[str, dict[str, Any]] = {
        paths.PAGE.name: {"autoescape": True},
        paths.MARKDOWN_PAGE.name: {"finalize": markdown_text},
    }
    for name, settings in pages.items():
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            **settings,
        )
        environment.filters |= {
            "number": number,
            "duration": duration,
            "label": label,
            "learnt_from": learnt_from,
        }
        partial_file = folder / f".{name}"
        partial_file.write_text(environment.get_template(f"{name}.jinja").render(shown), encoding="utf-8")
        written.append(partial_file.rename(folder / name))
    return written


def _content(report: Report) -> dict[str, Any]:
    """Everything the templates show."""
    order = [stage.name for stage in declared.STAGES]
    stages = sorted(report["sources"]["stages"].items(), key=lambda item: (order.index(item[0].split("@")[0]), item[0]))
    policies = ranked(report["policies"])
    colours = {name: index for index, name in enumerate(report["policies"])}
    runs = find_runs({name: stage["key"] for name, stage in stages})
    return {
        "report": report,
        "title": title(list(policies)),
        "titles": [label(name) for name in policies],
        "summary": summary(report),
        "sampling": sampling_sentences(report),
        "reward": reward_sentence(report),
        "reward_tables": reward_models.tables(report),
        "glossary": glossary(report),
        "columns": COLUMNS,
        "page_columns": page_columns(),
        "compared": [
            (name, _row(name, figures, report, runs)) for name, figures in {**policies, "sft": report["sft"]}.items()
        ],
        "colours": colours,
        "stages": stages,
        "runs": runs,
        "stale": stale_stages(stages),
        "curves": learning_curves(list(policies), colours),
        "tradeoffs": tradeoffs(report),
        "over_seeds": over_seeds(report),
        "examples": str(paths.EXAMPLES),
        "samples": rows_if_any(paths.EXAMPLES),
        "origin": partial(origin, stages),
        "task_cell": task_cell,
    }


def over_seeds(report: Report) -> dict[str, Any] | None:
    """The section on seeds: headings, and rows with the figures of each policy; None without runs of other seeds."""
    if not (metrics := metrics_by_seed(report)):
        return None
    rows = [
        (name, [(row[key].text(form_of(key)), row[key].each(form_of(key))) if key in row else None for key in FIGURES])
        for name, row in estimates(metrics).items()
    ]
    return {"seeds": list(metrics), "headings": [column(key).heading for key in FIGURES], "rows": rows}


def _row(name: str, figures: Report, report: Report, runs: Mapping[str, StageRun]) -> dict[str, Any]:
    """A policy's figures, with the steps and seconds of its training; its reward's terms as policy.rewards has them."""
    steps = len(rows_if_any(paths.policy(name) / paths.CURVE)) or None
    made = next((run for stage, run in runs.items() if stage in (f"online@{name}", f"offline@{name}")), None)
    means = figures["reward_terms"]
    terms = {term["name"]: means[term["name"]] for term in report["rewards"] if term["name"] in means}
    return {**figures, "reward_terms": terms, "steps": steps, "seconds": made.seconds if made else None}


def task_cell(figure: Report) -> str:
    """A figure of the task, with its difference to SFT if it has one: `0.525 (+0.350, 0.270 to 0.430)`."""
    if figure["value"] is None:
        return "–"
    change = figure["difference"]
    if change is None:
        return f"{figure['value']:.3f}"
    by, low, high = signed(change["value"], "+.3f"), signed(change["low"], ".3f"), signed(change["high"], ".3f")
    return f"{figure['value']:.3f} ({by}, {low} to {high})"


def markdown_text(value: Any) -> Any:
    """A value put into the markdown template: escaped, since sampled text may contain any markup."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    escaped = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", escaped).replace("\r", "").replace("\n", "<br>")


def learnt_from(model: Report) -> str:
    """What a reward model was fitted to: pairs, ratings or rankings."""
    return next((kind for kind in ("ratings", "rankings") if kind in model), "pairs")
