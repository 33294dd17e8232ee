"""Checkpoints load with transformers alone: a process without this project computes the same numbers."""

import json
import subprocess
import sys

import pytest
import torch

import tiny
from rlhf_core.common.batch import collate
from rlhf_core.models.forward import scores
from rlhf_core.models.store import load_scalar_model, new_scalar_model, save_policy, save_scalar_model
from tiny import END, PAD

FRESH = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("rlhf_core", "tasks", "flows"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
for name in ("rlhf_core", "tasks", "flows"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + " could be imported")
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
policy_folder, reward_folder, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(reward_folder)
reward = AutoModelForSequenceClassification.from_pretrained(reward_folder)
policy = AutoModelForCausalLM.from_pretrained(policy_folder)
with torch.no_grad():
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
    raw = reward(**padded).logits[:, 0].tolist()
    logits = policy(torch.tensor(rows[:1])).logits[0, -1].tolist()
torch.manual_seed(0)
generated = policy.generate(torch.tensor(rows[:1])).tolist()
print(json.dumps({
    "raw": raw, "logits": logits, "generated": generated, "template": tokenizer.chat_template,
    "pad": tokenizer.pad_token_id, "end": tokenizer.eos_token_id,
    "pads": [policy.config.pad_token_id, reward.config.pad_token_id, policy.generation_config.pad_token_id],
    "ends": policy.generation_config.eos_token_id,
}))
"""


@pytest.mark.pitfall(26)
def test_checkpoints_load_without_this_project(family, tmp_path, tokenizer):
    """A process that cannot import this project computes the same raw scores and logits within 1e-5, and samples."""
    policy = family(pad_token_id=None)
    save_policy(policy, tokenizer, tmp_path / "policy", max_new_tokens=7)
    model = new_scalar_model(tmp_path / "policy")
    batch = collate(tiny.examples(), PAD)
    with torch.no_grad():
        raw = scores(model, batch)
        model.set_normalisation(0.25, 3.0)
        ours = scores(model, batch)
    save_scalar_model(model, tokenizer, tmp_path / "reward")
    rows = [[*row.prompt_ids, *row.response_ids] for row in tiny.examples()]
    arguments = [str(tmp_path / "policy"), str(tmp_path / "reward"), json.dumps(rows)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    fresh = json.loads(done.stdout)
    assert fresh["raw"] == pytest.approx(raw.tolist(), abs=1e-5)
    logits = policy(torch.tensor(rows[:1])).logits[0, -1].tolist()
    assert fresh["logits"] == pytest.approx(logits, abs=1e-5)
    generated = fresh["generated"][0]
    assert generated[: len(rows[0])] == rows[0]
    assert 1 <= len(generated) - len(rows[0]) <= 7
    assert fresh["template"] == tiny.TEMPLATE
    assert (fresh["pad"], fresh["end"], fresh["pads"], fresh["ends"]) == (PAD, END, [PAD, PAD, PAD], [END])
    # Our loader applies centring and scale: (raw - 0.25) / 3.
    with torch.no_grad():
        loaded = scores(load_scalar_model(tmp_path / "reward"), batch)
    torch.testing.assert_close(loaded, (raw - 0.25) / 3, atol=1e-5, rtol=0)
    assert torch.equal(loaded, ours)
