"""The MLflow parent run of a flow run: what was asked for, from which code, and what came out."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flows.workspace import Workspace, git, head
from tasks import tracking
from tasks.params import Params

KIND = "pipeline"  # the tag `kind` by which parent runs are told from those of stages


class ParentRun:
    """One MLflow run; the runs of all stages of a flow run are its children."""

    def __init__(self, name: str, params: Params, root: Path, flow_run_id: str) -> None:
        self.name, self.params, self.root, self.flow_run_id = name, params, root, flow_run_id

    def __enter__(self) -> Self:
        """Begin the run; parameters are logged under their dotted keys."""
        from mlflow.entities import Param

        self.client = tracking.client()
        tracking.close_interrupted(self.client)
        self.experiment_id = tracking.experiment_id(self.client)
        edited = git(self.root, "status", "--porcelain", "--untracked-files=no")
        tags = {
            "kind": KIND,
            "git_commit": head(self.root),
            "git_dirty": str(bool(edited.strip())).lower(),
            "flow_run_id": self.flow_run_id,
            **tracking.writer_tags(),
        }
        run = self.client.create_run(self.experiment_id, run_name=self.name, tags=tags)
        self.run_id = str(run.info.run_id)
        params = [Param(key, str(value)) for key, value in flatten(asdict(self.params))]
        self.client.log_batch(self.run_id, params=params)
        return self

    def record(self, workspace: Workspace) -> None:
        """Log what came out: the hash of dvc.lock, the figures of report.json, and the page itself."""
        reports = workspace.checkout / "reports"
        lock = workspace.checkout / "dvc.lock"
        if lock.is_file():
            self.client.set_tag(self.run_id, "dvc_lock_sha256", hashlib.sha256(lock.read_bytes()).hexdigest())
        if workspace.name:
            self.client.set_tag(self.run_id, "experiment", workspace.name)
        for key, value in figures(read_report(reports)).items():
            self.client.log_metric(self.run_id, key, value)
        if (reports / "report.html").is_file():
            self.client.log_artifact(self.run_id, str(reports / "report.html"))

    def family(self) -> dict[str, str]:
        """Run ids by name: this run, then those of the stages that ran under it, in the order they began."""
        children = self.client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.`mlflow.parentRunId` = '{self.run_id}'",
            order_by=["attributes.start_time ASC"],
        )
        return {self.name: self.run_id} | {str(run.info.run_name): str(run.info.run_id) for run in children}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run as what it was: finished, failed, or stopped by a person; and its stages', which run no more."""
        for run_id in self._running() if kind is not None else ():
            tracking.interrupt(self.client, run_id)
        if kind is None or issubclass(kind, Exception):
            self.client.set_terminated(self.run_id, "FINISHED" if kind is None else "FAILED")
        else:
            tracking.interrupt(self.client, self.run_id)

    def _running(self) -> list[str]:
        """Runs of stages that were killed: all that this run has started have ended by now."""
        children = self.client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.status = 'RUNNING'",
        )
        return [str(run.info.run_id) for run in children]


def read_report(reports: Path) -> dict[str, Any]:
    """Return report.json of a folder, {} where no report was made."""
    path = reports / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report by dotted name: `policies.dpo.win_rate_vs_sft`, `reward_model.accuracy` ..."""
    parts = {key: report[key] for key in ("reward_model", "policies") if isinstance(report.get(key), Mapping)}
    return {
        key.removesuffix(".value"): float(value)
        for key, value in flatten(parts)
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings with dotted keys."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def comparison_markdown(report: Mapping[str, Any]) -> str:
    """The comparison of policies as a markdown table, best first; '' where the report holds no policies."""
    policies = report.get("policies") or {}
    if not policies:
        return ""
    lines = [
        "| policy | wins against SFT | against reference | KL | reward | length |",
        "|---|---|---|---|---|---|",
    ]
    for name, figure in ranked(policies):
        rates = [rate_text(figure.get(key)) for key in ("win_rate_vs_sft", "win_rate_vs_reference")]
        numbers = [number_text(figure.get(key)) for key in ("kl", "reward", "mean_length")]
        lines.append("| " + " | ".join([name, *rates, *numbers]) + " |")
    judge = next((f["win_rate_vs_sft"].get("judge") for f in policies.values() if f.get("win_rate_vs_sft")), None)
    return "\n".join(lines) + (f"\n\nJudged by {judge}; intervals are 95 %." if judge else "")


def ranked(policies: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Policies of a report, the highest win rate against SFT first."""
    return sorted(policies.items(), key=lambda item: -((item[1].get("win_rate_vs_sft") or {}).get("value") or 0.0))


def rate_text(rate: Mapping[str, Any] | None) -> str:
    """`0.84 (0.80–0.88)`, or a dash where there is none."""
    if not rate or rate.get("value") is None:
        return "–"
    return f"{rate['value']:.3f} ({rate['low']:.3f}–{rate['high']:.3f})"


def number_text(value: float | None) -> str:
    """A figure with three significant digits, or a dash where there is none."""
    return "–" if value is None else f"{value:.3g}"
