"""The report page: one self-contained HTML file and its markdown twin, drawn from report.json and the outputs.

Links to MLflow runs and wall times are looked up when the page is drawn: they differ from run to run, and what DVC
tracks may not. Environment: RLHF_MLFLOW_UI, the address of the MLflow server (default http://127.0.0.1:5000).
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks import charts, tracking
from tasks.jsonl import read_jsonl

ORDER = ("prepare", "base", "sft", "collect", "reward", "policy", "evaluate", "report")
SAMPLES = 12
ONLINE, OFFLINE = ("score", "kl", "response_length"), ("loss", "accuracy", "margin")
Report = Mapping[str, Any]


@dataclass(frozen=True)
class StageRun:
    """The MLflow run that made a stage's outputs: its page in the UI, and how long it took, in seconds."""

    url: str
    seconds: float


def render(report: Report, folder: Path) -> list[Path]:
    """Write report.html and report.md to `folder` and return their paths."""
    shown = _content(report)
    written = []
    for name, settings in (("report.html", {"autoescape": True}), ("report.md", {"finalize": markdown_text})):
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            **settings,
        )
        environment.filters |= {
            "rate": rate,
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
    stages = sorted(report["sources"]["stages"].items(), key=lambda item: (ORDER.index(item[0].split("@")[0]), item[0]))
    ranked = dict(sorted(report["policies"].items(), key=lambda item: -item[1]["win_rate_vs_sft"]["value"]))
    colours = {name: index for index, name in enumerate(report["policies"])}
    steps = {name: len(_rows(f"models/policies/{name}/metrics.jsonl")) for name in ranked}
    return {
        "report": report,
        "title": title(list(ranked)),
        "summary": summary(report, ranked),
        "ranked": ranked,
        "colours": colours,
        "steps": steps,
        "stages": stages,
        "runs": find_runs({name: stage["key"] for name, stage in stages}),
        "stale": _stale(stages),
        "curves": _curves(ranked, colours),
        "tradeoffs": _tradeoffs(report),
        "samples": _rows("evaluation/samples.jsonl")[:SAMPLES],
        "origin": partial(origin, stages),
    }


# Names that are not simply capitals.
LABELS = {
    "ppo_penalty": "PPO-penalty",
    "cdpo": "cDPO",
    "online_dpo": "Online DPO",
    "best_of_n": "Best of N",
    "best_of_n_distillation": "Best-of-N distillation",
}


def title(names: Sequence[str]) -> str:
    """What was compared."""
    if len(names) == 1:
        return f"{label(names[0])} against the SFT model"
    return f"{join([label(name) for name in names]) if len(names) < 5 else f'{len(names)} policies'} against each other"


def join(names: Sequence[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def summary(report: Report, ranked: Report) -> list[str]:
    """Three sentences: which policy is best, by how much and judged by whom; the others; what they learnt from."""
    (best, figures), *others = ranked.items()
    won = figures["win_rate_vs_sft"]
    sure = "" if won["low"] > 0.5 else ", which does not show it to be better"
    first = (
        f"{label(best)} is the best policy: it wins {percent(won['value'])} of {won['n']} held-out prompts against the "
        f"SFT model (95 % interval {percent(won['low'])} to {percent(won['high'])}{sure}), judged by: {won['judge']}."
    )
    return [first, _others(best, figures, others), _learnt_from(report)]


def _others(best: str, figures: Report, others: list[tuple[str, Any]]) -> str:
    baseline = f"against the reference responses it wins {percent(figures['win_rate_vs_reference']['value'])}"
    if not others:
        return f"It is the only policy of this run; {baseline}."
    rates = ", ".join(f"{label(name)} {percent(other['win_rate_vs_sft']['value'])}" for name, other in others)
    low = figures["win_rate_vs_sft"]["low"]
    close = [label(name) for name, other in others if other["win_rate_vs_sft"]["high"] >= low]
    overlap = f" Its interval overlaps with that of {join(close)}: their order may be chance." if close else ""
    return f"After {label(best)}: {rates}; {baseline}.{overlap}"


def _learnt_from(report: Report) -> str:
    model = report["reward_model"]
    if model is None:
        return f"There is no reward model: {report['no_reward_model']}."
    ceiling = report["feedback"].get("agreement_with_gold")
    beside = "" if ceiling is None else f"; the verdicts themselves agree with gold on {percent(ceiling)}"
    right = percent(model["accuracy"])
    return f"The reward model is right on {right} of {model['held_out_pairs']} held-out pairs{beside}."


def find_runs(keys: Mapping[str, str]) -> dict[str, StageRun]:
    """For each stage the newest finished MLflow run with its key; stages that have none are left out."""
    uri = tracking.tracking_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return {}  # a client would make an empty store
    client = tracking.client()
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    found = {}
    for stage, key in keys.items() if experiment is not None else ():
        wanted = f"tags.stage_key = '{key}' and attributes.status = 'FINISHED'"
        newest = ["attributes.start_time DESC"]
        for run in client.search_runs([experiment.experiment_id], wanted, order_by=newest, max_results=1):
            found[stage] = StageRun(run_url(run.info), (run.info.end_time - run.info.start_time) / 1000)
    return found


def run_url(info: Any) -> str:
    """Address of a run's page in the MLflow UI."""
    server = os.environ.get("RLHF_MLFLOW_UI", "http://127.0.0.1:5000").rstrip("/")
    return f"{server}/#/experiments/{info.experiment_id}/runs/{info.run_id}"


def origin(stages: list[tuple[str, Any]], file: str) -> str:
    """Where a figure comes from: its file, the stage that writes it and that stage's key."""
    name, stage = next(
        (name, stage) for name, stage in stages for output in stage["outputs"] if file.startswith(f"{output}/")
    )
    return f"from: {file}, stage {name}, key {stage['key'][:8]}…"


def _stale(stages: list[tuple[str, Any]]) -> list[str]:
    """Stages whose outputs in the checkout are not those that report.json was made from."""
    stale = []
    for name, stage in stages:
        manifests = [Path(folder, "manifest.json") for folder in stage["outputs"] if Path(folder).suffix != ".json"]
        for path in manifests:
            if not path.is_file() or json.loads(path.read_text(encoding="utf-8"))["key"] != stage["key"]:
                stale.append(name)
    return sorted(set(stale))


def _curves(ranked: Report, colours: Mapping[str, int]) -> list[tuple[str, list[tuple[str, str, Markup]]]]:
    """Learning curves in groups: (title, [(caption, file, chart)]); trainings that left no metrics are left out."""
    groups = [
        ("Language model", [("base", "models/base", 5), ("sft", "models/sft", 5)]),
        ("Reward model", [("reward model", "models/reward", 4)]),
        ("Judge model", [("judge model", "models/judge", 4)]),
        *((label(name), [(name, f"models/policies/{name}", colours[name])]) for name in ranked),
    ]
    drawn = []
    for title, trainings in groups:
        figures = []
        for name, folder, colour in trainings:
            file = f"{folder}/metrics.jsonl"
            rows = _rows(file)
            wanted = ONLINE if rows and "score" in rows[0] else OFFLINE
            for key in wanted if rows else ():
                if key in rows[0]:
                    figures.append((f"{name}: {key}", file, Markup(charts.curve(rows, key, name, colour))))
        if figures:
            drawn.append((title, figures))
    return drawn


def _tradeoffs(report: Report) -> list[tuple[str, Markup]]:
    """Reward (what was optimised) and judge score (what was wanted) against KL: (caption, chart)."""
    snapshots = _rows("evaluation/snapshots.jsonl")
    best = {name: figures["best_snapshot"] for name, figures in report["policies"].items()}
    labels = {"reward": "reward (proxy)", "judge_score": f"judge score ({report['judge']})"}
    return [
        (f"{text} against KL", Markup(charts.tradeoff(snapshots, best, key, text, label)))
        for key, text in labels.items()
        if snapshots and snapshots[0][key] is not None
    ]


def _rows(file: str) -> list[dict[str, Any]]:
    """Rows of an output, none where it is not in the checkout."""
    return read_jsonl(Path(file)) if Path(file).is_file() else []


def markdown_text(value: Any) -> Any:
    """A value put into the markdown template: sampled text may hold anything, so all of it is shown literally."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    escaped = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", escaped).replace("\r", "").replace("\n", "<br>")


def label(name: str) -> str:
    """A policy's name as a heading: dpo is DPO."""
    return LABELS.get(name, name.upper())


def learnt_from(model: Report) -> str:
    """What a reward model was fitted to: pairs, ratings or rankings."""
    return next((kind for kind in ("ratings", "rankings") if kind in model), "pairs")


def rate(value: Mapping[str, Any] | None) -> str:
    """`0.843 (0.802–0.881)`."""
    return "–" if value is None else f"{value['value']:.3f} ({value['low']:.3f}–{value['high']:.3f})"


def number(value: float | None) -> str:
    """Three significant digits, whole numbers as they are, a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return "0.000" if abs(value) < 5e-4 else f"{value:#.3g}".rstrip(".")


def percent(share: float) -> str:
    """`86.4 %`."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """`42 s`, `5 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
