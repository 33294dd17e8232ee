"""The task `instructions` through every stage, with a tiny model. Real stages run in this process."""

import json
from pathlib import Path

import pytest

import tiny
from checkout import git, make_checkout
from instructions.checker import Task
from instructions.generate import TRAINED
from rlhf_core.models.bpe import train_tokenizer
from rlhf_core.models.store import save_policy
from rlhf_core.models.tokens import ready_tokenizer
from tasks.files.jsonl import read_jsonl
from tasks.stages.base import base
from tasks.stages.collect import collect
from tasks.stages.evaluate import evaluate
from tasks.stages.offline import offline
from tasks.stages.online import online
from tasks.stages.prepare import prepare
from tasks.stages.report import report
from tasks.stages.reward import reward
from tasks.stages.sample import sample
from tasks.stages.sft import sft

CHANGES = {
    "model": {"path": "pretrained"},
    "prepare": {
        "format": "instructions",
        "path": "instructions/topics.json",
        "prompts": 60,
        "development_fraction": 0.4,
        "max_prompt_tokens": 200,
        "max_response_tokens": 40,
    },
    "sample": {"prompts": 60, "development_prompts": 24, "responses": 4},
    "policy": {
        "online": ["grpo"],
        "offline": ["dpo"],
        "rewards": [{"name": "constraints", "guard": False}],
    },
    "evaluate": {"prompts": 8, "development_prompts": 4},
}


@pytest.fixture(scope="module")
def checkout(module_patch, tmp_path_factory):
    """A checkout in which every stage has run."""
    folder = make_checkout(tmp_path_factory.mktemp("instructions"), CHANGES)
    module_patch.chdir(folder)
    topics = json.loads(Path("instructions/topics.json").read_text())
    # Tokens are words, so that random responses have words, some of them on topic.
    texts = [*topics["frames"], *(f"{name} {' '.join(related)}" for name, related in topics["topics"].items())]
    tokenizer = ready_tokenizer(train_tokenizer(texts * 3, 900))
    model = tiny.rotary(
        vocab_size=len(tokenizer), max_position_embeddings=512, pad_token_id=0, eos_token_id=tokenizer.eos_token_id
    )
    save_policy(model, tokenizer, Path("pretrained"), max_new_tokens=40)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "model")
    for stage in (prepare, base, sft, sample, collect, reward, lambda: online("grpo"), lambda: offline("dpo")):
        stage()
    evaluate()
    report()
    return folder


def rows(checkout, name):
    return read_jsonl(checkout / f"data/prepared/prompts_{name}.jsonl")


def test_prompts_are_generated_with_their_constraints(checkout):
    """60 training prompts, 0.4 times as many for development, and 0.1 times of trained and of held-out types each."""
    assert {name: len(rows(checkout, name)) for name in ("train", "development", "test")} == {
        "train": 60,
        "development": 24,
        "test": 12,
    }
    assert [row["group"] for row in rows(checkout, "test")] == ["trained", "held_out_types"] * 6
    card = json.loads((checkout / "data/prepared/card.json").read_text())
    assert (card["kind"], card["dropped"]) == ("instructions", {})


def test_the_sft_model_is_the_users_model(checkout):
    assert not (checkout / "data/prepared/demonstrations_train.jsonl").exists()
    assert (checkout / "models/sft/model.safetensors").is_file()


def test_the_checker_labels_pairs(checkout):
    """The chosen response has the higher score; equal ones are dropped."""
    tasks = {row["prompt"][-1]["content"]: Task.of_row(row, "") for row in rows(checkout, "train")}
    samples = read_jsonl(checkout / "data/samples/samples_train.jsonl")
    expected = 0
    for row in samples:
        task = tasks[row["prompt"][-1]["content"]]
        scores = [task.score(one["text"]) for one in row["responses"]]
        expected += sum(a != b for i, a in enumerate(scores) for b in scores[:i])
    pairs = read_jsonl(checkout / "data/feedback/preferences_train.jsonl")
    assert len(pairs) == expected > 0
    for row in pairs:
        task = tasks[row["prompt"][-1]["content"]]
        assert task.score(row["chosen"]) > task.score(row["rejected"])
    summary = json.loads((checkout / "data/feedback/summary.json").read_text())
    assert summary["source"] == "the constraint checker, two responses side by side"
    assert summary["agreement_with_gold"] == 1.0


def test_the_policy_is_rewarded_by_the_checker(checkout):
    """The mean reward of a rollout is a share."""
    steps = read_jsonl(checkout / "models/policies/grpo/metrics.jsonl")
    assert all(0 <= step["reward_constraints"] <= 1 for step in steps)


def test_the_evaluation_has_the_figures_of_lm_eval_apart_for_held_out_types(checkout):
    results = json.loads((checkout / "evaluation/results.json").read_text())
    assert results["judge"] == "constraint checker"
    figures = results["policies"]["grpo"]["task"]
    names = [
        f"{prefix}{level}_level_{how}_acc"
        for prefix in ("", "guarded_")
        for level in ("prompt", "inst")
        for how in ("strict", "loose")
    ]
    assert {*figures} == {f"{group}/{n}" for group in ("trained", "held_out_types") for n in [*names, "answers"]}
    strict = figures["trained/prompt_level_strict_acc"]
    before = results["sft"]["task"]["trained/prompt_level_strict_acc"]
    assert strict["difference"]["value"] == pytest.approx(strict["value"] - before["value"])
    assert before["difference"] is None and figures["trained/inst_level_strict_acc"]["difference"] is None
    page = (checkout / "reports/report.html").read_text()
    assert "trained/guarded_prompt_level_strict_acc" in page


def test_training_prompts_have_trained_types_only(checkout):
    assert {id for row in rows(checkout, "train") for id in row["instruction_id_list"]} <= set(TRAINED)
