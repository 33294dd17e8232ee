"""The whole pipeline with tiny models: DVC's graph, every stage, MLflow's store, on two copies of the working tree."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from checkout import environment, make_checkout, run, stages_run
from rlhf_core.algorithms.base.table import policy_algorithm, policy_algorithms
from tasks.files.jsonl import read_jsonl
from tasks.params.derived import names_of, stage_of

STAGES = [
    "params",
    "prepare",
    "base",
    "sft",
    "sample",
    "collect",
    "reward",
    "offline@dpo",
    "online@ppo",
    "online@grpo",
    "evaluate",
    "report",
]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, str]:
    """A checkout in which `dvc repro` has run once, and its output."""
    folder = make_checkout(tmp_path_factory.mktemp("checkout"))
    return folder, run(folder, "dvc", "repro").stdout


def set_param(folder, *keys, value):
    params = yaml.safe_load((folder / "params.yaml").read_text())
    section = params
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def test_every_stage_runs_once_in_order(done):
    ran = stages_run(done[1])
    assert sorted(ran) == sorted(STAGES)
    assert ran[:6] == STAGES[:6]
    assert ran[-2:] == STAGES[-2:]


def test_report_holds_the_promised_figures(done):
    report = json.loads((done[0] / "reports/report.json").read_text())
    assert {"accuracy", "log_loss", "ece"} <= set(report["reward_model"])
    assert set(report["policies"]) == {"ppo", "grpo", "dpo"}
    for policy in report["policies"].values():
        for against in ("win_rate_vs_sft", "win_rate_vs_reference"):
            rate = policy[against]
            assert set(rate) == {"value", "low", "high", "n", "judge"}
            assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
            assert rate["n"] == 16
            assert rate["judge"] == "gold rubric"
        assert policy["kl"] >= 0
        assert policy["mean_length"] >= 1
    assert "missing or newer" not in (done[0] / "reports/report.html").read_text()
    assert (done[0] / "reports/report.md").is_file()


def weights(folder):
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(folder / "model.safetensors").items())])


def test_policies_and_their_references_start_at_the_sft_model(done):
    """Before the first update, KL and DPO's margin are 0 and its loss is log 2. Trained weights stay near SFT's."""
    models = done[0] / "models"
    first = {name: read_jsonl(models / "policies" / name / "metrics.jsonl")[0] for name in ("ppo", "grpo", "dpo")}
    assert first["ppo"]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert first["grpo"]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert first["dpo"]["margin"] == pytest.approx(0.0, abs=1e-4)
    assert first["dpo"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    base, sft = weights(models / "base"), weights(models / "sft")
    for name in first:
        policy = weights(models / "policies" / name)
        assert 0 < (policy - sft).norm() < (policy - base).norm(), name


def test_outputs_do_not_depend_on_being_offline(done):
    """The tokenizers library would otherwise record it."""
    for path in done[0].rglob("tokenizer_config.json"):
        assert not {"local_files_only", "is_local"} & set(json.loads(path.read_text()))


def test_nothing_that_dvc_tracks_names_the_machine(done):
    """Outputs have no absolute path, run id or time, so a second clone gives the same hashes."""
    for folder in ("data", "models", "evaluation"):
        for path in (done[0] / folder).rglob("*"):
            if path.is_file() and path.suffix in {".json", ".jsonl", ".md", ".jinja"}:
                text = path.read_text(encoding="utf-8")
                assert str(done[0]) not in text, path
                assert "run_id" not in text, path


def test_a_second_repro_does_nothing(done):
    again = run(done[0], "dvc", "repro").stdout
    assert stages_run(again) == []
    assert "Data and pipelines are up to date" in again


def test_only_the_last_stages_outputs_wait_to_be_recorded(done):
    """Each stage deletes the copies that DVC has recorded, so that only the last output is left."""
    left = list((done[0] / ".resume").glob("*"))
    assert [json.loads((folder / "finished.json").read_text())["stage"] for folder in left] == ["report"]


def test_doctor_runs_the_checks_of_each_training_stage_alone(done):
    script = (
        "from pathlib import Path\n"
        "from rich.console import Console\n"
        "from flows.commands.doctor import examine_stage\n"
        "for stage in ('base', 'sft', 'reward', 'online@ppo', 'offline@dpo', 'offline@kto'):\n"
        "    assert examine_stage(Path.cwd(), stage, 'default', [], Console()), stage\n"
    )
    printed = run(done[0], "python", "-c", script).stdout
    for check in ("ratio 1", "end token", "padding", "scores in any batch", "reference", "learning rate"):
        assert check in printed


def test_mlflow_holds_one_run_per_stage_with_lineage(done):
    """Read in a new process from the checkout's own store."""
    script = (
        "import json, mlflow\n"
        "mlflow.set_tracking_uri('sqlite:///mlflow.db')\n"
        "client = mlflow.MlflowClient()\n"
        "runs = client.search_runs([client.get_experiment_by_name('rlhf').experiment_id])\n"
        "print(json.dumps([[r.data.tags, r.data.params, r.data.metrics, r.info.status,"
        " [d.dataset.name for d in r.inputs.dataset_inputs]] for r in runs]))\n"
    )
    runs = json.loads(run(done[0], "python", "-c", script).stdout.splitlines()[-1])
    assert sorted(tags["stage"] for tags, *_ in runs) == sorted(set(STAGES) - {"params"})
    for tags, params, metrics, status, inputs in runs:
        assert status == "FINISHED"
        assert len(tags["stage_key"]) == 32
        assert len(tags["git_commit"]) == 40
        if tags["stage"] == "online@ppo":
            assert params["policy.ppo.clip"] == "0.2"
            assert {"train/score", "train/kl", "train/loss", "train/value_loss"} <= set(metrics)
            assert {"models/sft", "models/reward", "data/prepared"} <= set(inputs)
        if tags["stage"] == "reward":  # several trainings, kept separate; the final model has the comparison's name
            assert {"reward/train/loss", "reward/development/loss", "reward_model/accuracy"} <= set(metrics)
        if tags["stage"] == "evaluate":
            assert {"win_rate_vs_sft/ppo", "kl/dpo"} <= set(metrics)
    policies = {tags["stage"]: set(metrics) for tags, _, metrics, *_ in runs if "@" in tags["stage"]}
    shared = set.intersection(*policies.values())  # metrics that one chart shows for all policies
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "train/tokens_per_second"} <= shared
    assert {"train/score", "train/kl"} <= policies["online@ppo"] & policies["online@grpo"]
    assert all(
        key.startswith(("train/", "development/", "trl/", "verl/")) for keys in policies.values() for key in keys
    )


