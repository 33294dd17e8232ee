"""What people compare between policies and between runs: a few figures, and every policy's curve in one table.

`reports/metrics.json` holds the figures for `dvc metrics` and `dvc exp show`, `reports/curves.csv` the curves for
`dvc plots`. The MLflow run of a whole flow run gets the same figures under the same names.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.files.jsonl import read_jsonl

METRICS, CURVES = "reports/metrics.json", "reports/curves.csv"
NUMBERS = ("kl", "reward", "mean_length", "judge_score")  # of each policy
CURVE = ("loss", "kl", "score", "accuracy", "response_length")  # of each step of a training
REWARD_MODEL = ("accuracy", "log_loss", "ece")


def comparison(report: Mapping[str, Any], *, intervals: bool = False) -> dict[str, dict[str, float]]:
    """The figures of a report that are compared: {"kl": {"ppo": 1.5, ...}, ...}, those that a run lacks left out.

    intervals: the win rate against SFT brings its 95 % interval, as "ppo_low" and "ppo_high" beside "ppo".
    """
    policies: Mapping[str, Any] = report.get("policies") or {}
    ends = {"_low": "low", "_high": "high"} if intervals else {}
    found: dict[str, dict[str, float | None]] = {}
    for key, parts in (("win_rate_vs_sft", ends), ("win_rate_vs_reference", {})):
        found[key] = {
            f"{name}{end}": (row.get(key) or {}).get(part)
            for name, row in policies.items()
            for end, part in {"": "value", **parts}.items()
        }
    found |= {key: {name: row.get(key) for name, row in policies.items()} for key in NUMBERS}
    found["reward_model"] = {key: (report.get("reward_model") or {}).get(key) for key in REWARD_MODEL}
    given = {key: {name: value for name, value in row.items() if value is not None} for key, row in found.items()}
    return {key: row for key, row in given.items() if row}


def curve_rows(policies: Iterable[str], models: Path, snapshots: Path) -> list[dict[str, Any]]:
    """One row per policy and training step, with CURVE and, at a snapshot's step, its win rate on development prompts.

    Every row has every column, None where a method logs no such quantity: DVC draws a chart only of a column that
    exists, and of a table that has rows. A policy that is not trained, such as best-of-N sampling, is one empty row.
    """
    judged = {
        (row["policy"], row["step"]): row["win_rate_vs_sft"]["value"]
        for row in (read_jsonl(snapshots) if snapshots.is_file() else [])
        if row.get("win_rate_vs_sft")
    }
    rows: list[dict[str, Any]] = []
    for name in policies:
        curve = models / name / "metrics.jsonl"
        for step in read_jsonl(curve) if curve.is_file() else [{"step": 0}]:
            beside = {"win_rate_vs_sft": judged.get((name, step["step"]))}
            rows.append({"policy": name, "step": step["step"]} | {key: step.get(key) for key in CURVE} | beside)
    return rows
