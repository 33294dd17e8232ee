"""Errors that `rlhf run` reports before anything starts: in one or two lines, within a second, writing no file."""

import json
import os
import subprocess
import sys

import pytest

import tiny
from checkout import environment, git, make_checkout
from flows.run.changes import Changes, require_inputs
from rlhf_core.common.errors import UserError
from rlhf_core.models.store import save_policy

HEAVY = ("torch", "transformers", "accelerate", "prefect", "datasets", "mlflow", "pyarrow")
# Run the command line, then print which heavy libraries it has imported.
COMMAND = f"""
import json, sys
from flows.cli import main
try:
    main()
finally:
    print(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with valid and invalid rows of a user, and a tiny model with truncated weights."""
    folder = make_checkout(tmp_path_factory.mktemp("checkout"))
    (folder / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (folder / "rows.doc").write_text("a")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "misspelt.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejectd": "c"}\n')
    save_policy(tiny.rotary(), tiny.tiny_tokenizer(), folder / "mine", max_new_tokens=4)
    weights = folder / "mine" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    (folder / "profiles" / "tagged.yaml").write_text("sft:\n  epochs: !!python/object/apply:os.getpid []\n")
    (folder / "profiles" / "twice.yaml").write_text("sft:\n  epochs: 2\n  epochs: 3\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "a user's files")
    return folder


def files(folder):
    """Every path in a checkout except caches and the folder of the services."""
    return {str(path) for path in folder.rglob("*") if not {"__pycache__", ".rlhf", ".git"} & set(path.parts)}


def rlhf(folder, *arguments):
    """Run the command line in a new process: exit code, output, errors, and the heavy libraries it imported."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    *said, imported = done.stderr.splitlines()
    return done.returncode, done.stdout, said, json.loads(imported)


def mistake(folder, *arguments):
    """The error lines of a command that must fail before anything starts."""
    before = files(folder)
    code, printed, said, imported = rlhf(folder, *arguments)
    assert code == 1
    assert printed == ""
    assert imported == []
    assert files(folder) == before
    return said


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--seeds", "0,0"], "Seed 0 is named twice; its run would be counted twice. Name each seed once."),
        (
            ["--seeds", "0,1", "--set", "run.seed=3"],
            "Both --seeds and run.seed choose the seed. Leave one of them out.",
        ),
    ],
)
def test_wrong_seeds_are_reported_without_heavy_libraries(checkout, arguments, found):
    assert mistake(checkout, "run", *arguments) == [f"error: {found}"]


@pytest.mark.parametrize(
    ("assignment", "found"),
    [
        ("policy.dpo.beta=-1", "'policy.dpo.beta' is -1; it must be a finite number, above 0."),
        ("prepare.format=!x y", "the tag !x is not allowed; write a plain value. Correct it."),
    ],
)
def test_a_wrong_value_is_reported_without_heavy_libraries(checkout, assignment, found):
    assert mistake(checkout, "run", "--set", assignment) == [f"error: --set {assignment}: {found}"]


def test_the_doctor_reports_it_without_them_too(checkout):
    code, printed, said, imported = rlhf(checkout, "doctor", "--set", "policy.dpo.beta=-1")
    assert (code, said, imported) == (1, [], [])
    shown = " ".join(printed.split())
    assert "--set policy.dpo.beta=-1: 'policy.dpo.beta' is -1; it must be a finite number, above 0." in shown


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["runs", "--help"], ["down"]])
def test_help_and_down_import_nothing_heavy(checkout, arguments):
    code, printed, said, imported = rlhf(checkout, *arguments)
    assert (code, said, imported) == (0, [], [])
    assert "<bool>" not in printed  # beside a flag, which takes no value


@pytest.mark.parametrize(
    ("assignments", "found"),
    [
        (["model.path=mine"], "model.path mine: model.safetensors is truncated: 100 bytes are missing."),
        (["prepare.format=auto", "prepare.path=rows.doc"], "rows.doc"),
        (["prepare.format=auto", "prepare.path=misspelt.jsonl"], "misspelt.jsonl"),
    ],
)
def test_data_and_model_are_checked_without_heavy_libraries(checkout, assignments, found):
    said = mistake(checkout, "run", *(word for text in assignments for word in ("--set", text)))
    assert len(said) <= 2
    assert said[0].startswith("error: ")
    assert found in said[0]


@pytest.mark.parametrize(
    ("profile", "overrides", "found"),
    [
        ("tagged", {}, r"profiles/tagged\.yaml, line 2: the tag tag:yaml\.org,2002:python/object/apply:os\.getpid is"),
        ("twice", {}, r"profiles/twice\.yaml, line 3: the key 'epochs' appears twice; delete one\. Correct it\.$"),
        ("default", {"model.path": "mine"}, r"^model\.path mine: model\.safetensors is truncated: 100 bytes"),
        ("default", {"model.hub": "org/mine"}, r"^model\.hub is org/mine, which is not pinned\. .* org/mine@REVISION"),
        (
            "default",
            {"prepare.hub": "org/rows", "prepare.format": "auto"},
            r"^prepare\.hub org/rows is not pinned",
        ),
        (
            "default",
            {"prepare.hub": "org/rows@main", "prepare.format": "auto"},
            r"^prepare\.hub org/rows@main is not pinned to a commit\.",
        ),
        (
            "default",
            {"prepare.path": "rows.jsonl"},
            r"^prepare\.path rows\.jsonl is a data file, but prepare\.format is helpdesk\. Set prepare\.format to auto",
        ),
        ("default", {"prepare.path": "deep.json"}, r"deep\.json is not JSON \(maximum recursion depth"),
        ("default", {"prepare.path": "profiles"}, r"^prepare\.path profiles is not a file\. Name a world file, or set"),
        ("default", {"prepare.path": "a" * 5000}, r"^prepare\.path a+ does not exist\."),
    ],
)
def test_profiles_data_and_models_are_checked_by_shared_code(checkout, profile, overrides, found):
    with pytest.raises(UserError, match=found) as error:
        require_inputs(Changes(profile, overrides).resolve(checkout).params, checkout)
    assert len(str(error.value).splitlines()) <= 2


def test_good_data_and_a_good_model_pass(checkout, tmp_path):
    save_policy(tiny.rotary(), tiny.tiny_tokenizer(), tmp_path / "good", max_new_tokens=4)
    good = {"prepare.format": "auto", "prepare.path": "rows.jsonl", "model.path": str(tmp_path / "good")}
    require_inputs(Changes(overrides=good).resolve(checkout).params, checkout)
    hubs = {"prepare.format": "auto", "prepare.hub": "org/rows@1234567", "model.hub": "org/mine@1234567"}
    require_inputs(Changes(overrides=hubs).resolve(checkout).params, checkout)


def test_a_missing_gpu_is_reported_before_a_run(checkout, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    params = Changes(overrides={"run.device": "cuda"}).resolve(checkout).params
    with pytest.raises(UserError, match=r"torch finds no CUDA device\. Set run\.device to auto or cpu"):
        require_inputs(params, checkout)
