"""Prompts alone through every stage, and errors before a run on them. Real stages run in this process."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import tiny
from checkout import git, make_checkout, write_params
from flows.run.changes import Changes, require_inputs
from rlhf_core.common.errors import UserError
from rlhf_core.models.bpe import train_tokenizer
from rlhf_core.models.store import save_policy
from rlhf_core.models.tokens import ready_tokenizer
from tasks.files.jsonl import read_jsonl, write_jsonl
from tasks.params.load import merged
from tasks.reporting.comparison import curve_rows
from tasks.stages.base import base
from tasks.stages.collect import collect
from tasks.stages.evaluate import evaluate
from tasks.stages.online import online
from tasks.stages.prepare import prepare
from tasks.stages.report import report
from tasks.stages.reward import reward
from tasks.stages.sample import sample
from tasks.stages.sft import sft

PROMPTS = [f"prompt number {number}" for number in range(40)]
CHANGES = {
    "model": {"path": "pretrained"},
    "prepare": {"format": "prompts", "path": "prompts.jsonl", "max_response_tokens": 8},
    "policy": {"online": ["grpo"], "offline": [], "rewards": [{"name": "length", "weight": -1.0}]},
}


@pytest.fixture(scope="module")
def checkout(module_patch, tmp_path_factory):
    """A checkout with 40 prompts and the user's own model, in which every stage has run."""
    folder = make_checkout(tmp_path_factory.mktemp("prompts"), CHANGES)
    module_patch.chdir(folder)
    write_jsonl(Path("prompts.jsonl"), [{"prompt": text} for text in [*PROMPTS, PROMPTS[0], " "]])
    tokenizer = ready_tokenizer(train_tokenizer(PROMPTS, 300))
    model = tiny.rotary(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=tokenizer.eos_token_id)
    save_policy(model, tokenizer, Path("pretrained"), max_new_tokens=8)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "data")
    for stage in (prepare, base, sft, sample, collect, reward, lambda: online("grpo"), evaluate, report):
        stage()
    return folder


def test_prompts_are_split_and_counted(checkout):
    """Shares 0.8, 0.1, 0.1 of 40 different prompts, and no demonstrations."""
    prepared = checkout / "data/prepared"
    assert {file.stem: len(read_jsonl(file)) for file in sorted(prepared.glob("*.jsonl"))} == {
        "prompts_development": 4,
        "prompts_test": 4,
        "prompts_train": 32,
    }
    assert set(read_jsonl(prepared / "prompts_test.jsonl")[0]) == {"prompt"}
    card = json.loads((prepared / "card.json").read_text())
    assert (card["kind"], card["read"], card["dropped"]) == ("prompts", 42, {"duplicate": 1, "empty prompt": 1})
    assert (card["unused_rows"], card["response_tokens"]) == ([], {"bins": []})
    assert card["prompt_tokens"]["min"] > 0


def test_the_model_is_used_unchanged(checkout):
    own, start = (load_file(checkout / name / "model.safetensors") for name in ("pretrained", "models/sft"))
    assert own.keys() == start.keys()
    assert all(torch.equal(own[name], start[name]) for name in own)


def test_the_policy_learns_from_a_reward_that_needs_no_data(checkout):
    curve = read_jsonl(checkout / "models/policies/grpo/metrics.jsonl")
    assert curve
    assert all(row["score"] == pytest.approx(-row["response_length"]) for row in curve)


def test_nothing_is_judged_and_the_rest_is_reported(checkout):
    figures = json.loads((checkout / "reports/report.json").read_text())
    grpo = figures["policies"]["grpo"]
    assert (grpo["win_rate_vs_sft"], grpo["win_rate_vs_reference"], grpo["judge_score"]) == (None, None, None)
    assert grpo["best_snapshot"] is None
    assert grpo["reward"] == pytest.approx(-grpo["mean_length"])
    assert grpo["kl"] >= 0
    assert figures["judge"] == "nothing (the data has no feedback, answers or gold)"
    assert figures["no_reward_model"] == "no preferences: the data has none"
    page = (checkout / "reports/report.html").read_text()
    assert "No policy was judged against the SFT model." in page
    samples = read_jsonl(checkout / "evaluation/samples.jsonl")
    assert set(samples[0]["responses"]) == {"sft", "grpo"}
    rows = curve_rows(["grpo"], checkout / "models/policies", checkout / "evaluation/snapshots.jsonl")
    assert {row["win_rate_vs_sft"] for row in rows} == {None}


def test_nothing_is_sampled_and_no_feedback_is_passed_on(checkout):
    """Without a panel or the user's own feedback, samples and preferences are empty, and the reasons are recorded."""
    samples, feedback = checkout / "data/samples", checkout / "data/feedback"
    assert {path.name for path in samples.iterdir()} == {"none.json", "manifest.json"}
    assert json.loads((samples / "none.json").read_text()) == {"why": "no panel judges responses to this data"}
    assert {path.name: path.read_text() for path in feedback.glob("*.jsonl")} == {
        f"preferences_{split}.jsonl": "" for split in ("train", "development", "judge")
    }
    summary = json.loads((feedback / "summary.json").read_text())
    assert summary["source"] == "passed on: the data set has no feedback, and there is no panel"
    judge = json.loads((checkout / "models/judge/none.json").read_text())
    assert judge == {"why": "the data has no feedback to train one on"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.path": "helpdesk/model.json"}, "from scratch, but the data has only prompts"),
        ({"policy.rewards": [{"name": "model"}]}, "names model, but prompts data has no feedback, so no reward model"),
        (
            {"policy.rewards": [{"name": "exact_answer"}]},
            "policy.rewards names exact_answer, but the data has no answers",
        ),
        ({"policy.offline": ["dpo"]}, "policy.offline names dpo, which learns from feedback"),
        ({"policy.offline": ["kto"]}, "policy.offline names kto, which learns from feedback"),
        ({"policy.online": ["ppo"]}, "policy.online names ppo, whose critic starts from the reward model"),
    ],
)
def test_parameters_that_prompts_do_not_support_are_rejected_before_a_run(checkout, overrides, message):
    require_inputs(Changes().resolve(checkout).params, checkout)
    with pytest.raises(UserError, match=message):
        require_inputs(Changes(overrides=overrides).resolve(checkout).params, checkout)


def test_stage_prepare_refuses_to_train_from_scratch_on_prompts(checkout):
    unchanged = yaml.safe_load((checkout / "params.yaml").read_text())
    write_params(checkout, merged(unchanged, {"model": {"path": "helpdesk/model.json"}}))
    try:
        with pytest.raises(UserError, match="no text to train on"):
            prepare()
    finally:
        write_params(checkout, unchanged)
