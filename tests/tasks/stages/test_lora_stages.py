"""LoRA through the real stages: what is saved loads with plain transformers and peft, and computes the same."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from checkout import make_checkout
from rlhf_core.common.batch import Example, collate
from rlhf_core.models.checkpoint import weights_digest
from rlhf_core.models.forward import scores
from rlhf_core.models.store import load_scalar_model
from tasks.common.models import StageModels
from tasks.files import paths
from tasks.params.load import load_params
from tasks.stages.base import base
from tasks.stages.collect import collect
from tasks.stages.evaluate import evaluate
from tasks.stages.offline import offline
from tasks.stages.online import online
from tasks.stages.prepare import prepare
from tasks.stages.reward import reward
from tasks.stages.sample import sample
from tasks.stages.sft import sft

IDS = torch.arange(8, 24)[None]


def make(folder: Path, patch, **changes) -> Path:
    """Run every stage of a tiny checkout with LoRA."""
    make_checkout(
        folder,
        {
            "model": {"lora": {"r": 4}, **changes.pop("model", {})},
            "policy": {"online": ["ppo", "grpo"], "offline": ["dpo"]},
            **changes,
        },
    )
    patch.chdir(folder)
    for stage in (prepare, base, sft, sample, collect, reward):
        stage()
    offline("dpo")
    online("ppo")
    online("grpo")
    evaluate()
    return folder


@pytest.fixture(scope="module")
def made(module_patch, tmp_path_factory):
    return make(tmp_path_factory.mktemp("lora"), module_patch)


@pytest.fixture
def folder(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS, attention_mask=torch.ones_like(IDS)).logits


POLICIES = ["models/sft", *(f"models/policies/{name}" for name in ("ppo", "grpo", "dpo"))]


@pytest.mark.slow
@pytest.mark.parametrize("path", POLICIES)
def test_a_merged_policy_is_base_plus_adapter_and_differs_from_the_base(folder, path):
    start = "models/base" if path == "models/sft" else "models/sft"
    merged = logits(AutoModelForCausalLM.from_pretrained(path))
    base_model = AutoModelForCausalLM.from_pretrained(start)
    before = logits(base_model)
    adapted = logits(PeftModel.from_pretrained(base_model, f"{path}/adapter"))
    assert (merged - adapted).abs().max() < 1e-4
    assert (merged - before).abs().max() > 1e-3
    named = json.loads(Path(path, "adapter/base.json").read_text())
    assert named == {"name": start, "weights_sha256": weights_digest(Path(start))}


@pytest.mark.slow
def test_a_reward_model_has_the_same_scores_merged_and_as_an_adapter(folder):
    ours = load_scalar_model("models/reward").eval()
    merged = logits(AutoModelForSequenceClassification.from_pretrained("models/reward"))
    plain = AutoModelForSequenceClassification.from_pretrained("models/sft", num_labels=1)
    plain.config.pad_token_id = ours.model.config.pad_token_id
    adapted = logits(PeftModel.from_pretrained(plain, "models/reward/adapter"))
    assert torch.allclose(merged, adapted, atol=1e-4)
    ids = IDS[0].tolist()
    with torch.no_grad():
        score = scores(ours, collate([Example(ids[:4], ids[4:])], 0))
    assert torch.allclose(score * ours.scale + ours.offset, merged[:, 0], atol=1e-4)
    assert not torch.allclose(adapted, torch.zeros(1), atol=1e-3)


@pytest.mark.slow
def test_an_online_stage_holds_one_copy_of_the_frozen_weights(folder):
    """Policy, reference, critic and reward model: the base once, and an adapter for each but the reference."""
    models = StageModels(load_params())
    policy, reference = models.policy("test"), models.reference()
    reward_model, critic = models.reward_model(paths.REWARD), models.critic(paths.REWARD)
    trees = [policy, reference, reward_model, critic]
    weights = {id(p): p for tree in trees for p in tree.parameters()}
    trained = sum(p.numel() for tree in trees for name, p in tree.named_parameters() if "lora_" in name)
    heads = 2 * reward_model.model.score.weight.numel()
    assert sum(p.numel() for p in weights.values()) == sum(p.numel() for p in reference.parameters()) + trained + heads
    scored = load_scalar_model("models/reward")
    assert (reward_model.offset, reward_model.scale) == (scored.offset, scored.scale)
    rows = collate([Example([8, 9], [10, 11, 2]), Example([12], [13, 2])], 0)
    with torch.no_grad():
        for model in (reward_model, critic):
            assert torch.allclose(scores(model.eval(), rows), scores(scored.eval(), rows), atol=1e-4)


@pytest.mark.slow
def test_an_adapter_of_another_base_is_not_loaded_on_the_shared_one(folder, tmp_path):
    """The SFT model was trained again: the reward model's merged weights are used, which hold their own base."""
    shutil.copytree("models", tmp_path / "models")
    other = tmp_path / "models/reward/adapter/base.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"weights_sha256": "0" * 64}))
    models = StageModels(load_params())
    merged = models.reward_model(tmp_path / "models/reward")
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    assert {id(p) for p in merged.parameters()}.isdisjoint(id(p) for p in models.reference().parameters())
