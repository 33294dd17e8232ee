"""Sources of the report's figures: stages and their keys, MLflow runs, and whether the outputs still match.

Environment: RLHF_MLFLOW_UI, the address of the MLflow server (default http://127.0.0.1:5000).
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.files import paths
from tasks.runtime import tracking

if TYPE_CHECKING:
    from mlflow.entities import RunInfo

Stages = Sequence[tuple[str, Mapping[str, Any]]]  # name and entry of report.json's sources.stages


@dataclass(frozen=True)
class StageRun:
    """The MLflow run that made a stage's outputs: its page in the UI and its duration in seconds."""

    url: str
    seconds: float


def find_runs(keys: Mapping[str, str]) -> dict[str, StageRun]:
    """Return the newest finished MLflow run with each stage's key. Stages without such a run are omitted."""
    uri = tracking.tracking_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return {}  # a client would create an empty store
    client = tracking.client()
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    found: dict[str, StageRun] = {}
    if experiment is None:
        return found
    for stage, key in keys.items():
        wanted = f"tags.stage_key = '{key}' and attributes.status = 'FINISHED'"
        newest = ["attributes.start_time DESC"]
        for run in client.search_runs([experiment.experiment_id], wanted, order_by=newest, max_results=1):
            found[stage] = StageRun(run_url(run.info), (run.info.end_time - run.info.start_time) / 1000)
    return found


def run_url(info: "RunInfo") -> str:
    """Return the address of a run's page in the MLflow UI."""
    server = os.environ.get("RLHF_MLFLOW_UI", "http://127.0.0.1:5000").rstrip("/")
    return f"{server}/#/experiments/{info.experiment_id}/runs/{info.run_id}"


def origin(stages: Stages, file: str) -> str:
    """Describe the source of a figure: its file, the stage that writes the file, and that stage's key."""
    name, stage = next(
        (name, stage) for name, stage in stages for output in stage["outputs"] if file.startswith(f"{output}/")
    )
    return f"from: {file}, stage {name}, key {stage['key'][:8]}…"


def stale_stages(stages: Stages) -> list[str]:
    """Return the stages whose outputs in the checkout differ from those that report.json was made from."""
    stale = []
    for name, stage in stages:
        # An output that is a single file has no manifest.
        manifests = [Path(output, paths.MANIFEST) for output in stage["outputs"] if not Path(output).suffix]
        for path in manifests:
            if not path.is_file() or json.loads(path.read_text(encoding="utf-8"))["key"] != stage["key"]:
                stale.append(name)
    return sorted(set(stale))
