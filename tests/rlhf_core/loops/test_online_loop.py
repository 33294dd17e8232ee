"""The loop for sampled data: prompts and their order, coefficients, and learning rates."""

from dataclasses import dataclass, replace

import pytest
import torch

import tiny
from rlhf_core.algorithms.base.algorithm import OnPolicyAlgorithm
from rlhf_core.algorithms.base.config import OfflineConfig, OnlineConfig, OptimizerConfig, learning_rate_factor
from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.trpo import TRPO
from rlhf_core.common.batch import Example, Outputs
from rlhf_core.loops.common.run import minibatch_indices, stream_indices
from rlhf_core.loops.common.update import GradientStep, MicroSize
from rlhf_core.loops.offline import train_offline
from rlhf_core.loops.online import Critic, Models, OnlineTraining
from rlhf_core.maths.reductions import token_mean
from rlhf_core.models.forward import policy_outputs
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import new_scalar_model, save_policy
from rlhf_core.scoring.rewards import WeightedSum
from tiny import END, PAD


def nothing(sampled):
    """A reward of 0."""
    return torch.zeros(sampled.batch.rows)


def online(accelerator, tokenizer, folder, algorithm, *, reward=nothing, policy=None, words="abcdef", **settings):
    """A training on one-word prompts; the reference is a different model, so the KL is not 0 at the start."""
    policy = policy or tiny.learned()
    save_policy(policy, tokenizer, folder / "policy", max_new_tokens=4)
    torch.manual_seed(0)
    critic = Critic(new_scalar_model(folder / "policy"), settings.pop("critic_rate", 1e-3))
    defaults = {"learning_rate": 1e-3, "rollout_size": 4, "minibatch_size": 4, "resume_every": 100}
    return OnlineTraining(
        accelerator,
        Models(policy, tiny.learned(seed=1), critic if algorithm.needs.critic else None, tokenizer),
        algorithm,
        WeightedSum([("reward", 1.0, reward)]),
        tiny.prompts_of(list(words)),
        LocalSampler(4, (END,), PAD),
        OnlineConfig(**defaults | settings),
        tiny.quiet_run(folder / "resume"),
    )


# --- coefficients that change ---


@dataclass(frozen=True, kw_only=True)
class Counting(OnPolicyAlgorithm):
    """The loss of each token and the reward of each response are the number of earlier rollouts, the method's state."""

    count: float = 0.0
    group_size: int = 1

    def initial_state(self):
        return {"count": 0.0}

    def at(self, state):
        return replace(self, count=state["count"])

    def targets(self, rollout, state):
        rewards = torch.zeros_like(rollout.response_mask)
        rewards[:, 0] = self.count
        return rollout.with_targets(advantages=rewards, rewards=rewards)

    def losses(self, outputs, batch):
        return 0 * outputs.logprobs + self.count

    def weights(self, batch):
        return token_mean(batch.response_mask, batch.row_weights)

    def next_state(self, state, metrics, responses):
        return {"count": state["count"] + 1}


@pytest.mark.pitfall(35)
def test_targets_and_losses_use_the_coefficient_that_is_logged(accelerator, tokenizer, tmp_path):
    history = online(accelerator, tokenizer, tmp_path, Counting(), steps=3).train()
    for name in ("count", "return", "loss"):
        assert [step[name] for step in history] == pytest.approx([0, 1, 2]), name


@pytest.mark.pitfall(35)
def test_rewards_use_the_adapted_kl_coefficient(accelerator, tokenizer, tmp_path):
    """Without scores, the return of a rollout is -β KL with the current β, which changes by up to 20 % per rollout."""
    algorithm = PPO(kl_coef=0.1, kl_target=0.01, kl_horizon=4)
    history = online(accelerator, tokenizer, tmp_path, algorithm, steps=3).train()
    assert len({step["kl_coef"] for step in history}) == 3
    for step in history:
        assert abs(step["kl"]) > 0.01
        assert step["return"] == pytest.approx(-step["kl_coef"] * step["kl"], rel=1e-4)


# --- sampling ---


def dropping(probability):
    """A policy with active dropout layers; checkpoints loaded by this project never have them."""
    policy = tiny.learned()
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
    return policy


