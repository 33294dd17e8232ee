"""Public data through every stage with a small model trained from scratch. Run by `make test-data`.

Small models learn little here. The tests check that every row is read or listed as dropped, that losses fall, and that
the reward model's accuracy on held-out pairs is reported unchanged.
"""

import json
import os
from pathlib import Path

import pytest

from checkout import make_checkout, run
from tasks.params.load import load_profile, merged

pytestmark = pytest.mark.data

SMALL_MODEL = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
FAST = {
    "base": {"learning_rate": 2e-3, "epochs": 1, "max_steps": 60, "batch_size": 16, "micro_batch_size": 16},
    "sft": {"learning_rate": 1e-3, "epochs": 1, "max_steps": 60, "batch_size": 16, "micro_batch_size": 16},
    "reward": {"learning_rate": 3e-4, "batch_size": 16, "micro_batch_size": 16, "centre_prompts": 32},
    "policy": {
        "ppo": {"learning_rate": 1e-4, "critic_learning_rate": 1e-4, "micro_batch_size": 16},
        "grpo": {"learning_rate": 1e-4, "micro_batch_size": 16},
        "dpo": {"learning_rate": 5e-5, "batch_size": 16, "micro_batch_size": 16, "max_steps": 40},
    },
    "evaluate": {"prompts": 32, "development_prompts": 8},
}


def run_pipeline(folder: Path, profile: str, data: str, rows: int, changes: dict) -> dict:
    """Run the pipeline on one public file, check that no row was lost, and return the report."""
    source = Path(os.environ["DATA"]) / data
    settings = merged(merged(load_profile(profile), FAST), changes)
    settings = merged(settings, {"model": {"path": "small.json"}, "prepare": {"path": str(source)}})
    make_checkout(folder, settings)
    (folder / "small.json").write_text(json.dumps(SMALL_MODEL))
    run(folder, "dvc", "repro")
    card = json.loads((folder / "data/prepared/card.json").read_text())
    assert card["read"] == rows
    assert card["kept"] + len(card["dropped_rows"]) == rows
    for stage in ("base", "sft"):
        losses = [json.loads(line)["loss"] for line in (folder / f"models/{stage}/metrics.jsonl").open()]
        assert sum(losses[-5:]) < sum(losses[:5]), stage
    return json.loads((folder / "reports/report.json").read_text())


def test_hh_rlhf_through_every_stage(tmp_path):
    """Real human preferences: 2,312 pairs whose prompt is everything before the last assistant turn."""
    report = run_pipeline(
        tmp_path,
        "preferences",
        "hh_rlhf/harmless_base_test.jsonl.gz",
        2312,
        {"prepare": {"max_prompt_tokens": 560, "max_response_tokens": 256}},
    )
    assert set(report["policies"]) == {"ppo", "grpo", "dpo"}
    assert 0.3 < report["reward_model"]["accuracy"] < 1
    judges = {policy["win_rate_vs_sft"]["judge"] for policy in report["policies"].values()}
    assert judges == {"second reward model"}
    print("\nhh_rlhf: held-out accuracy of the reward model", report["reward_model"]["accuracy"])


def test_gsm8k_with_the_exact_match_reward(tmp_path):
    """7,473 questions; GRPO on the exact answer, no reward model."""
    report = run_pipeline(
        tmp_path,
        "verifiable",
        "gsm8k/train.jsonl.gz",
        7473,
        {"prepare": {"max_prompt_tokens": 160, "max_response_tokens": 240}},
    )
    assert set(report["policies"]) == {"grpo"}
    assert report["policies"]["grpo"]["win_rate_vs_sft"]["judge"] == "exact match"
    assert report["reward_model"] is None or "accuracy" not in report["reward_model"]
