"""MLflow tracking: one run per executed stage, a child of the flow's run if there is one.

Environment: MLFLOW_TRACKING_URI (default: mlflow.db in RLHF_ROOT, or in the checkout), RLHF_PARENT_RUN_ID,
RLHF_FLOW_RUN_ID.
"""

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rlhf_core.common.errors import UserError
from tasks.runtime.git import code_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "rlhf"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's page then shows trainings, not traces
INTERRUPTED = "interrupted"  # tag of a run whose process was killed; removed when the run resumes
LOCK = "dvc_lock_sha256"  # tag of every run
PIPELINE = "pipeline"  # the tag `kind` of parent runs; runs of stages do not have it
SAME_START = 2.0  # seconds; the start of a process is computed from the clock, which may be adjusted


def tracking_root() -> Path:
    """Return the checkout whose mlflow.db is written: the user's own, also for runs in a clone."""
    return Path(os.environ.get("RLHF_ROOT", ".")).resolve()


def tracking_uri() -> str:
    """Return the address of the tracking store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{tracking_root() / 'mlflow.db'}"


def client() -> "MlflowClient":
    """An MlflowClient on the tracking store, quiet and without telemetry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import logging

    import mlflow

    for noisy in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    mlflow.set_tracking_uri(tracking_uri())
    return mlflow.MlflowClient()


def experiment_id(mlflow_client: "MlflowClient") -> str:
    """The id of the experiment, which is created if it does not exist."""
    found = mlflow_client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    artifacts = (tracking_root() / "mlartifacts").as_uri()
    remote = "://" in tracking_uri() and not tracking_uri().startswith("sqlite")
    location = None if remote else artifacts
    return str(mlflow_client.create_experiment(EXPERIMENT, artifact_location=location, tags=KIND))


def lineage_tags() -> dict[str, str]:
    """The code's commit and state, the hash of dvc.lock, and the flow run."""
    try:
        tags = code_tags(Path())
    except UserError:  # without a commit, the stage still runs
        tags = {"git_commit": "none", "git_dirty": "false"}
    tags |= lock_tag(Path())
    if flow_run := os.environ.get("RLHF_FLOW_RUN_ID"):
        tags["flow_run_id"] = flow_run
    return tags


def lock_tag(checkout: Path) -> dict[str, str]:
    """The hash of dvc.lock, which names every input and output of a run; {} if it does not exist."""
    lock = checkout / "dvc.lock"
    return {LOCK: hashlib.sha256(lock.read_bytes()).hexdigest()} if lock.is_file() else {}


def log_params(mlflow_client: "MlflowClient", run_id: str, params: Mapping[str, Any]) -> None:
    """Log nested parameters under their dotted keys, in one call."""
    from mlflow.entities import Param

    mlflow_client.log_batch(run_id, params=[Param(key, str(value)) for key, value in _flatten(params)])


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings with dotted keys."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def writer_tags() -> dict[str, str]:
    """Return tags that identify the writer of a run: host, process id and start time, since ids are reused."""
    import psutil

    return {
        "writer_host": socket.gethostname(),
        "writer_pid": str(os.getpid()),
        "writer_started": f"{psutil.Process().create_time():.2f}",
    }


def is_writer_alive(tags: Mapping[str, str]) -> bool:
    """Return whether the process named by these tags is still running on this host."""
    import psutil

    try:
        process = psutil.Process(int(tags["writer_pid"]))
        is_same = abs(process.create_time() - float(tags["writer_started"])) < SAME_START
        return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def interrupt(mlflow_client: "MlflowClient", run_id: str) -> None:
    """Close a run whose process was killed."""
    mlflow_client.set_tag(run_id, INTERRUPTED, "true")
    mlflow_client.set_terminated(run_id, "KILLED")


def close_interrupted(mlflow_client: "MlflowClient") -> list[str]:
    """Close the runs that killed processes of this host left open; return their ids."""
    found = mlflow_client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        return []
    running = mlflow_client.search_runs(
        [found.experiment_id],
        filter_string=f"attributes.status = 'RUNNING' and tags.writer_host = '{socket.gethostname()}'",
    )
    gone = [run.info.run_id for run in running if not is_writer_alive(run.data.tags)]
    for run_id in gone:
        interrupt(mlflow_client, run_id)
    return gone


def pipeline_runs() -> "list[Run]":
    """Return the parent runs of finished flow runs, latest first."""
    uri = tracking_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return []  # a client would create an empty store
    mlflow_client = client()
    return list(
        mlflow_client.search_runs(
            [experiment_id(mlflow_client)],
            filter_string=f"tags.kind = '{PIPELINE}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
        )
    )


class StageRun:
    """The MLflow run of one execution of one stage. A resumed stage continues its run."""

    def __init__(self, stage: str, key: str, folder: Path) -> None:
        self.stage, self.key = stage, key
        self._memory = folder / "mlflow_run_id"

    def __enter__(self) -> Self:
        self.client = client()
        close_interrupted(self.client)
        self.run_id = self._begun() or self._begin()
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        self._memory.write_text(self.run_id, encoding="utf-8")
        return self

    def _begun(self) -> str | None:
        """Resume the run of an earlier start of this stage and return its id, None if there is none."""
        if not self._memory.is_file():
            return None
        from mlflow.entities import RunTag
        from mlflow.exceptions import MlflowException

        run_id = self._memory.read_text(encoding="utf-8")
        try:
            tags = self.client.get_run(run_id).data.tags
            now = {**writer_tags(), **_parent_tag()}
            # Set the tags first: a parallel stage would close a RUNNING run whose tags name a dead process.
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in now.items()])
            self.client.update_run(run_id, status="RUNNING")
            if INTERRUPTED in tags:
                self.client.delete_tag(run_id, INTERRUPTED)
        except MlflowException:  # another store, or deleted
            return None
        return run_id

    def _begin(self) -> str:
        tags = {"stage": self.stage, "stage_key": self.key, **lineage_tags(), **writer_tags(), **_parent_tag()}
        run = self.client.create_run(experiment_id(self.client), run_name=self.stage, tags=tags)
        return str(run.info.run_id)

    def restore(self) -> None:
        """Close the run that made reused outputs; it may have been killed before it could close itself."""
        self.client = client()
        if run_id := self._begun():
            self.client.set_terminated(run_id, "FINISHED")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """The stage's parameters, nested keys dotted."""
        log_params(self.client, self.run_id, params)

    def log_inputs(self, inputs: Mapping[str, str]) -> None:
        """Log the data and models that the stage reads, each with its DVC digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        rows = [
            DatasetInput(
                Dataset(name=path, digest=digest[:36], source_type="dvc", source=json.dumps({"path": path})),
                [InputTag("mlflow.data.context", self.stage)],
            )
            for path, digest in inputs.items()
        ]
        try:
            self.client.log_inputs(self.run_id, rows)
        except MlflowException:
            # A parallel stage inserted the same data set between look-up and insertion. The retry finds it.
            self.client.log_inputs(self.run_id, rows)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log all metrics of one step in one call."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(key, value, now, step) for key, value in metrics.items()])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is KeyboardInterrupt:
            interrupt(self.client, self.run_id)
        else:
            self.client.set_terminated(self.run_id, "FINISHED" if kind is None else "FAILED")


def _parent_tag() -> dict[str, str]:
    parent = os.environ.get("RLHF_PARENT_RUN_ID")
    return {"mlflow.parentRunId": parent} if parent else {}
