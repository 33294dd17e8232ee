"""A scratch checkout for tests of flows/: real git, DVC, Prefect and MLflow around stages that take milliseconds."""

import os
import shutil
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from flows.servers.services import Services
from flows.servers.settings import login

PACKAGE = Path(__file__).resolve().parents[2]

DVC_YAML = """\
stages:
  prepare:
    cmd: python -m tasks.fake prepare data/prepared
    deps: [tasks/fake.py, "${prepare.path}"]
    params: [prepare.path]
    outs: [data/prepared]
  sft:
    cmd: python -m tasks.fake sft models/sft
    deps: [data/prepared]
    params: [sft.learning_rate]
    outs: [models/sft]
  offline: &policies
    matrix:
      name: ${policy.offline}
    cmd: python -m tasks.fake ${item.name} models/policies/${item.name}
    deps: [models/sft]
    params: ["policy.${item.name}.learning_rate"]
    outs: ["models/policies/${item.name}"]
  online:
    <<: *policies
    matrix:
      name: ${policy.online}
  report:
    cmd: python -m tasks.stages.report
    deps: [models/policies]
    outs: [reports/report.json]
"""

PARAMS_YAML = """\
# how everything runs
run: {parallel: 3}
model: {path: model.json}
prepare:
  path: rows.jsonl  # the user's own rows
  format: auto
sft:
  learning_rate: 0.001  # found by trying
reward_models: {names: []}
policy:
  online: [ppo, grpo]
  offline: [dpo]
  reward_code: tasks/fake.py
  ppo: {learning_rate: 0.1}
  grpo: {learning_rate: 0.2}
  dpo: {learning_rate: 0.3}
"""

# A stage writes its learning rate. Environment variables make one stage fail, die, or wait for the other policies.
# The file .rlhf/hang, which runs started by the server can also read, makes one hang.
FAKE = """\
import os, signal, sys, time
from pathlib import Path
import yaml

os.environ.setdefault("RLHF_ROOT", os.getcwd())
name, out = sys.argv[1], Path(sys.argv[2])
params = yaml.safe_load(Path("params.yaml").read_text())
section = params.get(name) or params["policy"][name]
print("working on", name, flush=True)
with (Path(os.environ["RLHF_ROOT"]) / ".rlhf" / "calls").open("a") as calls:
    calls.write(name + chr(10))
if os.environ.get("FAKE_MISTAKE") == name:
    sys.exit("error: rows.jsonl, line 3: no field 'prompt'. Add it.")
if os.environ.get("FAKE_BUG") == name:
    raise ZeroDivisionError("a bug")
mark = Path(os.environ["RLHF_ROOT"]) / ".rlhf" / "died"
if os.environ.get("FAKE_DIE") == name and not mark.exists():
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
if "FAKE_MEET" in os.environ and name in ("ppo", "grpo", "dpo"):
    meeting = Path(os.environ["FAKE_MEET"])
    (meeting / name).touch()
    deadline = time.monotonic() + 60
    while len(list(meeting.iterdir())) < 3:
        assert time.monotonic() < deadline, "the policies did not run side by side"
        time.sleep(0.01)
hang = Path(os.environ["RLHF_ROOT"]) / ".rlhf" / "hang"
if os.environ.get("FAKE_HANG") == name or (hang.is_file() and hang.read_text() == name):
    (Path(os.environ["RLHF_ROOT"]) / ".rlhf" / "hanging").write_text(str(os.getpid()))
    signal.pause()
out.mkdir(parents=True, exist_ok=True)
if name == "prepare":
    (out / "prompts_test.jsonl").write_text("rows")
(out / "value").write_text(str(section.get("learning_rate", section.get("path"))))
"""

REPORT = """\
import json, os, sys
from pathlib import Path

page = Path("reports/report.html")
if sys.argv[1:] == ["--render"]:
    page.write_text("<h1>parent " + os.environ.get("RLHF_PARENT_RUN_ID", "none") + "</h1>")
    sys.exit()
rates = {path.name: float((path / "value").read_text()) for path in sorted(Path("models/policies").iterdir())}
policies = {
    name: {
        "win_rate_vs_sft": {"value": rate, "low": rate - 0.05, "high": rate + 0.05, "n": 300, "judge": "gold"},
        "kl": 2.5, "reward": 1.25, "mean_length": 20.0,
    }
    for name, rate in rates.items()
}
page.parent.mkdir(exist_ok=True)
report = {"judge": "gold rubric", "prompts": 300, "policies": policies, "reward_model": {"accuracy": 0.66}}
report["sources"] = {"stages": {"prepare": {"inputs": {"rows.jsonl": "digest"}}}}
Path("reports/report.json").write_text(json.dumps(report, indent=1))
"""

IGNORED = "/.rlhf/\n/runs/\n/data/\n/models/\n/reports/\n/mlflow.db*\n/mlartifacts/\n__pycache__/\n/rows.jsonl\n"


def make_scratch(root: Path) -> Path:
    """Make a committed checkout with a small graph in `root` and return it."""
    shutil.copytree(_template().name, root, dirs_exist_ok=True)
    return root


@cache
def _template() -> "TemporaryDirectory[str]":
    """The checkout that the others are copied from, because `dvc init` takes a second."""
    folder = TemporaryDirectory()
    root = Path(folder.name)
    files = {
        "dvc.yaml": DVC_YAML,
        "params.yaml": PARAMS_YAML,
        # The worker is started in this folder and needs the modules of the real package as well.
        "tasks/__init__.py": f"__path__.append({str(PACKAGE / 'tasks')!r})\n",
        "tasks/stages/__init__.py": f"__path__.append({str(PACKAGE / 'tasks' / 'stages')!r})\n",
        "tasks/fake.py": FAKE,
        "tasks/stages/report.py": REPORT,
        "profiles/fast.yaml": "sft:\n  learning_rate: 0.5\n",
        ".gitignore": IGNORED,
        "rows.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
        "model.json": (PACKAGE / "helpdesk/model.json").read_text(),
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / ".rlhf").mkdir()
    for command in (["git", "init", "-q", "-b", "main"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n    autostage = false\n")
    commit(root, "start")
    return folder


def commit(root: Path, message: str) -> None:
    """Commit everything that is not ignored."""
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    author = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", *author, "commit", "-q", "-m", message], cwd=root, check=True)


def rlhf(root: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a checkout. -P hides the scratch checkout's own `tasks`, which only its stages use."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RLHF_", "PREFECT_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", *arguments],
        cwd=root,
        env={**kept, "PYTHONPATH": str(PACKAGE), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def dvc(root: Path, *arguments: str) -> str:
    """Run a dvc command that must succeed, and return its output."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


class Patient(httpx.HTTPTransport):
    """Retry if SQLite was locked and the server answers 503, as Prefect's own clients do."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(20):
            answer = super().handle_request(request)
            if answer.status_code != 503:
                break
            answer.close()
            time.sleep(0.2)
        return answer


def signed_in(root: Path, services: Services) -> httpx.Client:
    """A client of Prefect's API that has the checkout's password and a CSRF token, as Prefect's page has them."""
    user, _, password = login(root).partition(":")
    client = httpx.Client(base_url=f"{services.prefect}/api", auth=(user, password), timeout=60, transport=Patient())
    token = client.get("/csrf-token", params={"client": "test"}).json()["token"]
    client.headers.update({"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"})
    return client


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def calls(root: Path) -> list[str]:
    """Names of the stages in the order they were started, with repetitions."""
    return (root / ".rlhf" / "calls").read_text().split()
