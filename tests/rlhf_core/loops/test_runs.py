"""Whole trainings: precision, resume state, options without effect, and values that are not finite."""

import dataclasses
import itertools

import pytest
import torch

import tiny
from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.common.batch import collate
from rlhf_core.common.errors import UserError
from rlhf_core.loops.common.resume import ResumeStore
from rlhf_core.loops.common.update import GradientStep, MicroSize, OptimizerConfig
from rlhf_core.loops.offline import OfflineConfig, train_offline
from rlhf_core.loops.online import Critic, Models, OnlineConfig, OnlineTraining
from rlhf_core.models.forward import policy_outputs
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import load_policy, new_scalar_model, save_policy
from rlhf_core.scoring.rewards import WeightedSum
from tasks.params.load import ROOT, read_yaml, validate, with_values
from tiny import END, PAD


def online(accelerator, tokenizer, folder, algorithm, reward, **changes):
    """A small training on sampled data, with a new critic if the method needs one."""
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
        LocalSampler(4, (END,), PAD),
        OnlineConfig(**settings),
        tiny.quiet_run(folder / "resume"),
    )


@pytest.mark.pitfall(18)
def test_the_fraction_of_equal_groups_is_logged(accelerator, tokenizer, tmp_path):
    """The first of two groups has scores 1, 1, the second 0, 1: the fraction of equal groups is ½."""

    def reward(sampled):
        return torch.tensor([1.0, 1.0, 0.0, 1.0])

    _, metrics = online(accelerator, tokenizer, tmp_path, GRPO(group_size=2), reward).rollout(0)
    assert metrics["equal_group_fraction"] == 0.5


@pytest.mark.pitfall(20)
def test_the_kl_coefficient_is_in_the_resume_state(accelerator, tokenizer, tmp_path):
    """The reference is a different model: KL is far above the target 0.01, so β grows by the maximum 0.2 · 4 / 100.

    β is 0.1 in the first rollout, 0.1 · 1.008 in the second, and 0.1 · 1.008² after it.
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


@pytest.mark.pitfall(24)
def test_a_step_of_1e_6_changes_the_weights_under_bf16(bf16_accelerator, tokenizer, tmp_path):
    """Adam's first step is the learning rate, 1e-6; near 1, the smallest change of a bf16 weight is 2⁻⁸."""
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


@pytest.mark.pitfall(28)
def test_an_option_without_effect_raises():
    with pytest.raises(ValueError, match="kl_horizon has no effect while kl_target is null"):
        PPO(kl_horizon=100)
    with pytest.raises(ValueError, match="kl_target has no effect while kl_coef is 0"):
        PPO(kl_coef=0.0, kl_target=6.0)


@pytest.mark.pitfall(28)
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("policy.ppo.kl_horizon", 100, "kl_horizon has no effect while kl_target is null"),
        ("sft.label_smoothing", 0.1, "unknown key 'sft.label_smoothing'"),
        ("policy.dpo.bet", 0.1, "unknown key 'policy.dpo.bet'. Did you mean 'policy.dpo.beta'?"),
        ("policy.grpo.gamma", 0.9, "unknown key 'policy.grpo.gamma'"),
    ],
)
def test_an_option_without_effect_in_params_yaml_raises(key, value, message):
    with pytest.raises(UserError) as raised:
        validate(with_values(read_yaml(ROOT / "params.yaml"), {key: value}))
    assert message in str(raised.value)


def times(factor):
    """A forward pass that multiplies the log-probabilities of the last of three microbatches by `factor`."""

    def change(outputs, number):
        return dataclasses.replace(outputs, logprobs=outputs.logprobs * (factor if number == 2 else 1.0))

    return change


def with_broken_gradient(outputs, number):
    """A finite loss with an infinite gradient: sqrt(x - x) is 0, and its derivative is infinite."""
    logprobs = outputs.logprobs
    return dataclasses.replace(outputs, logprobs=logprobs + (logprobs - logprobs.detach()).sqrt())


@pytest.mark.pitfall(31)
@pytest.mark.parametrize(
    ("change", "what"),
    [(times(float("nan")), "loss"), (times(float("inf")), "loss"), (with_broken_gradient, "gradient norm")],
)
def test_a_broken_loss_or_gradient_stops_before_the_weights_change(accelerator, change, what):
    model, numbers = tiny.rotary(), itertools.count()
    before = [parameter.clone() for parameter in model.parameters()]
    step = GradientStep(
        accelerator,
        SFT(),
        lambda part: change(policy_outputs(model, part), next(numbers)),
        {"model": (model, 1e-2)},
        OptimizerConfig(learning_rate=1e-2),
        MicroSize(2),
    )
    with pytest.raises(
        UserError, match=rf"the {what} of optimiser step 4 is (nan|inf); .*\. Lower learning_rate or max_grad_norm,"
    ):
        step(collate(tiny.examples(), PAD), 4, 10)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.pitfall(31)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_reward_stops_and_names_the_row(accelerator, tokenizer, tmp_path, value):
    def reward(sampled):
        return torch.tensor([1.0, 2.0, value, value])

    run = online(accelerator, tokenizer, tmp_path, GRPO(group_size=2), reward)
    before = [parameter.clone() for parameter in run.policy.parameters()]
    with pytest.raises(UserError, match=f"reward 'one' is {value} for row 2 of the batch"):
        run.train()
    assert all(torch.equal(old, new) for old, new in zip(before, run.policy.parameters(), strict=True))