@pytest.mark.pitfall(10)
def test_dropout_is_off_in_rollouts(accelerator, tokenizer, tmp_path):
    """The same random stream gives the same responses and log-probabilities with and without dropout layers."""
    rollouts = []
    for probability in (0.5, 0.0):
        policy, folder = dropping(probability), tmp_path / str(probability)
        training = online(
            accelerator, tokenizer, folder, GRPO(group_size=2), policy=policy, rollout_size=12, minibatch_size=12
        )
        training.policy.train()  # the mode after an optimiser step
        torch.manual_seed(0)
        rollouts.append(training.rollout(0)[0])
        assert training.policy.training
    assert torch.equal(rollouts[0].input_ids, rollouts[1].input_ids)
    assert torch.equal(rollouts[0].old_logprobs, rollouts[1].old_logprobs)
    assert len(rollouts[0].response_ids.unique(dim=0)) > 6


def test_each_rollout_draws_new_random_numbers(accelerator, tokenizer, tmp_path):
    """With one prompt and unchanged weights, the second rollout still has other responses."""
    training = online(accelerator, tokenizer, tmp_path, GRPO(group_size=2), words="aaaa", steps=2, learning_rate=1e-12)
    seen = []
    rollout = training.rollout

    def noting(step):
        found = rollout(step)
        seen.append(found[0].response_ids)
        return found

    training.rollout = noting
    training.train()
    assert seen[0].shape != seen[1].shape or not torch.equal(seen[0], seen[1])


# --- order ---


@pytest.mark.pitfall(34)
def test_rollouts_are_full_and_continue_in_the_next_pass(accelerator, tokenizer, tmp_path):
    """5 prompts in fours: each pass is a shuffled order of all prompts, even if it starts inside a rollout."""
    sizes = {"rollout_size": 8, "minibatch_size": 8}
    training = online(accelerator, tokenizer, tmp_path, GRPO(group_size=2), words="abcde", **sizes)
    visited = []
    for step in range(10):
        rollout, _ = training.rollout(step)
        prompts = rollout.input_ids[:, 0]
        assert rollout.rows == 8
        assert torch.equal(prompts[0::2], prompts[1::2])  # a group has one prompt
        visited += prompts[0::2].tolist()
    passes = [visited[start : start + 5] for start in range(0, 40, 5)]
    assert all(sorted(order) == list(range(6, 11)) for order in passes)
    assert len({tuple(order) for order in passes}) > 4


@pytest.mark.pitfall(34)
def test_stream_indices_are_a_pure_function_of_the_step():
    """5 items in threes: positions 0-2, 3-5, ... Passes equal those of the offline loop; 12 items need 3 passes."""
    stream = [index for step in range(10) for index in stream_indices(step, 5, 3, seed=0, name="x")]
    epochs = [index for step in range(6) for index in minibatch_indices(step, 5, 5, seed=0, name="x")]
    assert stream == epochs
    assert stream_indices(1, 5, 12, seed=0, name="x") == stream[12:24]
    assert stream_indices(4, 5, 3, seed=0, name="x") == stream[12:15]


def rows_of_each_step(training):
    """Train, and return the scores of the rows of each optimiser step."""
    seen, accumulate = [], training.step_on.accumulate

    def record(minibatch, step):
        seen.append([int(score) for score in minibatch.scores])
        return accumulate(minibatch, step)

    training.step_on.accumulate = record
    training.train()
    return seen


def test_each_pass_over_a_rollout_has_different_minibatches(accelerator, tokenizer, tmp_path):
    """Scores number the rows. 2 rollouts with 3 passes over 12 rows: each row once per pass, 6 different splits."""
    training = online(
        accelerator,
        tokenizer,
        tmp_path,
        GRPO(group_size=2),
        reward=lambda sampled: torch.arange(12.0),
        steps=2,
        rollout_size=12,
        minibatch_size=4,
        epochs=3,
    )
    seen = rows_of_each_step(training)
    assert len(seen) == 2 * 3 * 3
    passes = [seen[start : start + 3] for start in range(0, len(seen), 3)]
    for minibatches in passes:
        assert sorted(row for rows in minibatches for row in rows) == list(range(12))
    assert len({frozenset(frozenset(rows) for rows in minibatches) for minibatches in passes}) == 6


def test_each_epoch_of_fixed_data_has_different_minibatches(accelerator, tmp_path):
    units = [(Example([6 + number], [6, END]),) for number in range(6)]
    seen = []

    def forward(model, batch):
        seen.append(frozenset(batch.input_ids[:, 0].tolist()))
        return policy_outputs(model, batch)

    config = OfflineConfig(epochs=4, batch_size=2, micro_batch_size=2)
    train_offline(accelerator, tiny.learned(), forward, SFT(), units, [], config, tiny.quiet_run(tmp_path), PAD)
    epochs = [frozenset(seen[start : start + 3]) for start in range(0, 12, 3)]
    assert all(frozenset().union(*epoch) == set(range(6, 12)) for epoch in epochs)
    assert len(set(epochs)) > 2


