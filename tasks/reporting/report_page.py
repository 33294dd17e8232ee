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

from tasks.files.jsonl import read_jsonl
from tasks.reporting import charts
from tasks.reporting.findings import label, labels, ranked, summary, title
from tasks.runtime import tracking

ORDER = ("prepare", "base", "sft", "sample", "collect", "reward", "offline", "online", "evaluate", "report")
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
    runs = find_runs({name: stage["key"] for name, stage in stages})
    policies = ranked(report["policies"])
    colours = {name: index for index, name in enumerate(report["policies"])}
    steps = {name: len(_rows(f"models/policies/{name}/metrics.jsonl")) for name in policies}
    return {
        "report": report,
        "title": title(list(policies)),
        "summary": summary(report),
        "sampling": sampling_sentences(report),
        "reward": reward_sentence(report),
        "ranked": policies,
        "colours": colours,
        "steps": steps,
        "stages": stages,
        "runs": runs,
        "trainings": {name.partition("@")[2]: run for name, run in runs.items()},
        "stale": _stale(stages),
        "curves": _curves(list(policies), colours),
        "tradeoffs": _tradeoffs(report),
        "samples": _rows("evaluation/samples.jsonl")[:SAMPLES],
        "origin": partial(origin, stages),
    }


def sampling_sentences(report: Report) -> list[str]:
    """At which temperature the responses were sampled, and what KL is."""
    policies = report["policies"]
    described = {"SFT": report["sft"]} | {label(name): figures for name, figures in policies.items()}
    judged = {name: figures["temperature"] for name, figures in described.items()}
    own = {name: figures["kl_temperature"] for name, figures in described.items() if not figures["kl_is_bound"]}
    at = f"temperature {judged['SFT']:g}" if _alike(judged) else f"each policy's own temperature ({_listed(judged)})"
    kl = "KL is to the SFT model, in nats per response, summed over the vocabulary at each sampled token"
    if any(own[name] != judged[name] for name in own):
        own_at = f"temperature {own['SFT']:g}" if _alike(own) else f"each policy's own temperature ({_listed(own)})"
        kl += f", on a second sample at {own_at}"
    if set(own.values()) != {1.0}:
        kl += "; the temperature divides the SFT model's logits too"
    bounds = [name for name, figures in policies.items() if figures["kl_is_bound"]]
    return [
        f"Responses are sampled at {at}.",
        f"{kl}.",
        *([f"That of {labels(bounds)} is not measured: it is the upper bound."] if bounds else []),
    ]


def _alike(temperatures: Mapping[str, float]) -> bool:
    return len(set(temperatures.values())) == 1


def _listed(temperatures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {temperature:g}" for name, temperature in temperatures.items())


def reward_sentence(report: Report) -> str:
    """What the figure called reward adds up, and which policies were optimised for it."""
    if not report["rewards"]:
        return "There is no reward: policy.rewards names none that this data gives."
    terms = [
        f"{term['weight']:g} × {term['name']}" + ("" if term["clamp"] is None else f" (within ±{term['clamp']:g})")
        for term in report["rewards"]
    ]
    optimised = {name: figures["reward_optimised"] for name, figures in report["policies"].items()}
    did, did_not = ([name for name in optimised if optimised[name] is wanted] for wanted in (True, False))
    uses = [f"{labels(did)} {_verb(did)} optimised for it, apart from any KL penalty"] if did else []
    what = "not" if did else "not optimised for it"
    uses += [f"{labels(did_not)} {_verb(did_not)} {what}: trained on given data, without it"] if did_not else []
    return (
        f"Reward is the whole of policy.rewards: {' + '.join(terms)}; each term's mean before its weight is beside it. "
        f"{'; '.join(uses)}."
    )


def _verb(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"


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
        # An output that is one file has no manifest.
        manifests = [Path(output, "manifest.json") for output in stage["outputs"] if not Path(output).suffix]
        for path in manifests:
            if not path.is_file() or json.loads(path.read_text(encoding="utf-8"))["key"] != stage["key"]:
                stale.append(name)
    return sorted(set(stale))


def _curves(names: Sequence[str], colours: Mapping[str, int]) -> list[tuple[str, list[tuple[str, str, Markup]]]]:
    """Learning curves in groups: (title, [(caption, file, chart)]); trainings that left no metrics are left out."""
    groups = [
        ("Language model", [("base", "models/base", 5), ("sft", "models/sft", 5)]),
        ("Reward model", [("reward model", "models/reward", 4)]),
        ("Judge model", [("judge model", "models/judge", 4)]),
        *((label(name), [(name, f"models/policies/{name}", colours[name])]) for name in names),
    ]
    drawn = []
    for heading, trainings in groups:
        figures = []
        for name, folder, colour in trainings:
            file = f"{folder}/metrics.jsonl"
            rows = _rows(file)
            wanted = ONLINE if rows and "score" in rows[0] else OFFLINE
            for key in wanted if rows else ():
                if key in rows[0]:
                    figures.append((f"{name}: {key}", file, Markup(charts.curve(rows, key, name, colour))))
        if figures:
            drawn.append((heading, figures))
    return drawn


def _tradeoffs(report: Report) -> list[tuple[str, Markup]]:
    """Reward (what on-policy methods optimise) and judge score (what is wanted) against KL: (caption, chart)."""
    snapshots = _rows("evaluation/snapshots.jsonl")
    best = {name: figures["best_snapshot"] for name, figures in report["policies"].items()}
    shown = {"reward": "reward (policy.rewards)", "judge_score": f"judge score ({report['judge']})"}
    return [
        (f"{text} against KL", Markup(charts.tradeoff(snapshots, best, key, text, label)))
        for key, text in shown.items()
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


def duration(seconds: float) -> str:
    """`42 s`, `5 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
