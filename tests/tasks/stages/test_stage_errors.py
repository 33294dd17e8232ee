"""Errors of a stage: two lines with file and fix, exit code 1, and no lost or half-written output."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from checkout import make_checkout
from rlhf_core.common.errors import UserError
from rlhf_core.models.store import load_policy, load_scalar_model, load_tokenizer, save_policy
from tasks.common.source import model_source
from tasks.files.jsonl import read_jsonl
from tasks.params.load import load_params
from tasks.params.sections import ModelParams
from tasks.runtime import stage as stages
from tasks.runtime.stage import main, open_stage, write_json
from tasks.stages import sft
from tasks.stages.prepare import prepare


def message(error):
    return " ".join(str(error.value).split())


def test_a_users_mistake_is_two_lines_and_exit_code_1():
    def work():
        raise UserError("a.jsonl, line 3 is not JSON. Restore the file.")

    with pytest.raises(SystemExit) as stopped:
        main(work)
    # sys.exit with a text prints it to stderr and exits with 1.
    assert stopped.value.code == "error: a.jsonl, line 3 is not JSON. Restore the file."


def test_a_bug_shows_its_traceback():
    with pytest.raises(ZeroDivisionError):
        main(lambda: 1 / 0)


def test_ctrl_c_prints_one_line_over_the_progress(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    def work():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        main(work)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\r\033[Kstopped; run the same command to continue\n"


def test_a_full_disk_is_reported_for_any_error_it_causes(monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(stages.shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(SystemExit) as stopped:
        main(lambda: 1 / 0)
    assert "is full. Free some space and run the same command to continue." in stopped.value.code


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "is not a folder. Name a Hugging Face model folder."),
        ({"notes.txt": "x"}, "has no config.json, so it is not a checkpoint folder."),
    ],
)
def test_a_folder_that_is_not_a_checkpoint(tmp_path, files, found):
    folder = tmp_path / "thing"
    for name, text in files.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for load in (load_policy, load_scalar_model):
        with pytest.raises(UserError) as error:
            load(folder)
        assert message(error).startswith(f"{folder} {found}")


def test_a_policy_given_as_reward_model(tmp_path, tokenizer):
    save_policy(tiny.rotary(), tokenizer, tmp_path / "policy", max_new_tokens=4)
    with pytest.raises(UserError) as error:
        load_scalar_model(tmp_path / "policy")
    assert message(error) == (
        f"{tmp_path / 'policy'} contains ['LlamaForCausalLM'], not a reward model. Use the reward stage's folder."
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "does not exist. Name a Hugging Face folder, or a config to train from scratch."),
        ("{", "is not JSON"),
        ('{"hidden_size": 8}', 'has no model_type. Add it, for example "model_type": "llama".'),
    ],
)
def test_a_model_path_that_is_not_a_model(tmp_path, content, found):
    path = tmp_path / "model.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        model_source(ModelParams(path=str(path)))
    assert message(error).startswith(f"model.path {path} {found}")


def test_a_model_folder_without_a_config(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json, so it is not a checkpoint folder"):
        model_source(ModelParams(path=str(tmp_path)))


def test_a_hub_id_that_is_not_pinned():
    with pytest.raises(UserError, match=r"model\.hub is org/name, which is not pinned\. Write org/name@REVISION"):
        model_source(ModelParams(path="", hub="org/name"))


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2\n')
    with pytest.raises(UserError) as error:
        read_jsonl(path)
    assert message(error).startswith(f"{path}, line 2 is not JSON (")
    assert message(error).endswith("Restore it: dvc checkout")
    with pytest.raises(UserError, match=r"does not exist\. Run the stage that writes it with: dvc repro"):
        read_jsonl(tmp_path / "missing.jsonl")


@pytest.fixture(scope="module")
def prepared(module_patch, tmp_path_factory):
    """A checkout in which stage prepare has run."""
    folder = make_checkout(tmp_path_factory.mktemp("checkout"))
    module_patch.chdir(folder)
    prepare()
    shutil.rmtree(folder / ".resume")  # as after DVC has recorded the outputs
    return folder


@pytest.fixture
def checkout(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    return prepared


def snapshot(folder):
    """Every file under data/ with its bytes."""
    return {path: path.read_bytes() for path in sorted((folder / "data").rglob("*")) if path.is_file()}


@pytest.mark.parametrize("error", [UserError("no. Fix it."), RuntimeError("a bug")], ids=["mistake", "bug"])
def test_a_stage_that_fails_leaves_the_old_output_unchanged(checkout, error):
    before = snapshot(checkout)
    with pytest.raises(type(error)), open_stage("prepare") as stage:
        out = stage.out("data/prepared")
        (out / "half.jsonl").write_text("{")
        raise error
    assert snapshot(checkout) == before
    left = list((checkout / ".resume").glob("*"))
    # A mistake would recur, so nothing is kept. After a bug, the state is kept to resume from.
    assert bool(left) == isinstance(error, RuntimeError)
    shutil.rmtree(checkout / ".resume", ignore_errors=True)


def test_a_stage_that_succeeds_replaces_the_output_as_a_whole(checkout):
    kept = checkout.parent / "kept"
    shutil.copytree(checkout / "data", kept)
    with open_stage("prepare") as stage:
        write_json(stage.out("data/prepared") / "only.json", {"a": 1})
        assert stage.out("data/prepared") == stage.out("data/prepared")
    names = {path.name for path in (checkout / "data/prepared").iterdir()}
    assert names == {"only.json", "manifest.json"}
    assert json.loads((checkout / "data/prepared/manifest.json").read_text())["stage"] == "prepare"
    shutil.rmtree(checkout / ".resume")
    shutil.rmtree(checkout / "data")
    kept.rename(checkout / "data")


def test_key_of_a_stage_changes_with_the_content_of_an_input(checkout):
    """Otherwise a stage would resume from the state of other data, or take its outputs."""
    keys, world = [], checkout / "helpdesk/world.json"
    before = world.read_bytes()
    for content in (before, before + b"\n", before):
        world.write_bytes(content)
        with pytest.raises(UserError), open_stage("prepare") as stage:
            keys.append(stage.key)
            raise UserError("enough")
    assert keys[0] == keys[2] != keys[1]


def test_too_little_disk_space_stops_before_anything_is_written(checkout, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(stages.shutil, "disk_usage", lambda _: usage._replace(free=100 << 20))
    with pytest.raises(UserError, match=r"has 100 MiB free; a stage needs at least \d+. Free some."), open_stage("sft"):
        pass
    assert not list((checkout / ".resume").glob("*"))


def test_a_missing_input_is_named(checkout):
    with pytest.raises(UserError) as error, open_stage("sft"):
        pass
    assert message(error) == "models/base does not exist. Name an existing file or folder, or run: dvc repro"


def test_a_model_with_nan_weights_is_rejected_before_its_attention_mask_is_checked(prepared, tmp_path, monkeypatch):
    """Stage sft is the first to load the user's model; NaN log-probabilities would differ with and without padding."""
    (tmp_path / "models/base").mkdir(parents=True)
    (tmp_path / "data").symlink_to(prepared / "data")
    tokenizer = load_tokenizer(prepared / "data/prepared/tokenizer")
    policy = tiny.rotary(vocab_size=len(tokenizer))
    policy.get_parameter("model.norm.weight").data[0] = float("nan")
    save_policy(policy, tokenizer, tmp_path / "mine", max_new_tokens=4)
    monkeypatch.chdir(tmp_path)
    params = replace(load_params(prepared / "params.yaml"), model=ModelParams(path="mine"))
    with pytest.raises(UserError) as error:
        list(sft.checks(params))
    assert message(error) == (
        "mine: model.norm.weight has NaN or infinite weights. Use a checkpoint with matching weights and config.json."
    )


def test_stopping_a_stage_keeps_its_progress(checkout):
    """Ctrl-C is not an error of the parameters, so the resume folder stays for the next start."""
    before = snapshot(checkout)

    def stop(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGINT, stop)
    try:
        with pytest.raises(KeyboardInterrupt), open_stage("prepare") as stage:
            (Path(stage.folder) / "state").mkdir(parents=True)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, old)
    assert snapshot(checkout) == before
    assert [path.name for path in (checkout / ".resume").glob("*/state")] == ["state"]
    shutil.rmtree(checkout / ".resume")
