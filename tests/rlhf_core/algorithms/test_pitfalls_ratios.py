"""Conformance: log-probabilities and ratios (9 to 12 and 29 of the list of silent faults)."""

import math

import pytest
import torch
from transformers import GenerationConfig

import tiny
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.common.batch import Example, collate
from rlhf_core.loops.online import Critic, Models, OnlineConfig, OnlineTraining
from rlhf_core.maths.losses import token_entropies, token_logprobs
from rlhf_core.models.forward import policy_outputs, response_logits, scores, values
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import load_policy, load_scalar_model, new_scalar_model, save_policy, save_scalar_model
from rlhf_core.scoring.rewards import WeightedSum
from tiny import END, PAD


def count_of_a(sampled):
    """A reward: how often the token `a` stands in the response."""
    return ((sampled.batch.response_ids == 6) * sampled.batch.response_mask).sum(-1)


def training(accelerator, tokenizer, folder, policy, algorithm, critic=None, temperature=1.0, reference_seed=1):
    """Two rollouts of 8 responses to prompts of differing length, in microbatches of 3."""
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


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_pitfall_09_ratio_is_one_before_the_first_update(accelerator, tokenizer, tmp_path, family, temperature):
    """Whatever rows stand together in a forward pass: all 8, 3 as in the rollout, or one."""
    torch.manual_seed(0)
    run = training(accelerator, tokenizer, tmp_path, family(), GRPO(group_size=2), temperature=temperature)
    rollout, _ = run.rollout(0)
    assert (rollout.old_logprobs[rollout.response_mask == 1] < 0).all()
    for size in (8, 3, 1):
        for start in range(0, 8, size):
            part = rollout.select(slice(start, start + size))
            ratio = (run._forward(part).logprobs - part.old_logprobs).exp()
            assert (ratio - 1).abs().max() <= 1e-5


def test_pitfall_09_and_pitfall_29_sampling_follows_the_logprobs_that_are_trained(family):
    """20 000 draws of one token: frequencies within 5 standard errors of exp(logprobs), at temperature 0.7.

    The model's own generation config truncates and shifts the distribution; none of it may reach the sampler, which
    has no such option itself: the KL estimate would be negative.
    """
    policy = family()
    own = GenerationConfig(do_sample=True, top_k=1, repetition_penalty=9.0, min_new_tokens=3, suppress_tokens=[6, 7])
    policy.generation_config = own
    torch.manual_seed(0)
    draws = 20_000
    responses = LocalSampler(1, (END,), PAD, 0.7, rows=draws).token_ids(policy, [[6, 8]] * draws)
    found = torch.bincount(torch.tensor(responses)[:, 0], minlength=tiny.VOCABULARY) / draws
    batch = collate([Example([6, 8], [token]) for token in range(tiny.VOCABULARY)], PAD)
    with torch.no_grad():
        expected = policy_outputs(policy, batch, temperature=0.7).logprobs[:, 0].exp()
    assert expected.sum().item() == pytest.approx(1)
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all()
    assert policy.generation_config is own


DROPOUT = {
    "rotary": {"attention_dropout": 0.1},
    "learned": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
}


@pytest.mark.parametrize("name", sorted(DROPOUT))
def test_pitfall_10_dropout_is_off_in_every_forward_pass(name, tmp_path, tokenizer):
    """A checkpoint whose config asks for dropout 0.1: two calls in train mode agree to the bit."""
    policy = tiny.FAMILIES[name]()
    save_policy(policy, tokenizer, tmp_path, max_new_tokens=4)
    policy.config.update(DROPOUT[name])
    policy.config.save_pretrained(tmp_path)
    model = load_policy(tmp_path).train()
    scalar = new_scalar_model(tmp_path).train()
    save_scalar_model(scalar, tokenizer, tmp_path / "reward")
    scalar.model.config.update(DROPOUT[name])
    scalar.model.config.save_pretrained(tmp_path / "reward")
    loaded = load_scalar_model(tmp_path / "reward").train()
    batch = collate(tiny.examples(), PAD)
    assert torch.equal(policy_outputs(model, batch).logprobs, policy_outputs(model, batch).logprobs)
    for one in (scalar, loaded):
        assert torch.equal(scores(one, batch), scores(one, batch))
        assert torch.equal(values(one, batch), values(one, batch))


def test_pitfall_10_fresh_models_have_no_dropout_either():
    for name, changes in DROPOUT.items():
        model = tiny.FAMILIES[name](**changes).train()
        batch = collate(tiny.examples(), PAD)
        assert torch.equal(policy_outputs(model, batch).logprobs, policy_outputs(model, batch).logprobs)


def test_pitfall_11_temperature_divides_all_logits_alike(accelerator, tokenizer, tmp_path):
    """New, old and reference log-probabilities and the entropy, each from logits / 0.7."""
    torch.manual_seed(0)
    policy = tiny.rotary()
    # Any scalar model will do as critic: PPO is taken for its entropies.
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
    assert (ref - new).abs().max() > 0.1  # the reference is another model


def test_pitfall_11_sampling_at_another_temperature_than_training_raises(accelerator, tokenizer, tmp_path):
    config = OnlineConfig(rollout_size=4, minibatch_size=4, temperature=0.7)
    models = Models(tiny.rotary(), tiny.rotary(), None, tokenizer)
    with pytest.raises(ValueError, match=r"sampling at temperature 1.0, training at 0.7"):
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_pitfall_12_a_logprob_is_never_above_zero(dtype):
    """10 000 random rows and extreme ones, of which the most likely token is asked for."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10_000, 7, generator=generator) * torch.logspace(-2, 4, 10_000)[:, None]
    logits = torch.cat([logits, torch.tensor([[1e4] * 7, [-1e4] * 7, [1e4, -1e4, 0, 0, 0, 0, 0]])]).to(dtype)
    logprobs = token_logprobs(logits, logits.argmax(-1))
    assert logprobs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(logprobs).all()
    assert (logprobs <= 0).all()
    # Seven equal logits are 1/7 each, however large: -log 7. The largest by 20 000 has probability 1.
    expected = torch.tensor([-math.log(7), -math.log(7), 0.0]).to(logprobs.dtype)
    torch.testing.assert_close(logprobs[-3:], expected, atol=1e-3, rtol=0)


def test_pitfall_12_probabilities_near_one_keep_their_logprob_in_bf16():
    """One logit of 8 among zeros: -log(1 + e^-8) = -0.000335, which bf16 arithmetic would round to 0."""
    logits = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16)
    assert token_logprobs(logits, torch.tensor([0])).item() == pytest.approx(-math.log1p(math.exp(-8)), abs=1e-6)
    entropy = math.log1p(math.exp(-8)) + 8 * math.exp(-8) / (1 + math.exp(-8))
    assert token_entropies(logits).item() == pytest.approx(entropy, abs=1e-6)


def test_pitfall_12_sentinels_never_enter_a_statistic(accelerator, tokenizer, tmp_path):
    """What is not computed is NaN, what is padding is 0: no metric is NaN, and padding changes no mean."""
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
