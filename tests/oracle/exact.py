"""Enumeration that replaces the sampler, and the exact critic. Everything else is the project's own loop."""

import itertools
from dataclasses import replace
from math import factorial, prod
from pathlib import Path

import torch
from torch import Tensor, nn

from oracle.problem import Problem, table_reward, tokenizer
from rlhf_core.algorithms.base.algorithm import OnPolicyAlgorithm
from rlhf_core.common.device import make_accelerator
from rlhf_core.loops.common.resume import ResumeStore
from rlhf_core.loops.common.run import Run
from rlhf_core.loops.online import Critic, Models, OnlineConfig, OnlineTraining
from rlhf_core.models.forward import response_logprobs
from rlhf_core.models.responses import Responses
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.scoring.rewards import WeightedSum

WHOLE = 10**6  # rows of a minibatch that is larger than any rollout


class ExactCritic(nn.Module):
    """V(s) under the current policy, as a table from prefix to value that `refresh` fills. Nothing is trained."""

    def __init__(self, problem: Problem, kl_coef: float) -> None:
        super().__init__()
        self.problem, self.kl_coef = problem, kl_coef
        self.table: dict[tuple[int, ...], float] = {}
        self.nothing = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def refresh(self, policy, reference) -> None:
        """Compute V(s) = E[Σ_{i>=t} r̃_i | s] by summing over all responses."""
        self.table = {}
        mass: dict[tuple[int, ...], float] = {}
        for number in range(self.problem.prompts):
            batch = self.problem.batch(number)
            old, ref = response_logprobs(policy, batch), response_logprobs(reference, batch)
            rewards = -self.kl_coef * (old - ref)
            for row, response in enumerate(self.problem.responses()):
                probability = old[row].sum().exp().item()
                steps = rewards[row, : len(response)].tolist()
                steps[-1] += self.problem.rewards()[number, row].item()
                for t in range(len(response)):
                    state = (number, *response[:t])
                    mass[state] = mass.get(state, 0.0) + probability
                    self.table[state] = self.table.get(state, 0.0) + probability * sum(steps[t:])
        self.table = {state: value / mass[state] for state, value in self.table.items()}

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """(B, P+R): at each column the value of the state that ends there; 0 if that prefix is not a state."""
        values = [
            [self.table.get(tuple(row[: column + 1]), 0.0) for column in range(len(row))] for row in input_ids.tolist()
        ]
        return torch.tensor(values, dtype=torch.float64) + 0 * self.nothing


class Enumerated(OnlineTraining):
    """The loop with all groups of responses instead of sampled ones, each weighted with its probability."""

    problem: Problem
    sampler_temperature: float

    def draw(self, prompts, *stream):
        """All groups of G responses to each prompt; one group represents all its orders.

        The sampler divides the logits by its own temperature. If that is not 1, it gives its log-probabilities.
        """
        size, responses = self.algorithm.group_size, self.problem.sampled()
        if isinstance(self.critic, ExactCritic):
            self.critic.refresh(self.policy, self.reference)
        repeated, drawn, weights = [], [], []
        for prompt in prompts:
            tokens = response_logprobs(
                self.policy, self.problem.batch(prompt.ids[0]), temperature=self.sampler_temperature
            )
            logprobs = tokens.sum(-1)
            if self.sampler_temperature != 1.0:
                given = zip(responses, tokens, strict=True)
                responses = [replace(each, logprobs=row[: len(each.ids)].tolist()) for each, row in given]
            for group in itertools.combinations_with_replacement(range(len(responses)), size):
                repeated += [prompt] * size
                drawn += [responses[member] for member in group]
                weights += [orders(group) * logprobs[list(group)].sum().exp()] * size
        return Responses(repeated, drawn, 0), torch.stack(weights) * (len(weights) / len(prompts) / size)


def orders(group) -> int:
    """The number of orders in which a group can be sampled: G! / Π (multiplicity of each member)!."""
    return factorial(len(group)) // prod(factorial(group.count(member)) for member in set(group))


class OtherSampler(LocalSampler):
    """A sampler whose distribution is not the policy's."""

    is_local = False


class SampledTraining(OnlineTraining):
    """The unchanged loop; only the exact critic is refreshed before each rollout."""

    problem: Problem

    def draw(self, prompts, *stream):
        """Refresh the exact critic, then sample as the loop does."""
        if isinstance(self.critic, ExactCritic):
            self.critic.refresh(self.policy, self.reference)
        return super().draw(prompts, *stream)


def make_training(
    problem: Problem,
    algorithm: OnPolicyAlgorithm,
    *,
    sampled: bool,
    seed: int = 0,
    sampler_temperature: float = 1.0,
    **settings,
) -> OnlineTraining:
    """A training with the project's loop, enumerated or sampled, that starts from the reference policy.

    An enumerated training takes `steps` steps, each on all groups of both prompts: more rows than `rollout_size`. Its
    groups are weighted with their probabilities under a sampler with `sampler_temperature`.
    """
    if not sampled:
        size = algorithm.group_size * problem.prompts
        settings = {"rollout_size": size, "minibatch_size": size, "micro_batch_size": WHOLE, "epochs": 1} | settings
    config = OnlineConfig(snapshots=0, resume_every=WHOLE, **settings)
    critic = Critic(ExactCritic(problem, kl_in_reward(algorithm)), 1e-3) if algorithm.needs.critic else None
    prompts = problem.all_prompts() * (config.rollout_size // (algorithm.group_size * problem.prompts))
    kind = SampledTraining if sampled else Enumerated
    training = kind(
        make_accelerator("cpu", "fp32", 1),
        Models(problem.reference(), problem.reference(), critic, tokenizer()),
        algorithm,
        WeightedSum([("table", 1.0, table_reward(problem))]),
        prompts,
        (LocalSampler if sampler_temperature == 1.0 else OtherSampler)(problem.longest, (problem.end,), 0),
        config,
        Run(seed=seed, name="oracle", resume=ResumeStore(Path("nowhere"))),
    )
    training.problem = problem
    if not sampled:
        training.sampler_temperature = sampler_temperature
        training.config = replace(config, minibatch_size=WHOLE)
    return training


def kl_in_reward(algorithm: OnPolicyAlgorithm) -> float:
    """β if the KL is part of the token reward, else 0; the critic's values include it."""
    return algorithm.kl_coef if getattr(algorithm, "kl_in", "reward") == "reward" else 0.0