# --- optimiser steps ---


def test_policy_and_critic_have_separate_learning_rates(accelerator, tokenizer, tmp_path):
    """Adam's first step changes a weight by the learning rate."""
    training = online(
        accelerator,
        tokenizer,
        tmp_path,
        PPO(),
        reward=lambda sampled: torch.arange(4.0),
        steps=1,
        learning_rate=1e-3,
        critic_rate=1e-4,
        adam_eps=1e-12,
    )
    models = {"policy": (training.policy, 1e-3), "critic": (training.critic, 1e-4)}
    before = {name: [p.detach().clone() for p in model.parameters()] for name, (model, _) in models.items()}
    (metrics,) = training.train()
    assert metrics["learning_rate"] == 1e-3
    for name, (model, rate) in models.items():
        moved = max((new - old).abs().max().item() for new, old in zip(model.parameters(), before[name], strict=True))
        assert moved == pytest.approx(rate, rel=1e-2), name


def factors_of(training, monkeypatch):
    """Train, and return the factor on the learning rate at each optimiser step."""
    factors = []

    def record(config, step, total):
        factors.append(learning_rate_factor(config, step, total))
        return factors[-1]

    monkeypatch.setattr("rlhf_core.loops.common.update.learning_rate_factor", record)
    training.train()
    return factors


@pytest.mark.pitfall(34)
def test_warm_up_counts_every_optimiser_step_and_does_not_restart(accelerator, tokenizer, tmp_path, monkeypatch):
    """5 prompts, 4 in each of 4 rollouts, 4 steps on each: 1/9, 2/9, ... 8/9, 1, 1, ..."""
    settings = {"words": "abcde", "steps": 4, "rollout_size": 8, "minibatch_size": 2, "warmup_steps": 8}
    training = online(accelerator, tokenizer, tmp_path, GRPO(group_size=2), **settings)
    factors = factors_of(training, monkeypatch)
    assert factors == pytest.approx([step / 9 for step in range(1, 9)] + [1.0] * 8)


@pytest.mark.pitfall(34)
def test_policy_and_critic_of_trpo_have_the_same_warm_up(accelerator, tokenizer, tmp_path, monkeypatch):
    """2 passes of 2 minibatches per rollout and 6 warm-up steps: δ has the factor of steps 0, 4 and 8."""
    settings = {"steps": 3, "minibatch_size": 2, "epochs": 2, "warmup_steps": 6}
    training = online(accelerator, tokenizer, tmp_path, TRPO(max_kl=0.7, fisher_fraction=1.0), **settings)
    factors = factors_of(training, monkeypatch)
    assert factors == pytest.approx([step / 7 for step in range(1, 7)] + [1.0] * 6)
    assert [step["trust_region_limit"] for step in training.history] == pytest.approx([0.1, 0.5, 0.7])


def gradient_step(accelerator, weight, norm):
    """One step on the loss Σ weight · logprobs; the two tokens of the one row are parameters with gradients (w, w)."""
    logprobs = torch.nn.Parameter(torch.zeros(1, 2))
    batch = tiny.mask_batch(torch.ones(1, 2))

    class Linear(SFT):
        def losses(self, outputs, batch):
            return 2 * weight * outputs.logprobs  # the mean over two tokens halves it

    step = GradientStep(
        accelerator,
        Linear(),
        lambda part: Outputs.of(part, logprobs=logprobs),
        {"policy": (torch.nn.ParameterList([logprobs]), 0.1)},
        OptimizerConfig(adam_eps=1.0, max_grad_norm=norm),
        MicroSize(1),
    )
    return step(batch, 0, 1), logprobs


@pytest.mark.parametrize(
    ("weight", "clipped"),
    [
        (3.0, 1.0),  # (3, 3) has norm 3√2; scaled to √2 it is (1, 1)
        (0.5, 0.5),  # a smaller gradient does not change
    ],
)
def test_gradients_are_scaled_down_to_the_largest_norm(accelerator, weight, clipped):
    """Adam's first step with ε = 1 is lr g / (|g| + 1), so the step reveals the gradient g."""
    metrics, logprobs = gradient_step(accelerator, weight, 2**0.5)
    assert metrics["grad_norm"] == pytest.approx(weight * 2**0.5)  # logged before scaling
    assert logprobs[0].tolist() == pytest.approx([-0.1 * clipped / (clipped + 1)] * 2, rel=1e-4)