def test_mlflow_shows_the_experiment_as_one_of_trainings(done):
    script = (
        "import mlflow\n"
        "mlflow.set_tracking_uri('sqlite:///mlflow.db')\n"
        "print(mlflow.get_experiment_by_name('rlhf').tags['mlflow.experimentKind'])\n"
    )
    assert run(done[0], "python", "-c", script).stdout.splitlines()[-1] == "custom_model_development"


def figures_of_dvc(folder):
    """The output of `dvc metrics show`, `dvc exp show` and `dvc plots show` for the workspace."""
    metrics = json.loads(run(folder, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    shown = json.loads(run(folder, "dvc", "exp", "show", "--json").stdout)
    workspace = next(row for row in shown if row["rev"] == "workspace")["data"]["metrics"]
    plots = run(folder, "dvc", "plots", "show", "--json")
    assert "failed" not in plots.stderr
    return metrics["reports/metrics.json"]["data"], workspace["reports/metrics.json"]["data"], json.loads(plots.stdout)


def points_of(plots, chart):
    """The rows that a chart draws."""
    return plots["data"][chart][0]["content"]["data"]["values"]


def test_dvc_shows_figures_and_curves(done):
    """The report's figures, and in each chart every policy that logs the metric, at its own steps."""
    report = json.loads((done[0] / "reports/report.json").read_text())
    metrics, experiment, plots = figures_of_dvc(done[0])
    assert metrics == experiment
    for name, figures in report["policies"].items():
        assert metrics["win_rate_vs_sft"][name] == figures["win_rate_vs_sft"]["value"]
        assert (metrics["kl"][name], metrics["mean_length"][name]) == (figures["kl"], figures["mean_length"])
    assert metrics["reward_model"]["accuracy"] == report["reward_model"]["accuracy"]
    assert not plots.get("errors")
    assert set(plots["data"]) == {"loss", "kl", "score", "win rate", "sft"}
    for chart, policies in {"loss": {"ppo", "grpo", "dpo"}, "kl": {"ppo", "grpo"}, "score": {"ppo", "grpo"}}.items():
        points = points_of(plots, chart)
        drawn = {(point["policy"], int(point["step"])): float(point[chart]) for point in points if point[chart]}
        logged = {
            (name, row["step"]): row[chart]
            for name in policies
            for row in map(json.loads, (done[0] / f"models/policies/{name}/metrics.jsonl").open())
        }
        assert drawn == logged
    judged = points_of(plots, "win rate")
    assert {point["policy"] for point in judged if point["win_rate_vs_sft"]} == {"ppo", "grpo", "dpo"}


def test_figures_and_curves_come_back_with_an_experiment(done, tmp_path):
    """They are in folders that git ignores: saved, removed, and restored by `dvc exp apply`."""
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder, symlinks=True)
    before = figures_of_dvc(folder)
    run(folder, "dvc", "exp", "save", "--name", "kept")
    shutil.rmtree(folder / "reports")
    (folder / "dvc.lock").unlink()
    run(folder, "dvc", "exp", "apply", "kept")
    after = figures_of_dvc(folder)
    assert after[:2] == before[:2]
    for chart in before[2]["data"]:
        assert points_of(after[2], chart) == points_of(before[2], chart) != []


def test_changing_beta_runs_dpo_evaluate_and_report_only(done, tmp_path):
    folder = done[0]
    before = (folder / "params.yaml").read_text()
    lock = (folder / "dvc.lock").read_text()
    set_param(folder, "policy", "dpo", "beta", value=0.2)
    assert stages_run(run(folder, "dvc", "repro").stdout) == ["params", "offline@dpo", "evaluate", "report"]
    (folder / "params.yaml").write_text(before)
    assert stages_run(run(folder, "dvc", "repro").stdout) == []  # everything comes back from the run cache
    assert (folder / "dvc.lock").read_text() == lock


def test_every_other_algorithm_runs_under_its_name(done):
    """A longer list adds stages to the graph; policies that were trained before are not trained again."""
    folder = done[0]
    before = (folder / "params.yaml").read_text()
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    names = list(policy_algorithms())
    for kind in ("online", "offline"):
        set_param(folder, "policy", kind, value=names_of(is_rewarded=kind == "online"))
    ran = stages_run(run(folder, "dvc", "repro").stdout)
    assert sorted(ran) == sorted(["params", *map(stage_of, set(names) - {"ppo", "grpo", "dpo"}), "evaluate", "report"])
    report = json.loads((folder / "reports/report.json").read_text())
    assert set(report["policies"]) == set(names)
    for name, policy in report["policies"].items():
        assert 0 <= policy["win_rate_vs_sft"]["value"] <= 1, name
        sampled = policy_algorithm(name).data in ("rollouts", "best_of_n")
        assert (policy["sampled_tokens"] > 0) == sampled, name
        assert (policy["trained_tokens"] > 0) == (name != "best_of_n"), name
    assert report["policies"]["best_of_n"]["kl"] == pytest.approx(math.log(3) - 2 / 3)
    (folder / "params.yaml").write_text(before)
    # Folders of policies that are no longer listed would be an input of evaluate, which deletes them.
    assert stages_run(run(folder, "dvc", "repro").stdout) == ["evaluate"]
    assert {path.name for path in (folder / "models/policies").iterdir()} == {"ppo", "grpo", "dpo"}
    after = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    assert {stage: after[stage] for stage in STAGES} == lock  # the lock also keeps the other stages
    assert stages_run(run(folder, "dvc", "repro").stdout) == []


def results(lock):
    """The locked stages but for `params`, which ran where the values are valid by themselves."""
    return {name: stage for name, stage in yaml.safe_load(lock.read_text())["stages"].items() if name != "params"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (("sft", "learning_rate"), "fast", "'sft.learning_rate' is 'fast'"),
        (("prepare", "path"), "nowhere.json", "nowhere.json"),
        (("model", "path"), "docs.txt", "docs.txt"),
    ],
)
def test_a_users_mistake_is_two_lines_and_loses_nothing(done, key, value, message):
    """Nothing is half-written, the lock keeps every result, and with the mistake corrected nothing runs again."""
    folder = done[0]
    before = (folder / "params.yaml").read_text()
    lock, results_before = (folder / "dvc.lock").read_text(), results(folder / "dvc.lock")
    set_param(folder, *key, value=value)
    failed = run(folder, "dvc", "repro", check=False)
    (folder / "params.yaml").write_text(before)
    assert all((left / "finished.json").is_file() for left in (folder / ".resume").glob("*"))
    assert failed.returncode != 0
    assert message in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stderr
    assert results(folder / "dvc.lock") == results_before
    assert stages_run(run(folder, "dvc", "repro").stdout) == []
    assert (folder / "dvc.lock").read_text() == lock
    assert "up to date" in run(folder, "dvc", "status").stdout


