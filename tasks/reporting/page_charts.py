"""The charts of the report page: learning curves, and reward and judge score against KL."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tasks.files import paths
from tasks.files.jsonl import rows_if_any
from tasks.reporting import charts
from tasks.reporting.findings import label

ONLINE, OFFLINE = ("score", "kl", "response_length"), ("loss", "accuracy", "margin")
Report = Mapping[str, Any]
Chart = tuple[str, str, Markup]  # caption, source file, SVG


def learning_curves(
    names: Sequence[str], colours: Mapping[str, int]
) -> list[tuple[str, list[tuple[str, str, Markup]]]]:
    """Return learning curves in groups with titles. Trainings without metrics are omitted."""
    groups = [
        ("Language model", [("base", paths.BASE, 5), ("sft", paths.SFT, 5)]),
        ("Reward model", [("reward model", paths.REWARD, 4)]),
        *((f"Reward model {path.name}", [(path.name, path, 4)]) for path in sorted(paths.REWARDS.glob("*/"))),
        ("Judge model", [("judge model", paths.JUDGE, 4)]),
        *((label(name), [(name, paths.policy(name), colours[name])]) for name in names),
    ]
    drawn = []
    for heading, trainings in groups:
        figures = []
        for name, folder, colour in trainings:
            file = folder / paths.CURVE
            steps = rows_if_any(file)
            wanted = ONLINE if steps and "score" in steps[0] else OFFLINE
            for key in wanted if steps else ():
                if key in steps[0]:
                    figures.append((f"{name}: {key}", str(file), Markup(charts.curve(steps, key, name, colour))))
        if figures:
            drawn.append((heading, figures))
    return drawn


def tradeoffs(report: Report) -> list[tuple[str, Markup]]:
    """Return charts with captions: reward (what on-policy methods optimise) and judge score (the goal) against KL."""
    snapshots = rows_if_any(paths.SNAPSHOTS)
    best = {name: figures["best_snapshot"] for name, figures in report["policies"].items()}
    shown = {"reward": "reward (policy.rewards)", "judge_score": f"judge score ({report['judge']})"}
    return [
        (f"{text} against KL", Markup(charts.tradeoff(snapshots, best, key, text, label)))
        for key, text in shown.items()
        if snapshots and snapshots[0][key] is not None
    ]
