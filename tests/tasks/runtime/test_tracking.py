"""MLflow runs in a real store: the step of a metric, and the runs of killed processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow.exceptions import MlflowException

from tasks.params.load import ROOT, load_params
from tasks.runtime import tracking
from tasks.runtime.key import stage_key
from tasks.runtime.stage import Stage
from tasks.runtime.tracking import StageRun

WRITER = """
import os, signal, sys
from pathlib import Path
from tasks.runtime.tracking import StageRun
run = StageRun("sft", "key", Path("key")).__enter__()
print(run.run_id, flush=True)
signal.pause()
"""
DEVELOPMENT = "trl/eval_rewards/margins"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder with a store, created once, since creating its tables takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        for name in ("RLHF_ROOT", "RLHF_PARENT_RUN_ID", "RLHF_FLOW_RUN_ID"):
            patch.delenv(name, raising=False)
        tracking.experiment_id(tracking.client())
        yield folder


@pytest.fixture
def folder(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def writer(folder: Path) -> tuple["subprocess.Popen[str]", str]:
    """A process that has started a stage's run, and the run's id."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().strip()


def test_every_metric_is_logged_at_its_step(folder, capsys):
    """Through the report callback of a training loop: (metrics, step, total, tokens)."""
    with StageRun("sft", "key", folder / "key") as run:
        stage = Stage("sft", load_params(ROOT / "params.yaml"), {}, {}, "key", run)
        report = stage.training_run().report
        for step, loss in ((1, 4.0), (2, 3.0), (3, 2.5)):
            report({"loss": loss}, step, 3, 10)
        stage.log({"rows": 7.0})
    assert "continues" not in capsys.readouterr().err
    history = run.client.get_metric_history(run.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 4.0), (2, 3.0), (3, 2.5)]
    assert [point.step for point in run.client.get_metric_history(run.run_id, "rows")] == [0]


@pytest.mark.parametrize(
    ("stage", "metrics", "expected"),
    [
        ("offline@dpo", {"margin": 0.5, "development_margin": 0.25}, {"trl/rewards/margins", DEVELOPMENT}),
        ("online@grpo", {"score": 0.5, "kl": 0.25}, {"trl/reward", "verl/critic/score/mean"}),
        ("reward", {"margin": 0.5}, set()),
    ],
)
def test_metrics_are_also_logged_under_the_peers_names(folder, stage, metrics, expected):
    """The first metric is 0.5 and the second 0.25, whatever its name; without a method, there is only ours."""
    with StageRun(stage, "key", folder / "key") as run:
        report = Stage(stage, load_params(ROOT / "params.yaml"), {}, {}, "key", run).training_run().report
        report(metrics, 1, 2, 10)
        report(metrics, 2, 2, 10)
    logged = run.client.get_run(run.run_id).data.metrics
    assert {name for name in logged if name.startswith(("trl/", "verl/"))} == expected
    assert all(logged[name] == (0.25 if "eval" in name else 0.5) for name in expected)
    assert logged[f"train/{next(iter(metrics))}"] == 0.5
    for name in expected:
        assert [point.step for point in run.client.get_metric_history(run.run_id, name)] == [1, 2]


def test_a_resumed_training_prints_where_it_continues(folder, capsys):
    with StageRun("sft", "key", folder / "key") as run:
        report = Stage("sft", load_params(ROOT / "params.yaml"), {}, {}, "key", run).training_run().report
        report({"loss": 4.0}, 51, 60, 10)
    assert "sft          continues at step 51 of 60, from its last saved state\n" in capsys.readouterr().err


def test_run_of_a_killed_process_is_closed_and_tagged_but_not_a_live_one(folder):
    process, run_id = writer(folder)
    client = tracking.client()
    with process:
        assert tracking.close_interrupted(client) == []
        assert client.get_run(run_id).info.status == "RUNNING"
        process.send_signal(signal.SIGKILL)
    assert tracking.close_interrupted(client) == [run_id]
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["interrupted"]) == ("KILLED", "true")
    assert run.info.end_time is not None
    assert tracking.close_interrupted(client) == []


def test_the_next_stage_closes_it_and_the_same_stage_resumes_it(folder, monkeypatch):
    process, run_id = writer(folder)
    with process:
        process.send_signal(signal.SIGKILL)
    with StageRun("prepare", "other", folder / "other") as other:
        assert other.run_id != run_id
        assert other.client.get_run(run_id).info.status == "KILLED"
    monkeypatch.setenv("RLHF_PARENT_RUN_ID", other.run_id)
    with StageRun("sft", "key", folder / "key") as run:
        assert run.run_id == run_id
        again = run.client.get_run(run_id)
        assert again.info.status == "RUNNING"
        assert "interrupted" not in again.data.tags
        assert again.data.tags["writer_pid"] == str(os.getpid())
        assert again.data.tags["mlflow.parentRunId"] == other.run_id  # its new parent run
        assert tracking.close_interrupted(run.client) == []
    assert run.client.get_run(run_id).info.status == "FINISHED"


def test_reused_outputs_keep_their_run(folder):
    """After a kill between the end of the work and the end of the run, the run only needs to be closed."""
    process, run_id = writer(folder)
    with process:
        process.send_signal(signal.SIGKILL)
    client = tracking.client()
    tracking.close_interrupted(client)
    StageRun("sft", "key", folder / "key").restore()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "interrupted" not in run.data.tags
    StageRun("sft", "none", folder / "none").restore()  # without a run, nothing happens
    (folder / "key/mlflow_run_id").write_text("0" * 32)
    StageRun("sft", "key", folder / "key").restore()  # a run of another store
    with pytest.raises(MlflowException):
        client.get_run("0" * 32)


def test_a_process_is_identified_by_its_start_time_too(folder):
    """The id of a killed process may be reused by any program."""
    tags = tracking.writer_tags()
    assert tracking.is_writer_alive(tags)
    assert not tracking.is_writer_alive({**tags, "writer_started": str(psutil.Process().create_time() - 60)})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    assert ended.wait() == 0
    assert not tracking.is_writer_alive({**tags, "writer_pid": str(ended.pid)})


def test_runs_of_other_hosts_are_not_closed(folder, monkeypatch):
    process, run_id = writer(folder)
    with process:
        process.send_signal(signal.SIGKILL)
    client = tracking.client()
    client.set_tag(run_id, "writer_host", "elsewhere")
    assert tracking.close_interrupted(client) == []
    assert client.get_run(run_id).info.status == "RUNNING"


def test_key_of_a_stage_depends_on_inputs_parameters_and_name():
    """Without the inputs in the key, a stage could resume from the state of other data, or take its outputs."""
    base = stage_key("sft", {"sft": {"epochs": 1}}, {"data/prepared": "aa.dir", "models/base": "bb.dir"})
    assert base == stage_key("sft", {"sft": {"epochs": 1}}, {"models/base": "bb.dir", "data/prepared": "aa.dir"})
    others = [
        stage_key("sft", {"sft": {"epochs": 1}}, {"data/prepared": "cc.dir", "models/base": "bb.dir"}),
        stage_key("sft", {"sft": {"epochs": 1}}, {"data/prepared": "aa.dir"}),
        stage_key("sft", {"sft": {"epochs": 2}}, {"data/prepared": "aa.dir", "models/base": "bb.dir"}),
        stage_key("base", {"sft": {"epochs": 1}}, {"data/prepared": "aa.dir", "models/base": "bb.dir"}),
    ]
    assert len({base, *others}) == 5
