"""Properties of every method on sampled data, tested with the loop."""

import pytest
import torch

import tiny
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.online_dpo import OnlineDPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.ppo_penalty import PPOPenalty
from rlhf_core.algorithms.reinforce import Reinforce
from rlhf_core.algorithms.rloo import RLOO
from rlhf_core.algorithms.trpo import TRPO
from rlhf_core.loops.online import Critic, Models, OnlineConfig, OnlineTraining
from rlhf_core.models.forward import response_logprobs
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import new_scalar_model, save_policy
from rlhf_core.scoring.rewards import WeightedSum
from tiny import END, PAD

METHODS = {
    "reinforce": Reinforce(baseline="batch_mean"),
    "reinforce_running_mean": Reinforce(baseline="running_mean"),
    "reinforce_critic": Reinforce(weight="advantage", baseline="critic"),
    "rloo": RLOO(group_size=4),
    "trpo": TRPO(fisher_fraction=0.5),
    "ppo": PPO(entropy_coef=0.01),
    "ppo_adaptive": PPO(kl_target=0.5, kl_horizon=64),
    "ppo_kl_in_loss": PPO(kl_in="loss", kl_estimator="exact"),
    "ppo_penalty": PPOPenalty(),
    "grpo": GRPO(group_size=4),
    "grpo_token": GRPO(group_size=4, averaging="token", ratio="response", kl_per="response"),
    "grpo_sequence": GRPO(group_size=4, ratio="sequence", clip=3e-2, clip_high=4e-2, dynamic_sampling=2),
    "ppo_cispo": PPO(surrogate="cispo", clip_high=0.28),
    "rloo_dual": RLOO(group_size=2, dual_clip=3.0, dynamic_sampling=1),
    "online_dpo": OnlineDPO(),
}
ONE_STEP = {"minibatch_size": 16, "epochs": 1}  # what REINFORCE needs
MOVING = {"ppo_adaptive": "kl_coef", "ppo_penalty": "penalty", "reinforce_running_mean": "running_mean"}


def share_of_a(sampled):
    """Twice the fraction of token 6 in a response of at most four tokens."""
    return ((sampled.batch.response_ids == 6) * sampled.batch.response_mask).sum(-1) / 2


def training_of(accelerator, tokenizer, folder, algorithm, **settings):
    """A training on four rollouts; policy and reference are different models."""
    save_policy(tiny.learned(), tokenizer, folder / "policy", max_new_tokens=4)
    torch.manual_seed(0)
    critic = Critic(new_scalar_model(folder / "policy"), 3e-3) if algorithm.needs.critic else None
    defaults = {"learning_rate": 5e-3, "steps": 4, "rollout_size": 16, "minibatch_size": 8, "epochs": 2}
    defaults |= ONE_STEP if isinstance(algorithm, Reinforce) else {}
    return OnlineTraining(
        accelerator,
        Models(tiny.learned(), tiny.learned(seed=1), critic, tokenizer),
        algorithm,
        WeightedSum([("share", 1.0, share_of_a)]),
        tiny.prompts_of(list("abcdef") * 3),
        LocalSampler(4, (END,), PAD),
        OnlineConfig(**defaults | settings),
        tiny.quiet_run(folder / "resume"),
    )


@pytest.fixture(params=METHODS, ids=METHODS)
def method(request):
    return request.param


@pytest.mark.pitfall(9)
def test_ratio_is_1_before_the_first_update(method, accelerator, tokenizer, tmp_path):
    """In train mode, the sampled tokens have the log-probabilities of the rollout within 1e-5."""
    training = training_of(accelerator, tokenizer, tmp_path, METHODS[method])
    rollout, _ = training.rollout(0)
    training.policy.train()
    ratio = (response_logprobs(training.policy, rollout) - rollout.old_logprobs).exp()
    assert (ratio - 1).abs().max().item() < 1e-5


@pytest.mark.pitfall(14)
def test_the_sampler_follows_the_policy_that_was_updated(accelerator, tokenizer, tmp_path):
    """Tokens sampled after a training have the log-probabilities of the trained policy, not of the initial policy."""
    training = training_of(accelerator, tokenizer, tmp_path, METHODS["grpo"])
    training.train()
    rollout, _ = training.rollout(4)
    now = response_logprobs(training.policy, rollout)
    before = response_logprobs(tiny.learned(), rollout)
    torch.testing.assert_close(rollout.old_logprobs, now, atol=1e-5, rtol=0)
    assert (rollout.old_logprobs - before).abs().max().item() > 0.1


@pytest.mark.pitfall(15)
@pytest.mark.pitfall(30)
def test_gradient_and_metrics_do_not_depend_on_the_microbatch_size(method, accelerator, tokenizer, tmp_path):
    """Microbatches of 16, 6 and 2 give the same gradient and metrics on a rollout of an earlier policy."""
    found = []
    for size in (16, 6, 2):
        training = training_of(
            accelerator, tokenizer, tmp_path / str(size), METHODS[method], rollout_size=16, micro_batch_size=size
        )
        rollout, _ = training.rollout(0)
        rollout = training.algorithm.targets(rollout, training.state)
        with torch.no_grad():
            for parameter in training.policy.parameters():
                parameter.mul_(1.01)
        metrics = training.step_on.accumulate(rollout, 0)
        models = [training.policy, *([training.critic] if training.critic is not None else [])]
        gradients = [p.grad.flatten() for model in models for p in model.parameters() if p.grad is not None]
        found.append((torch.cat(gradients), metrics))
    whole, metrics = found[0]
    assert whole.abs().max() > 1e-4
    for gradient, others in found[1:]:
        torch.testing.assert_close(gradient, whole, atol=1e-5, rtol=1e-4)
        assert others == pytest.approx(metrics, abs=1e-5)


@pytest.mark.pitfall(25)
@pytest.mark.pitfall(30)
def test_a_resumed_training_ends_with_the_same_bits(method, accelerator, tokenizer, tmp_path):
    """4 rollouts equal 2, new objects and 2 more, in weights, state and metrics; the method's state has changed."""
    algorithm = METHODS[method]
    whole = training_of(accelerator, tokenizer, tmp_path / "whole", algorithm)
    history = whole.train()

    first = training_of(accelerator, tokenizer, tmp_path / "parts", algorithm, resume_every=2)

    def stop(metrics, step, total, tokens):
        if step == 3:
            raise KeyboardInterrupt

    object.__setattr__(first.run, "report", stop)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = training_of(accelerator, tokenizer, tmp_path / "parts", algorithm, resume_every=2)
    assert second.train() == history
    assert second.state == whole.state
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(second.policy.state_dict()[name], value), name
    if method in MOVING:
        assert whole.state[MOVING[method]] != algorithm.initial_state()[MOVING[method]]
