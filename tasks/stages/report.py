"""Stage `report`: write every figure of a run into one machine-readable file, and draw the page from it.

`python -m tasks.stages.report` runs the stage. `python -m tasks.stages.report --render` only draws
reports/report.{html,md} again. The page has links and wall times, which tracked outputs must not contain.
"""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf_core.common.errors import UserError
from tasks.files import declared, paths
from tasks.files.jsonl import read_jsonl, rows_if_any
from tasks.files.tables import write_csv
from tasks.reporting.comparison import COLUMNS, comparison, curve_rows
from tasks.reporting.report_page import render
from tasks.runtime.stage import Restored, main, open_stage, write_json

FEEDBACK = paths.FEEDBACK / paths.SUMMARY
INTERVALS = [column.key for column in COLUMNS if column.has_interval]  # evaluate writes each with its interval


def report() -> None:
    """Write report.json, then the page."""
    with suppress(Restored), open_stage("report") as stage:
        outputs = [str(path) for path in (paths.REPORT, paths.METRICS, paths.CURVES)]
        own = {"key": stage.key, "params": stage.sections, "inputs": stage.inputs, "outputs": outputs}
        built = build_report(own)
        write_json(stage.out_file(paths.REPORT), built)
        figures = json.dumps(comparison(built), indent=1) + "\n"  # unsorted: DVC keeps the order for its columns
        stage.out_file(paths.METRICS).write_text(figures, encoding="utf-8")
        write_csv(stage.out_file(paths.CURVES), curve_rows(built["policies"], paths.POLICIES, paths.SNAPSHOTS))
    # After the stage, so that its own MLflow run has ended and the page can link to it.
    render_page()


def render_page() -> None:
    """Draw the page from report.json and the outputs in the checkout.

    Raises:
        UserError: report.json does not exist.
    """
    if not paths.REPORT.is_file():
        raise UserError(f"{paths.REPORT} does not exist, so there is nothing to draw. Make it with: dvc repro")
    for path in render(_read(paths.REPORT), paths.REPORTS):
        sys.stdout.write(f"{path}\n")


def build_report(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return all figures and their sources: numbers, names and hashes of inputs. Equal outputs give an equal report.

    `own` is this stage's entry in `sources.stages`. The 95 % intervals of KL (nats per response), reward, the reward
    model's score and the judge's score are stored as NAME_low and NAME_high.
    """
    results = _read(paths.RESULTS)
    snapshots = read_jsonl(paths.SNAPSHOTS)
    policies = {
        name: _flat(figures) | {"best_snapshot": _best_snapshot(name, snapshots)} | _tokens(name)
        for name, figures in results["policies"].items()
    }
    reward_model, none, reward_file = _scalar_model(paths.REWARD)
    judge_model, _, judge_file = _scalar_model(paths.JUDGE)
    several = {name: _scalar_model(paths.reward_model(name)) for name in results["sft"].get("reward_model_scores", {})}
    card = _read(paths.CARD)
    origins = {
        "data": paths.CARD,
        "feedback": FEEDBACK,
        "reward_model": reward_file,
        "judge_model": judge_file,
        "rewards": paths.RESULTS,
        "sft": paths.RESULTS,
        "policies": paths.RESULTS,
        "policies.*.best_snapshot": paths.SNAPSHOTS,
        **{f"reward_models.{name}": file for name, (_, _, file) in several.items()},
    }
    return {
        "judge": results["judge"],
        "prompts": results["prompts"],
        "rewards": results["rewards"],
        "data": {key: card[key] for key in ("source", "kind", "read", "kept")},
        "feedback": _read(FEEDBACK),
        "reward_model": reward_model,
        "no_reward_model": none,
        "judge_model": judge_model,
        **({"reward_models": {name: model for name, (model, _, _) in several.items()}} if several else {}),
        "sft": _flat(results["sft"]),
        "policies": policies,
        "sources": {
            "stages": _stages([*map(paths.policy, policies), *map(paths.reward_model, several)]) | {"report": own},
            "figures": {figure: str(file) for figure, file in origins.items()},
        },
    }


def _flat(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten one policy's results: {"kl": {"value", "low", "high"}} becomes `kl`, `kl_low`, `kl_high`; None stays."""
    flat = {key: value for key, value in figures.items() if key not in INTERVALS}
    for key in INTERVALS:
        interval = figures[key] or {"value": None, "low": None, "high": None}
        flat |= {key: interval["value"], f"{key}_low": interval["low"], f"{key}_high": interval["high"]}
    return flat


def _best_snapshot(name: str, snapshots: list[dict[str, Any]]) -> int | None:
    """Step of the snapshot with the highest win rate against SFT on the development split; the earliest if tied.

    None if there are no snapshots or no judge.
    """
    own = [row for row in snapshots if row["policy"] == name and row["win_rate_vs_sft"] is not None]
    return max(own, key=lambda row: (row["win_rate_vs_sft"]["value"], -row["step"]))["step"] if own else None


def _tokens(name: str) -> dict[str, int]:
    """Number of response tokens that a policy's training sampled, and that it trained on (each pass counts)."""
    folder = paths.policy(name)
    rows, samples = rows_if_any(folder / paths.CURVE), folder / paths.SAMPLED
    sampled = _read(samples)["sampled_tokens"] if samples.is_file() else 0
    return {
        "sampled_tokens": sampled + int(sum(row.get("sampled_tokens", 0) for row in rows)),
        "trained_tokens": int(sum(row["trained_tokens"] for row in rows)),
    }


def _scalar_model(folder: Path) -> tuple[dict[str, Any] | None, str | None, Path]:
    """Held-out figures of a reward model, or None and the reason; and the file that contains them."""
    none, summary = folder / paths.NO_MODEL, folder / paths.SUMMARY
    return (None, _read(none)["why"], none) if none.is_file() else (_read(summary), None, summary)


def _stages(members: list[Path]) -> dict[str, Any]:
    """How each stage made its outputs: its key, parameters, input digests and output folders, `members` of matrices."""
    stages: dict[str, Any] = {}
    inputs = [folder for folder in declared.of("report").inputs if folder not in (paths.POLICIES, paths.REWARDS)]
    for folder in (*inputs, *members):
        made = _read(folder / paths.MANIFEST)
        entry = {"key": made["key"], "params": made["params"], "inputs": made["inputs"], "outputs": []}
        stages.setdefault(made["stage"], entry)["outputs"].append(str(folder))
    return stages


def _read(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Run the stage that writes it: dvc repro") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}). Restore it: dvc checkout, or dvc repro") from error


if __name__ == "__main__":
    main(render_page if sys.argv[1:] == ["--render"] else report)
