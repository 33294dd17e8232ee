"""Conformance: precision, checkpoints, options and broken numbers (18, 20, 24, 26 to 28, 31 of the list)."""

import dataclasses
import itertools
import json
import subprocess
import sys

import pytest
import torch

import tiny
from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.common.batch import collate
from rlhf_core.common.errors import UserError
from rlhf_core.loops.common.resume import ResumeStore
from rlhf_core.loops.common.update import GradientStep, OptimizerConfig
from rlhf_core.loops.offline import OfflineConfig, train_offline
from rlhf_core.loops.online import Critic, Models, OnlineConfig, OnlineTraining
from rlhf_core.models.forward import policy_outputs, scores
from rlhf_core.models.sampling import Sampler
from rlhf_core.models.store import load_policy, load_scalar_model, new_scalar_model, save_policy, save_scalar_model
from rlhf_core.scoring.rewards import ModelReward, Sampled, WeightedSum
from tasks.params.schema import ROOT, apply_overrides, read_yaml, validate
from tiny import END, PAD


def online(accelerator, tokenizer, folder, algorithm, reward, **changes):
    """A small training on sampled data; its critic, where one is needed, is new."""
    policy = tiny.rotary()
    save_policy(policy, tokenizer, folder / "policy", max_new_tokens=4)
    critic = Critic(new_scalar_model(folder / "policy"), 1e-3) if algorithm.needs.critic else None
    settings = {"learning_rate": 1e-3, "steps": 2, "rollout_size": 4, "minibatch_size": 4} | changes
    return OnlineTraining(
        accelerator,
        Models(policy, tiny.rotary(1), critic, tokenizer),
        algorithm,
        WeightedSum([("one", 1.0, reward)]),
        tiny.prompts_of(["a", "b c", "d e f a", "b b c"]),
        Sampler(4, (END,), PAD),
        OnlineConfig(**settings),
        tiny.quiet_run(folder / "resume"),
    )


def test_pitfall_18_the_fraction_of_equal_groups_is_logged(accelerator, tokenizer, tmp_path):
    """The first of two groups scores 1, 1, the second 0, 1: half of them teach nothing."""

    def reward(sampled):
        return torch.tensor([1.0, 1.0, 0.0, 1.0])

    _, metrics = online(accelerator, tokenizer, tmp_path, GRPO(group_size=2), reward).rollout(0)
    assert metrics["equal_group_fraction"] == 0.5


def test_pitfall_20_the_kl_coefficient_is_in_the_resume_state(accelerator, tokenizer, tmp_path):
    """The reference is another model: KL is far above a target of 0.01, so β grows by the full 0.2 · 4 / 100.

    β is 0.1 in the first rollout, 0.1 · 1.008 in the second, and 0.1 · 1.008² is what a third would use.
    """

    def reward(sampled):
        return torch.zeros(4)

    torch.manual_seed(0)
    algorithm = PPO(kl_coef=0.1, kl_target=0.01, kl_horizon=100)
    run = online(accelerator, tokenizer, tmp_path, algorithm, reward, resume_every=1)
    history = run.train()
    assert [step["kl_coef"] for step in history] == pytest.approx([0.1, 0.1008])
    assert ResumeStore(tmp_path / "resume").load()["state"] == pytest.approx({"kl_coef": 0.1 * 1.008**2})
    again = online(accelerator, tokenizer, tmp_path, algorithm, reward, steps=3)
    assert again.train()[2]["kl_coef"] == pytest.approx(0.1 * 1.008**2)


def test_pitfall_24_a_step_of_1e_6_changes_the_weights_under_bf16(bf16_accelerator, tokenizer, tmp_path):
    """Adam's first step is the learning rate in size, 1e-6; near 1 a bf16 weight moves by 2⁻⁸ or not at all."""
    save_policy(tiny.rotary(), tokenizer, tmp_path, max_new_tokens=4)
    before, model = load_policy(tmp_path), load_policy(tmp_path)
    units = [(example,) for example in tiny.examples()]
    train_offline(
        bf16_accelerator,
        model,
        policy_outputs,
        SFT(),
        units,
        [],
        OfflineConfig(learning_rate=1e-6, max_steps=1),
        tiny.quiet_run(tmp_path / "resume"),
        PAD,
    )
    for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
        assert new.dtype == torch.float32
        change = (new - old).abs()
        assert 5e-7 < change.max() < 2e-6, name
    assert (model.model.norm.weight != 1).any()


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


