"""A kill inside an optimiser step and one between the end of a stage and DVC's lock update lose nothing.

Both kill the same stage of a real checkout. The checkout's copy of `tasks/runtime/finished.py`, which no stage depends
on, kills the stage's process group at the moment named in a file. Another checkout runs undisturbed.
"""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from checkout import environment, make_checkout, run
from rlhf_core.common.errors import UserError
from tasks.runtime import finished
from tasks.runtime.hold import hold
from terminal import mlflow_runs

STEPS, KILLED_IN = 6, 4  # `base` of the tiny parameters; a resume state every 2 steps

KILLER = """

import signal as _signal

from torch.optim import optimizer as _optimizer

_steps, _place = 0, place


def _kill(moment):
    if Path("kill").is_file() and Path("kill").read_text() == moment:
        Path("kill").unlink()
        os.killpg(0, _signal.SIGKILL)


def _in_step(*arguments):
    \"\"\"Called inside optimizer.step(): only the weights have changed.\"\"\"
    global _steps
    _steps += 1
    with Path("steps").open("a") as steps:
        steps.write(f"{_steps}\\n")
    _kill(f"step {_steps}")


def place(folder, outputs):
    _place(folder, outputs)
    _kill("end")


_optimizer.register_optimizer_step_post_hook(_in_step)
"""


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory) -> tuple[Path, Path]:
    """Two checkouts in which stage prepare has run: one undisturbed, one to kill stages in."""
    whole = make_checkout(tmp_path_factory.mktemp("checkouts") / "whole")
    with (whole / "tasks/runtime/finished.py").open("a") as code:
        code.write(KILLER)
    run(whole, "dvc", "repro", "prepare")
    killed = whole.parent / "killed"
    shutil.copytree(whole, killed, symlinks=True)
    return whole, killed


def killed_repro(folder: Path, moment: str) -> None:
    """Run `dvc repro base`, which is killed with all its children at `moment`."""
    (folder / "kill").write_text(moment)
    command = ["dvc", "repro", "--single-item", "base"]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), start_new_session=True, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stdout
    assert not (folder / "kill").exists()


def steps(folder: Path) -> list[int]:
    """The optimiser steps of each process, in order."""
    return [int(line) for line in (folder / "steps").read_text().split()]


def lock(folder: Path) -> dict:
    return yaml.safe_load((folder / "dvc.lock").read_text())["stages"]


def keys(folder: Path) -> list[str]:
    """The stages with finished outputs in .resume."""
    return sorted(json.loads(path.read_text())["stage"] for path in (folder / ".resume").glob("*/finished.json"))


