"""Several reward models on named sources, and reward models that start from another model: tiny real runs."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from checkout import make_checkout, write_params
from rlhf_core.common.errors import UserError
from rlhf_core.models.store import load_scalar_model, load_tokenizer
from tasks.files.jsonl import read_jsonl, write_jsonl
from tasks.params.load import load_params, merged
from tasks.runtime.stage import Restored
from tasks.stages.base import base
from tasks.stages.collect import collect
from tasks.stages.evaluate import evaluate
from tasks.stages.online import online
from tasks.stages.params import params as effective_params
from tasks.stages.prepare import prepare
from tasks.stages.report import report
from tasks.stages.reward import reward
from tasks.stages.rewards import rewards
from tasks.stages.sample import sample
from tasks.stages.sft import sft

THINGS = ("oven", "lamp", "chair", "book", "kettle", "radio")
WANTED = {
    "prepare": {
        "format": "auto",
        "path": "data-of-mine",
        "file_sources": True,
        "development_fraction": 0.2,
        "test_fraction": 0.2,
        "max_response_tokens": 24,
    },
    "reward_models": {"names": ["helpful", "harmless"]},
    "reward": {"max_steps": 2, "centre_prompts": 4, "batch_size": 4},
    "sft": {"max_steps": 2},
    "base": {"max_steps": 2},
    "policy": {
        "online": ["ppo"],
        "offline": ["dpo"],
        "rewards": [{"name": "model", "model": "helpful"}, {"name": "model", "model": "harmless", "weight": 0.5}],
        "ppo": {"steps": 1, "rollout_size": 4, "minibatch_size": 4, "micro_batch_size": 4, "snapshots": 0},
        "dpo": {"max_steps": 1, "batch_size": 4, "snapshots": 0},
    },
    "evaluate": {"prompts": 4, "development_prompts": 4},
}


def pairs(kind):
    """Pairs of 40 prompts; in `helpful` the longer response is better, in `harmless` the shorter one."""
    rows = []
    for number in range(40):
        thing = THINGS[number % len(THINGS)]
        texts = [f"Please send the {thing} back to us.", "No."]
        chosen, rejected = texts if kind == "helpful" else texts[::-1]
        rows.append({"prompt": f"{kind} {number}: my {thing} broke", "chosen": chosen, "rejected": rejected})
    return rows


@pytest.fixture(scope="module")
def checkout(module_patch, tmp_path_factory):
    """A checkout with two files of preferences, an SFT model and the feedback."""
    folder = make_checkout(tmp_path_factory.mktemp("sources"), WANTED)
    (folder / "data-of-mine").mkdir()
    for kind in ("helpful", "harmless"):
        write_jsonl(folder / f"data-of-mine/{kind}.jsonl", pairs(kind))
    module_patch.chdir(folder)
    for stage in (effective_params, prepare, base, sft, sample, collect):
        stage()
    return folder


@pytest.fixture
def stages(checkout, monkeypatch):
    """A runner of stages in that checkout with changed parameters."""
    monkeypatch.chdir(checkout)
    unchanged = yaml.safe_load((checkout / "params.yaml").read_text())

    def run(*work, **changes):
        write_params(checkout, merged(unchanged, changes))
        try:
            for stage, *arguments in work:
                with suppress(Restored):
                    stage(*arguments)
        finally:
            write_params(checkout, unchanged)

    return run


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def test_rows_have_the_source_of_their_file(checkout):
    for split, name in (("train", "preferences"), ("development", "preferences")):
        rows = read_jsonl(Path(f"data/feedback/{name}_{split}.jsonl"))
        assert {row["source"] for row in rows} == {"helpful", "harmless"}
        assert all(row["prompt"][0]["content"].startswith(row["source"]) for row in rows)


def test_two_reward_models_are_trained_combined_and_reported_apart(stages):
    stages((reward,), (rewards, "helpful"), (rewards, "harmless"), (online, "ppo"))
    assert "reward_models" in read("models/reward/none.json")["why"]
    rows = read_jsonl(Path("data/feedback/preferences_train.jsonl"))
    held_out = read_jsonl(Path("data/feedback/preferences_development.jsonl"))
    for name in ("helpful", "harmless"):
        summary = read(f"models/rewards/{name}/summary.json")
        assert summary["trained_on"] == [name]
        assert summary["pairs"] == sum(row["source"] == name for row in rows)
        assert summary["held_out_pairs"] == sum(row["source"] == name for row in held_out)
        assert summary["held_out_pairs"] == summary["sources"][name]["held_out_pairs"]
        assert summary["accuracy"] == summary["sources"][name]["accuracy"]
        assert set(summary["sources"]) == {"helpful", "harmless"}
        model = load_scalar_model(f"models/rewards/{name}")
        assert (model.offset, model.scale) == (summary["offset"], summary["scale"])
    weights = [Path(f"models/rewards/{name}/model.safetensors").read_bytes() for name in ("helpful", "harmless")]
    assert weights[0] != weights[1]
    step = read_jsonl(Path("models/policies/ppo/metrics.jsonl"))[0]
    assert step["score"] == pytest.approx(step["reward_helpful"] + 0.5 * step["reward_harmless"], abs=1e-5)