def test_pitfall_26_checkpoints_load_without_this_project(family, tmp_path, tokenizer):
    """A process that cannot import this project gives the same raw scores and logits to 1e-5, and samples."""
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


def test_pitfall_27_a_score_does_not_depend_on_its_batch(family, tmp_path, tokenizer):
    """Alone, together, in microbatches of two, and in reverse order."""
    save_policy(family(), tokenizer, tmp_path, max_new_tokens=4)
    model, rows = new_scalar_model(tmp_path), tiny.examples()
    batch = collate(rows, PAD)
    sampled = Sampled(batch, torch.ones(6, dtype=torch.bool), [], [])
    with torch.no_grad():
        together = scores(model, batch)
        alone = torch.cat([scores(model, collate([row], PAD)) for row in rows])
        reverse = scores(model, collate(rows[::-1], PAD)).flip(0)
    for other in (alone, reverse, ModelReward(model, rows=2)(sampled)):
        torch.testing.assert_close(other, together, atol=1e-5, rtol=0)


def test_pitfall_28_an_option_without_effect_raises():
    with pytest.raises(ValueError, match="kl_horizon has no effect while kl_target is null"):
        PPO(kl_horizon=100)
    with pytest.raises(ValueError, match="kl_target has no effect while kl_coef is 0"):
        PPO(kl_coef=0.0, kl_target=6.0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("policy.ppo.kl_horizon", 100, "kl_horizon has no effect while kl_target is null"),
        ("sft.label_smoothing", 0.1, "unknown key 'sft.label_smoothing'"),
        ("policy.dpo.bet", 0.1, "unknown key 'policy.dpo.bet'. Did you mean 'policy.dpo.beta'?"),
        ("policy.grpo.gamma", 0.9, "unknown key 'policy.grpo.gamma'"),
    ],
)
def test_pitfall_28_an_option_without_effect_in_params_yaml_raises(key, value, message):
    with pytest.raises(UserError) as raised:
        validate(apply_overrides(read_yaml(ROOT / "params.yaml"), {key: value}))
    assert message in str(raised.value)


def times(factor):
    """A forward pass whose log-probabilities are multiplied by `factor` in the last of three microbatches."""

    def change(outputs, number):
        return dataclasses.replace(outputs, logprobs=outputs.logprobs * (factor if number == 2 else 1.0))

    return change


def with_broken_gradient(outputs, number):
    """A finite loss with an infinite gradient: sqrt(x - x) is 0, its derivative infinite."""
    logprobs = outputs.logprobs
    return dataclasses.replace(outputs, logprobs=logprobs + (logprobs - logprobs.detach()).sqrt())


@pytest.mark.parametrize(
    ("change", "what"),
    [(times(float("nan")), "loss"), (times(float("inf")), "loss"), (with_broken_gradient, "gradient norm")],
)
def test_pitfall_31_a_broken_loss_or_gradient_stops_before_the_weights_change(accelerator, change, what):
    model, numbers = tiny.rotary(), itertools.count()
    before = [parameter.clone() for parameter in model.parameters()]
    step = GradientStep(
        accelerator,
        SFT(),
        lambda part: change(policy_outputs(model, part), next(numbers)),
        {"model": (model, 1e-2)},
        OptimizerConfig(learning_rate=1e-2),
        2,
    )
    with pytest.raises(UserError, match=f"the {what} of optimiser step 4 is (nan|inf)"):
        step(collate(tiny.examples(), PAD), 4, 10)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pitfall_31_a_broken_reward_stops_and_names_the_row(accelerator, tokenizer, tmp_path, value):
    def reward(sampled):
        return torch.tensor([1.0, 2.0, value, value])

    run = online(accelerator, tokenizer, tmp_path, GRPO(group_size=2), reward)
    before = [parameter.clone() for parameter in run.policy.parameters()]
    with pytest.raises(UserError, match=f"reward 'one' is {value} for row 2 of the batch"):
        run.train()
    assert all(torch.equal(old, new) for old, new in zip(before, run.policy.parameters(), strict=True))
