"""Sampled gradients compared with enumerated ones, and the effect of baselines on mean and variance."""

from dataclasses import replace

import torch
from torch import Tensor

from oracle.exact import make_training
from oracle.problem import PROBLEM
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.online_dpo import OnlineDPO
from rlhf_core.algorithms.reinforce import Reinforce
from rlhf_core.algorithms.rloo import RLOO
from rlhf_core.models.forward import policy_outputs

B = PROBLEM.beta
DIRECTIONS, ROLLOUTS = 20, 192
GRPO_PLAIN = {"kl_coef": B, "kl_in": "reward", "kl_estimator": "k1", "averaging": "fixed_length", "length": 1}

METHODS = {
    "REINFORCE, Ψ = R(τ)": Reinforce(weight="return", baseline="none", kl_coef=B, length=1),
    "REINFORCE, Ψ = G_t": Reinforce(weight="reward_to_go", baseline="none", kl_coef=B, length=1),
    "REINFORCE, Ψ = Â, exact critic": Reinforce(weight="advantage", baseline="critic", kl_coef=B, length=1),
    "RLOO, G = 2": RLOO(group_size=2, kl_coef=B),
    "GRPO, G = 2, no std, KL in the reward": GRPO(group_size=2, std="none", **GRPO_PLAIN),
    "GRPO, G = 2, std, KL in the reward": GRPO(group_size=2, **GRPO_PLAIN),
    "online DPO, soft labels": OnlineDPO(beta=B),
    "online DPO, sampled labels": OnlineDPO(beta=B, labels="sampled"),
}


def gradient(training, step: int = 0) -> Tensor:
    """The gradient of one rollout, accumulated by the loop, as one vector."""
    training.run = type(training.run)(seed=step, name="oracle", resume=training.run.resume)
    torch.manual_seed(step)
    rollout, _ = training.rollout(step)
    training.step_on.accumulate(training.algorithm.targets(rollout, training.state), 0)
    return torch.cat([p.grad.flatten() for p in training.policy.parameters() if p.grad is not None])


def enumerated_gradient(algorithm, **settings) -> Tensor:
    """The exact expected gradient at a policy other than the reference; soft labels are the mean of sampled ones."""
    if getattr(algorithm, "labels", "soft") == "sampled":
        algorithm = replace(algorithm, labels="soft")
    return gradient(moved(make_training(PROBLEM, algorithm, sampled=False, steps=1, **settings)))


def moved(training):
    """The training with a policy other than the reference, where the gradient of the KL would be zero."""
    training.policy.load_state_dict(PROBLEM.model(2).state_dict())
    return training


def largest_z(algorithm) -> float:
    """max |mean of sampled gradients − exact gradient| / standard error, over random directions."""
    settings = {"rollout_size": 128, "minibatch_size": 128, "micro_batch_size": 128}
    training = moved(make_training(PROBLEM, algorithm, sampled=True, steps=1, **settings))
    exact = enumerated_gradient(algorithm)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(DIRECTIONS, len(exact), generator=generator, dtype=torch.float64)
    drawn = torch.stack([directions @ gradient(training, step) for step in range(ROLLOUTS)])
    error = drawn.std(0) / ROLLOUTS**0.5
    return ((drawn.mean(0) - directions @ exact) / error).abs().max().item()


def compare_baselines() -> dict[str, float]:
    """Exact expected gradients compared with REINFORCE without a baseline: (ratio of norms, cosine) by name."""
    plain = enumerated_gradient(Reinforce(weight="return", baseline="none", kl_coef=B, length=1))
    found = {}
    for name, algorithm in {
        "batch mean": Reinforce(weight="return", baseline="batch_mean", kl_coef=B, length=1),
        "critic": Reinforce(weight="return", baseline="critic", kl_coef=B, length=1),
        "leave-one-out, G = 2": Reinforce(weight="return", baseline="leave_one_out", group_size=2, kl_coef=B, length=1),
        "group mean, G = 2": METHODS["GRPO, G = 2, no std, KL in the reward"],
        "group mean and std, G = 2": METHODS["GRPO, G = 2, std, KL in the reward"],
    }.items():
        other = enumerated_gradient(algorithm)
        cosine = (plain @ other / (plain.norm() * other.norm())).item()
        found[name] = ((other.norm() / plain.norm()).item(), cosine)
    return found


def variance_by_baseline() -> tuple[float, list[tuple[float, float]]]:
    """b* = E[|∇log π|² R]/E[|∇log π|²], and (b/b*, variance relative to that without a baseline), by enumeration.

    For the first prompt. R is r without the KL, so that b is one number.
    """
    policy = PROBLEM.model(2)
    rewards = PROBLEM.rewards()[0] + 1.5  # all above 0, so that b* is above 0
    logprobs = policy_outputs(policy, PROBLEM.batch(0)).logprobs.sum(-1)
    scores = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(each, list(policy.parameters()), retain_graph=True)])
            for each in logprobs
        ]
    )
    probabilities, squares = logprobs.detach().exp(), scores.square().sum(-1)
    best = ((probabilities * squares * rewards).sum() / (probabilities * squares).sum()).item()
    mean = (probabilities * rewards) @ scores

    def variance(baseline: float) -> float:
        return ((probabilities * squares * (rewards - baseline).square()).sum() - mean.square().sum()).item()

    ratios = (-0.2, 0.0, 0.2, 1.0, 1.8, 2.0, 2.2)
    return best, [(ratio, variance(ratio * best) / variance(0.0)) for ratio in ratios]
