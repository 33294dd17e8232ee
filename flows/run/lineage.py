"""The MLflow parent run of a flow run: its parameters, its code version, and its results."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flows.run.workspace import Workspace
from tasks.files import paths
from tasks.params.schema import Params
from tasks.reporting.comparison import figures, markdown_table, short_table
from tasks.reporting.seeds import CODE_AND_DATA, code_and_data
from tasks.runtime import tracking
from tasks.runtime.git import code_tags


class ParentRun:
    """One MLflow run. The runs of all stages of a flow run are its children."""

    def __init__(self, name: str, params: Params, root: Path, flow_run_id: str) -> None:
        self.name, self.params, self.root, self.flow_run_id = name, params, root, flow_run_id

    def __enter__(self) -> Self:
        """Start the run and log its parameters under their dotted keys."""
        self.client = tracking.client()
        tracking.close_interrupted(self.client)
        self.experiment_id = tracking.experiment_id(self.client)
        tags = {
            "kind": tracking.PIPELINE,
            **code_tags(self.root),
            "flow_run_id": self.flow_run_id,
            **tracking.writer_tags(),
        }
        run = self.client.create_run(self.experiment_id, run_name=self.name, tags=tags)
        self.run_id = str(run.info.run_id)
        tracking.log_params(self.client, self.run_id, asdict(self.params))
        return self

    def record(self, workspace: Workspace) -> None:
        """Log the results: the hash of dvc.lock, the figures of report.json, and the report page."""
        checkout = workspace.checkout
        tags = tracking.lock_tag(checkout) | terms_of(checkout)
        if workspace.name:
            tags["experiment"] = workspace.name
        report = read_report(checkout / paths.REPORTS)
        if digest := code_and_data(report):
            tags[CODE_AND_DATA] = digest
        for key, tag in tags.items():
            self.client.set_tag(self.run_id, key, tag)
        for key, value in figures(report).items():
            self.client.log_metric(self.run_id, key, value)
        if (page := checkout / paths.PAGE).is_file():
            self.client.log_artifact(self.run_id, str(page))

    def family(self) -> dict[str, str]:
        """Return run ids by name: this run, then the runs of its stages in the order they started."""
        children = self.client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.`mlflow.parentRunId` = '{self.run_id}'",
            order_by=["attributes.start_time ASC"],
        )
        return {self.name: self.run_id} | {str(run.info.run_name): str(run.info.run_id) for run in children}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run as finished, failed or interrupted, and end the runs of stages that were killed."""
        for run_id in self._running() if kind is not None else ():
            tracking.interrupt(self.client, run_id)
        if kind is None or issubclass(kind, Exception):
            self.client.set_terminated(self.run_id, "FINISHED" if kind is None else "FAILED")
        else:
            tracking.interrupt(self.client, self.run_id)

    def _running(self) -> list[str]:
        """Return runs that are still open although their stages have ended, because the stages were killed."""
        children = self.client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.status = 'RUNNING'",
        )
        return [str(run.info.run_id) for run in children]


def read_report(reports: Path) -> dict[str, Any]:
    """Return report.json of a folder, or {} if there is no report."""
    path = reports / paths.REPORT.name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def terms_of(checkout: Path) -> dict[str, str]:
    """Return the conditions under which the report's win rates were measured; {} without a report.

    judge: its name, with its DVC digest if it is a model. test_prompts: sha256 of the file of prompts and
    reference responses. prompts: the number of judged prompts.
    """
    report = read_report(checkout / paths.REPORTS)
    test = checkout / paths.rows(paths.PREPARED, "prompts", "test")
    if "judge" not in report or not test.is_file():
        return {}
    judge = report["judge"]
    if report.get("judge_model"):
        judge += f" {report['sources']['stages']['evaluate']['inputs'][str(paths.JUDGE)][:8]}"
    digest = hashlib.sha256(test.read_bytes()).hexdigest()
    return {"judge": judge, "prompts": str(report["prompts"]), "test_prompts": digest[:8]}


def comparison_markdown(report: Mapping[str, Any]) -> str:
    """Return the comparison of policies as a markdown table, best first; '' if the report has no policies."""
    policies = report.get("policies") or {}
    judge = next((f["win_rate_vs_sft"].get("judge") for f in policies.values() if f.get("win_rate_vs_sft")), None)
    return markdown_table(short_table(report)) + (f"\n\nJudged by {judge}; intervals are 95 %." if judge else "")
