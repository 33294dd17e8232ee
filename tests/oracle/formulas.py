"""The optima of section "The place of the KL" in docs/algorithms.md, by recursion or iteration.

Independent of the project's losses and loops: the only inputs are π_ref and the table of rewards. The functions of a
problem return log π(y|x), (prompts, responses).
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from oracle.problem import Problem

Rule = Callable[[Tensor, Tensor, float], Tensor]  # π_ref(·|s), Q(s, ·), β -> π(·|s)


def tilted(reference: Tensor, values: Tensor, beta: float) -> Tensor:
    """π ∝ π_ref exp(Q/β): the optimum of E Q − β KL(π‖π_ref)."""
    return (reference.log() + values / beta).softmax(-1)


def reversed_kl(reference: Tensor, values: Tensor, beta: float) -> Tensor:
    """π = β π_ref/(λ − Q), with λ such that π sums to 1: the optimum of E Q − β KL(π_ref‖π)."""
    low, high = values.max(), values.max() + beta
    for _ in range(200):
        middle = (low + high) / 2
        if (beta * reference / (middle - values)).sum() > 1:
            low = middle
        else:
            high = middle
    policy = beta * reference / (high - values)
    return policy / policy.sum()


def whole_responses(problem: Problem, rule: Rule) -> Tensor:
    """The rule applied to whole responses, with r for Q."""
    reference = problem.logprobs(problem.reference()).exp()
    rows = zip(reference, problem.rewards(), strict=True)
    return torch.stack([rule(ref, rewards, problem.beta).log() for ref, rewards in rows])


def each_state(problem: Problem, rule: Rule) -> Tensor:
    """The rule applied at each state with Q_r(s, a) = E_π[r | s, a], from the last token backwards."""
    return torch.stack([_prompt_by_states(problem, rule, number) for number in range(problem.prompts)])


def _prompt_by_states(problem: Problem, rule: Rule, number: int) -> Tensor:
    responses = [tuple(response) for response in problem.responses()]
    reference = dict(zip(responses, problem.logprobs(problem.reference())[number].exp(), strict=True))
    rewards = dict(zip(responses, problem.rewards()[number], strict=True))
    logprobs = dict.fromkeys(responses, torch.zeros((), dtype=torch.float64))

    def mass(state: tuple[int, ...]) -> Tensor:
        return sum(p for response, p in reference.items() if response[: len(state)] == state)

    def value(state: tuple[int, ...]) -> Tensor:
        if state in rewards:
            return rewards[state]
        following = [(*state, token) for token in range(problem.words + 1)]
        values = torch.stack([value(each) for each in following])
        given = torch.stack([mass(each) for each in following]) / mass(state)
        policy = rule(given, values, problem.beta)
        for each, probability in zip(following, policy, strict=True):
            for response in responses:
                if response[: len(each)] == each:
                    logprobs[response] = logprobs[response] + probability.log()
        return (policy * values).sum()

    value(())
    return torch.stack([logprobs[response] for response in responses])


def standardised(problem: Problem, group_size: int, eps: float, *, fixed_point: int = 3000) -> Tensor:
    """π ∝ π_ref exp(E[Â|y]/β) with Â = (r − mean)/(std + ε) in groups of G sampled from π, by damped iteration."""
    reference = problem.logprobs(problem.reference())
    policy = reference
    for _ in range(fixed_point):
        advantages = torch.stack(
            [expected_advantage(p, r, group_size, eps) for p, r in zip(policy.exp(), problem.rewards(), strict=True)]
        )
        wanted = (reference + advantages / problem.beta).log_softmax(-1)
        policy = (0.7 * policy + 0.3 * wanted).log_softmax(-1)
    return policy


def expected_advantage(policy: Tensor, rewards: Tensor, group_size: int, eps: float) -> Tensor:
    """E[Â | y] if y is the first response of its group and the others are sampled from π, (responses,)."""
    total = torch.zeros_like(rewards)
    for others in itertools.product(range(len(rewards)), repeat=group_size - 1):
        rest = rewards[list(others)].expand(len(rewards), -1)
        group = torch.cat([rewards[:, None], rest], -1)
        advantage = (rewards - group.mean(-1)) / (group.std(-1, correction=0) + eps)
        total = total + policy[list(others)].prod() * torch.where(group.std(-1) == 0, 0.0, advantage)
    return total
