"""Ratios, temperature and statistics of a rollout."""

import math

import pytest
import torch

import tiny
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.loops.online import Critic, Models, OnlineConfig, OnlineTraining
from rlhf_core.models.forward import response_logits
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import new_scalar_model, save_policy
from rlhf_core.scoring.rewards import WeightedSum
from tiny import END, PAD


def count_of_a(sampled):
    """A reward: the number of tokens `a` in the response."""
    return ((sampled.batch.response_ids == 6) * sampled.batch.response_mask).sum(-1)


def training(accelerator, tokenizer, folder, policy, algorithm, critic=None, temperature=1.0, reference_seed=1):
    """Two rollouts of 8 responses to prompts with different lengths, in microbatches of 3."""
    config = OnlineConfig(
        learning_rate=1e-3, steps=2, rollout_size=8, minibatch_size=8, micro_batch_size=3, temperature=temperature
    )
    return OnlineTraining(
        accelerator,
        Models(policy, tiny.rotary(reference_seed), critic, tokenizer),
        algorithm,
        WeightedSum([("count", 1.0, count_of_a)]),
        tiny.prompts_of(["a", "b c", "d e f a", "b b c"] * 2),
        LocalSampler(5, (END,), PAD, temperature),
        config,
        tiny.quiet_run(folder),
    )


@pytest.mark.pitfall(9)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ratio_is_one_before_the_first_update(accelerator, tokenizer, tmp_path, family, temperature):
    """For any number of rows per forward pass: all 8, 3 as in the rollout, or 1."""
    torch.manual_seed(0)
    run = training(accelerator, tokenizer, tmp_path, family(), GRPO(group_size=2), temperature=temperature)
    rollout, _ = run.rollout(0)
    assert (rollout.old_logprobs[rollout.response_mask == 1] < 0).all()
    for size in (8, 3, 1):
        for start in range(0, 8, size):
            part = rollout.select(slice(start, start + size))
            ratio = (run._forward(part).logprobs - part.old_logprobs).exp()
            assert (ratio - 1).abs().max() <= 1e-5


@pytest.mark.pitfall(11)
def test_temperature_divides_all_logits(accelerator, tokenizer, tmp_path):
    """New, old and reference log-probabilities and the entropy are computed from logits / 0.7."""
    torch.manual_seed(0)
    policy = tiny.rotary()
    # The test uses PPO because it computes entropies; the critic can be any scalar model.
    save_policy(policy, tokenizer, tmp_path / "policy", max_new_tokens=4)
    critic = Critic(new_scalar_model(tmp_path / "policy"), 1e-3)
    run = training(accelerator, tokenizer, tmp_path, policy, PPO(), critic, temperature=0.7)
    rollout, _ = run.rollout(0)
    mask = rollout.response_mask == 1

    def tempered(model):
        logprobs = (response_logits(model, rollout) / 0.7).log_softmax(-1)
        return logprobs.gather(-1, rollout.response_ids[..., None])[..., 0][mask], logprobs

    with torch.no_grad():
        new, logprobs = tempered(run.policy)
        ref, _ = tempered(run.reference)
        outputs = run._forward(rollout)
    entropy = -(logprobs.exp() * logprobs).sum(-1)[mask]
    pairs = [(outputs.logprobs, new), (rollout.old_logprobs, new), (rollout.ref_logprobs, ref)]
    for found, expected in [*pairs, (outputs.entropies, entropy)]:
        torch.testing.assert_close(found[mask], expected, atol=1e-5, rtol=0)
    assert (ref - new).abs().max() > 0.1  # the reference is a different model


@pytest.mark.pitfall(11)
def test_sampling_at_another_temperature_than_training_raises(accelerator, tokenizer, tmp_path):
    config = OnlineConfig(rollout_size=4, minibatch_size=4, temperature=0.7)
    models = Models(tiny.rotary(), tiny.rotary(), None, tokenizer)
    with pytest.raises(ValueError, match=r"the sampler has temperature 1.0, the loop 0.7"):
        OnlineTraining(
            accelerator,
            models,
            GRPO(group_size=2),
            WeightedSum([]),
            tiny.prompts_of(["a", "b"]),
            LocalSampler(4, (END,), PAD, 1.0),
            config,
            tiny.quiet_run(tmp_path),
        )


@pytest.mark.pitfall(29)
@pytest.mark.parametrize("option", [{"top_k": 3}, {"top_p": 0.9}, {"stop_strings": ("a",)}])
def test_training_refuses_a_truncating_sampler(accelerator, tokenizer, tmp_path, option):
    models = Models(tiny.rotary(), tiny.rotary(), None, tokenizer)
    sampler = LocalSampler(4, (END,), PAD, **option)
    config = OnlineConfig(rollout_size=4, minibatch_size=4)
    with pytest.raises(ValueError, match="the sampler truncates the policy's distribution"):
        OnlineTraining(
            accelerator,
            models,
            GRPO(group_size=2),
            WeightedSum([]),
            tiny.prompts_of(["a", "b"]),
            sampler,
            config,
            tiny.quiet_run(tmp_path),
        )


@pytest.mark.pitfall(12)
def test_nan_and_padding_never_enter_a_statistic(accelerator, tokenizer, tmp_path):
    """Values that are not computed are NaN, and padding is 0: no metric is NaN, and padding changes no mean."""
    save_policy(tiny.rotary(), tokenizer, tmp_path / "policy", max_new_tokens=4)
    torch.manual_seed(0)
    for name, algorithm in (("ppo", PPO()), ("grpo", GRPO(group_size=2))):
        critic = Critic(new_scalar_model(tmp_path / "policy"), 1e-3) if name == "ppo" else None
        run = training(accelerator, tokenizer, tmp_path / name, tiny.rotary(), algorithm, critic)
        rollout, metrics = run.rollout(0)
        logratio = (rollout.old_logprobs - rollout.ref_logprobs)[rollout.response_mask == 1]
        assert metrics["kl"] == pytest.approx(logratio.sum().item() / rollout.rows, abs=1e-5)
        assert metrics["sampled_tokens"] == len(logratio)
        for metrics in run.train():
            assert all(math.isfinite(value) for value in metrics.values()), metrics
