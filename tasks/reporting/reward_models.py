"""Several reward models side by side: accuracy on each source, and mean score of each policy."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.reporting.findings import label
from tasks.reporting.formats import number, percent

Report = Mapping[str, Any]


def accuracy_table(report: Report) -> list[list[str]]:
    """Headings, then one row per reward model: its sources, and its accuracy on the held-out pairs of every source.

    The sources that the model does not learn from are in brackets.
    """
    models = report["reward_models"]
    sources = sorted({source for model in models.values() for source in model.get("sources", {})})
    rows = [["reward model", "learns from", "pairs", *(f"accuracy on {source}" for source in sources)]]
    for name, model in models.items():
        own = model["trained_on"]
        cells = [_accuracy(model.get("sources", {}).get(source), source in own) for source in sources]
        rows.append([name, ", ".join(own), number(model["pairs"]), *cells])
    return rows


def _accuracy(figures: Report | None, is_own: bool) -> str:
    if figures is None:
        return "–"
    text = f"{percent(figures['accuracy'])} of {number(figures['held_out_pairs'])}"
    return text if is_own else f"({text})"


def score_table(report: Report) -> list[list[str]]:
    """Headings, then one row per policy: its mean by each model, with interval, before clamp and weight."""
    names = list(report["reward_models"])
    rows = [["policy", *names]]
    for policy, figures in {"sft": report["sft"], **report["policies"]}.items():
        rows.append([label(policy), *(_score(figures["reward_model_scores"][name]) for name in names)])
    return rows


def _score(score: Report) -> str:
    return f"{number(score['value'])} ({number(score['low'])} to {number(score['high'])})"


def tables(report: Report) -> Sequence[list[list[str]]]:
    """Both tables; none if the run has no section reward_models."""
    return [accuracy_table(report), score_table(report)] if report.get("reward_models") else []