@pytest.mark.slow
def test_a_second_clone_ends_with_the_same_hashes(done, tmp_path):
    """With an empty cache in another folder, every output is equal bit for bit, including checkpoints."""
    other = make_checkout(tmp_path)
    run(other, "dvc", "repro")
    assert (other / "dvc.lock").read_text() == (done[0] / "dvc.lock").read_text()


@pytest.mark.pitfall(25)
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["base", "online@ppo"])
def test_killed_stage_goes_on_and_ends_with_the_same_bits(done, tmp_path, stage):
    """After SIGKILL at the second resume state, a new `dvc repro` gives the stage's output the same hash."""
    import os
    import signal
    import subprocess

    other = make_checkout(tmp_path)
    if stage != "base":
        run(other, "dvc", "repro", "reward")
    process = subprocess.Popen(
        ["dvc", "repro", "--single-item", stage] if stage != "base" else ["dvc", "repro", stage],
        cwd=other,
        env=environment(other),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list((other / ".resume").glob("*/state/*/state.pt")) and process.poll() is None:
        pass
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list((other / ".resume").glob("*/state/*/state.pt")), "the stage ended before it could be killed"
    run(other, "dvc", "repro", stage)
    locks = [yaml.safe_load((folder / "dvc.lock").read_text())["stages"][stage]["outs"] for folder in (other, done[0])]
    assert locks[0] == locks[1]
