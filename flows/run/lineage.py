"""The MLflow parent run of a flow run: what was asked for, from which code, and what came out."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flows.run.workspace import Workspace, git, head
from tasks.params.schema import Params
from tasks.reporting.comparison import comparison
from tasks.reporting.findings import ranked
from tasks.runtime import tracking

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
        for key, term in terms_of(workspace.checkout).items():
            self.client.set_tag(self.run_id, key, term)
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
    """What is compared, as MLflow groups it: `win_rate_vs_sft/dpo`, `kl/dpo`, `reward_model/accuracy` ..."""
    groups = comparison(report, intervals=True)
    return {f"{group}/{name}": float(value) for group, row in groups.items() for name, value in row.items()}


def terms_of(checkout: Path) -> dict[str, str]:
    """What a win rate depends on besides the policies, for the report in `checkout`: {} where there is none.

    judge: its name, and of a judge that is a model the DVC digest. test_prompts: sha256 of the file of prompts and
    reference responses. prompts: how many of them were judged.
    """
    report = read_report(checkout / "reports")
    test = checkout / "data" / "prepared" / "prompts_test.jsonl"
    if "judge" not in report or not test.is_file():
        return {}
    judge = report["judge"]
    if report.get("judge_model"):
        judge += f" {report['sources']['stages']['evaluate']['inputs']['models/judge'][:8]}"
    digest = hashlib.sha256(test.read_bytes()).hexdigest()
    return {"judge": judge, "prompts": str(report["prompts"]), "test_prompts": digest[:8]}


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
    for name, figure in ranked(policies).items():
        rates = [rate_text(figure.get(key)) for key in ("win_rate_vs_sft", "win_rate_vs_reference")]
        numbers = [number_text(figure.get(key)) for key in ("kl", "reward", "mean_length")]
        lines.append("| " + " | ".join([name, *rates, *numbers]) + " |")
    judge = next((f["win_rate_vs_sft"].get("judge") for f in policies.values() if f.get("win_rate_vs_sft")), None)
    return "\n".join(lines) + (f"\n\nJudged by {judge}; intervals are 95 %." if judge else "")


def rate_text(rate: Mapping[str, Any] | None) -> str:
    """`0.84 (0.80–0.88)`, or a dash where there is none."""
    if not rate or rate.get("value") is None:
        return "–"
    return f"{rate['value']:.3f} ({rate['low']:.3f}–{rate['high']:.3f})"


def number_text(value: float | None) -> str:
    """A figure with three significant digits, or a dash where there is none."""
    return "–" if value is None else f"{value:.3g}"
