"""A checkout of this project in a test's own folder, with parameters that run in seconds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tools.closure import ROOT

ONLINE = {"steps": 2, "rollout_size": 16, "minibatch_size": 8, "micro_batch_size": 8, "snapshots": 1}
OFFLINE = {"max_steps": 3, "batch_size": 8, "warmup_steps": 1, "snapshots": 1, "evaluations": 1}
TINY = {
    "prepare": {"demonstrations": 64, "threads": 128, "prompts": 48},
    "base": {"epochs": 1, "max_steps": 6, "batch_size": 16, "warmup_steps": 1, "resume_every": 2, "evaluations": 1},
    "sft": {"epochs": 1, "batch_size": 16, "warmup_steps": 1, "resume_every": 2, "evaluations": 1},
    "sample": {"prompts": 12, "development_prompts": 6, "responses": 3},
    "reward": {"batch_size": 8, "warmup_steps": 1, "centre_prompts": 16, "evaluations": 1},
    "policy": {
        "ppo": {"steps": 3, "rollout_size": 16, "minibatch_size": 8, "snapshots": 2, "resume_every": 1},
        "grpo": {"steps": 3, "rollout_size": 16, "minibatch_size": 8, "group_size": 4, "snapshots": 2},
        "dpo": {"batch_size": 8, "warmup_steps": 1, "snapshots": 2, "evaluations": 1},
        "reinforce": ONLINE | {"minibatch_size": 16},
        "rloo": ONLINE,
        "trpo": ONLINE,
        "ppo_penalty": ONLINE,
        "online_dpo": ONLINE,
        "cdpo": OFFLINE,
        "ipo": OFFLINE,
        "kto": OFFLINE,
        "best_of_n": {"best_of": 3},
        "best_of_n_distillation": OFFLINE | {"best_of": 3, "prompts": 12},
    },
    "evaluate": {"prompts": 16, "development_prompts": 8, "resamples": 100, "samples": 3},
}


def git(folder: Path, *arguments: str) -> str:
    """Run git and return what it prints."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def make_checkout(folder: Path, changes: dict | None = None) -> Path:
    """Copy every file of the working tree that git tracks or would track, and commit it with tiny parameters.

    Results of the user's runs (dvc.lock) are not copied, so the checkout is like a new clone.
    """
    from tasks.params.load import merged

    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    write_params(folder, merged(yaml.safe_load((ROOT / "params.yaml").read_text()), TINY, changes or {}))
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "checkout")
    return folder


def write_params(folder: Path, raw: dict) -> None:
    """Write params.yaml and the output of stage params, for stages that run in the test's own process."""
    from tasks.stages.params import params

    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    params(folder)


def environment(folder: Path) -> dict[str, str]:
    """The environment of a command in a checkout: this interpreter, the checkout's own code and stores."""
    dropped = {"RLHF_PARENT_RUN_ID", "RLHF_FLOW_RUN_ID", "MLFLOW_TRACKING_URI", "RLHF_ROOT"}
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {**kept, **quiet, "PATH": path, "PYTHONPATH": str(folder), "SHELL": "/bin/sh"}


def run(folder: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run a command in a checkout."""
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def stages_run(output: str) -> list[str]:
    """Names of the stages that a `dvc repro` ran."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