def hashes(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.pitfall(25)
@pytest.mark.pitfall(37)
def test_kills_in_a_step_and_after_the_last_one(checkouts, monkeypatch):
    whole, folder = checkouts
    run(whole, "dvc", "repro", "--single-item", "base")
    assert steps(whole) == [1, 2, 3, 4, 5, 6]

    killed_repro(folder, f"step {KILLED_IN}")
    assert steps(folder) == [1, 2, 3, 4]
    assert mlflow_runs(folder)["base"][0] == "RUNNING"
    assert not (folder / "models/base").exists()
    assert "base" not in lock(folder)

    # The state is from step 2, so four steps remain. The next kill comes after them, before DVC writes its lock.
    killed_repro(folder, "end")
    assert steps(folder) == [1, 2, 3, 4, 1, 2, 3, 4]
    assert "base" not in lock(folder)
    assert hashes(folder / "models/base") == hashes(whole / "models/base")
    assert keys(folder) == ["base"]  # the outputs of prepare are recorded
    assert not list((folder / ".resume").glob("*/state"))

    # Not recorded yet, so a sweep keeps it. A sweep also keeps folders that a live process has locked.
    finished.sweep_checkout(folder)
    assert keys(folder) == ["base"]

    done = run(folder, "dvc", "repro", "--single-item", "base")
    assert "base: finished earlier; its outputs are in place again" in done.stdout
    assert steps(folder) == [1, 2, 3, 4, 1, 2, 3, 4]  # no step was repeated
    assert hashes(folder / "models/base") == hashes(whole / "models/base")
    assert lock(folder)["base"] == lock(whole)["base"]
    runs = mlflow_runs(folder)
    status, tags = runs["base"]
    assert (status, "interrupted" in tags) == ("FINISHED", False)
    assert tags["stage_key"] == json.loads((folder / "models/base/manifest.json").read_text())["key"]

    [key] = (folder / ".resume").glob("*")
    handle = hold(key)
    finished.sweep_checkout(folder)
    assert keys(folder) == ["base"]
    os.close(handle)
    finished.sweep_checkout(folder)
    assert keys(folder) == []
    assert "up to date" in run(folder, "dvc", "status", "base").stdout

    # With --force DVC starts a recorded stage again. It then trains and does not write into DVC's cache.
    run(folder, "dvc", "repro", "--force", "--single-item", "base")
    run(folder, "dvc", "repro", "--force", "--single-item", "base")
    assert steps(folder)[8:] == [1, 2, 3, 4, 5, 6] * 2
    assert lock(folder)["base"] == lock(whole)["base"]
    assert len(mlflow_runs(folder)) == 2


# Incomplete outputs


def make_output(folder: Path) -> list[str]:
    (folder / "out/models/x").mkdir(parents=True)
    (folder / "out/models/x/weights").write_text("whole")
    (folder / "out/report.json").write_text("{}")
    (folder / "state").mkdir()
    return ["models/x", "report.json"]


@pytest.mark.pitfall(37)
def test_outputs_are_hard_links_and_replace_old_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key = Path(".resume/key")
    outputs = make_output(key)
    (tmp_path / "models/x").mkdir(parents=True)
    (tmp_path / "models/x/old").touch()
    finished.mark_finished(key, "x", outputs)
    assert finished.finished_outputs(key) == outputs
    for _ in range(2):  # placing may be repeated after a kill
        finished.place(key, outputs)
        assert [path.name for path in (tmp_path / "models/x").iterdir()] == ["weights"]
        assert (tmp_path / "models/x/weights").samefile(key / "out/models/x/weights")
        assert (tmp_path / "report.json").samefile(key / "out/report.json")
    assert sorted(path.name for path in key.iterdir()) == ["finished.json", "out"]


def test_outputs_are_copies_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key = Path(".resume/key")

    def refuse(*arguments):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    finished.place(key, make_output(key))
    assert (tmp_path / "models/x/weights").read_text() == "whole"
    assert not (tmp_path / "models/x/weights").samefile(key / "out/models/x/weights")


@pytest.mark.pitfall(37)
@pytest.mark.parametrize("fault", ["missing", "short", "no marker", "half a marker"])
def test_incomplete_outputs_are_not_finished(tmp_path, fault):
    key = tmp_path / "key"
    finished.mark_finished(key, "x", make_output(key))
    weights, marker = key / "out/models/x/weights", key / "finished.json"
    if fault == "missing":
        weights.unlink()
    elif fault == "short":
        weights.write_text("who")
    elif fault == "no marker":
        marker.rename(key / "finished.json.partial")
    else:
        marker.write_text(marker.read_text()[:20])
    assert finished.finished_outputs(key) is None


def test_a_newer_key_of_the_same_stage_supersedes(tmp_path):
    for name, stage in (("old", "online@ppo"), ("new", "online@ppo"), ("beside", "offline@dpo")):
        finished.mark_finished(tmp_path / name, stage, make_output(tmp_path / name))
    finished.sweep_superseded("online@ppo", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "new"]


def test_only_one_process_works_in_a_folder(tmp_path):
    with (
        finished.holding(tmp_path / "key"),
        pytest.raises(UserError, match=r"another process runs the same stage in .*key\. Wait for it, or stop it"),
        finished.holding(tmp_path / "key"),
    ):
        pass
    with finished.holding(tmp_path / "key"):
        pass


def test_resume_as_a_file(tmp_path):
    finished.require_resume_folder(tmp_path)
    (tmp_path / ".resume").write_text("")
    with pytest.raises(UserError, match=r"\.resume is a file, but stages need .* Rename the file\."):
        finished.require_resume_folder(tmp_path)
    (tmp_path / ".resume").unlink()
    (tmp_path / ".resume").symlink_to("nowhere")
    with pytest.raises(UserError, match="links to a folder that does not exist"):
        finished.require_resume_folder(tmp_path)
