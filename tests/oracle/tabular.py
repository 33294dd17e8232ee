"""Expected updates and losses for a table of logits, one row per state: an independent implementation.

Uses only π_ref and the rewards, none of the project's losses or loops.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from oracle.formulas import expected_advantage
from oracle.problem import Problem


class Table:
    """Policies as logits, (prompts, states, V), with the states, tokens and masks of all responses."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        responses = problem.responses()
        states = sorted({tuple(response[:t]) for response in responses for t in range(len(response))})
        self.states = torch.tensor(
            [[states.index(tuple(y[:t])) if t < len(y) else 0 for t in range(problem.longest)] for y in responses]
        )
        self.tokens = torch.tensor([[*y, *[0] * (problem.longest - len(y))] for y in responses])
        self.mask = torch.tensor([[float(t < len(y)) for t in range(problem.longest)] for y in responses])
        self.lengths = self.mask.sum(-1)
        self.reference = self._reference(len(states))

    def _reference(self, count: int) -> Tensor:
        """π_ref's logits at each state, computed from the probabilities of whole responses."""
        probabilities = self.problem.logprobs(self.problem.reference()).exp()
        logits = torch.zeros(self.problem.prompts, count, self.problem.words + 1, dtype=torch.float64)
        mass = torch.zeros_like(logits)
        for row in range(len(self.tokens)):
            for t in range(int(self.lengths[row])):
                mass[:, self.states[row, t], self.tokens[row, t]] += probabilities[:, row]
        return mass.log()

    def token_logprobs(self, logits: Tensor) -> Tensor:
        """log π(a_t|s_t) of every token of every response, (prompts, responses, longest), 0 after the end."""
        return logits.log_softmax(-1)[:, self.states, self.tokens] * self.mask

    def logprobs(self, logits: Tensor) -> Tensor:
        """log π(y|x), (prompts, responses)."""
        return self.token_logprobs(logits).sum(-1)

    def minimise(self, loss: Callable[[Tensor], Tensor], steps: int = 4000) -> Tensor:
        """Minimise `loss(logits)` by gradient descent from π_ref; return log π(y|x) at the end."""
        logits = self.reference.clone().requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.05, eps=1e-12)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(logits).backward()
            optimizer.step()
            schedule.step()
        return self.logprobs(logits.detach())


def grpo_update(table: Table, group_size: int, *, eps: float, k3_per_token: bool, per_length: bool, divide: bool):
    """GRPO's expected update at ratio 1: −E Σ_t w (Â log π_t) + β E Σ_t w k(d_t); E is over samples of the current π.

    The KL term is k3 of each token, or k2 of the whole response. w is 1/|y| or 1.
    """
    problem = table.problem
    ref = table.token_logprobs(table.reference)

    def loss(logits: Tensor) -> Tensor:
        tokens = table.token_logprobs(logits)
        sampled = tokens.sum(-1).exp().detach()
        rewards = problem.rewards()
        if divide:
            advantages = [expected_advantage(p, r, group_size, eps) for p, r in zip(sampled, rewards, strict=True)]
            advantage = torch.stack(advantages)
        else:
            advantage = (1 - 1 / group_size) * (rewards - (sampled * rewards).sum(-1, keepdim=True))
        d = tokens - ref
        penalty = ((-d).exp() - 1 + d).sum(-1) if k3_per_token else d.sum(-1).square() / 2
        weights = 1 / table.lengths if per_length else torch.ones_like(table.lengths)
        return (sampled * weights * (problem.beta * penalty - advantage * tokens.sum(-1))).sum()

    return loss


def capped_update(table: Table, temperature: float, cap: float):
    """GRPO's expected update with samples of another policy, μ, and truncated weights, G = 2 and no std.

    E_μ [β ½ (Σ_t d_t)² − Â Σ_t min(π_t/μ_t, C) log π_t], where μ divides the logits by `temperature`. Only the
    surrogate has the weights.
    """
    problem = table.problem
    ref = table.token_logprobs(table.reference)

    def loss(logits: Tensor) -> Tensor:
        tokens = table.token_logprobs(logits)
        sampler = table.token_logprobs(logits / temperature).detach()
        sampled = sampler.sum(-1).exp()
        rewards = problem.rewards()
        advantage = (rewards - (sampled * rewards).sum(-1, keepdim=True)) / 2
        weights = (tokens.detach() - sampler).exp().clamp(max=cap)
        penalty = problem.beta * (tokens - ref).sum(-1).square() / 2
        return (sampled * (penalty - advantage * (weights * tokens).sum(-1))).sum()

    return loss


def pair_loss(table: Table, per_pair: Callable[[Tensor, Tensor], Tensor]):
    """Mean of `per_pair`(difference of log-ratios, label) over all pairs, with exact Bradley–Terry labels."""
    rewards = table.problem.rewards()
    ref = table.logprobs(table.reference)
    first, second = torch.triu_indices(len(table.tokens), len(table.tokens), 1)
    labels = (rewards[:, first] - rewards[:, second]).sigmoid()

    def loss(logits: Tensor) -> Tensor:
        d = table.logprobs(logits) - ref
        return per_pair(d[:, first] - d[:, second], labels).mean()

    return loss


def cdpo_pair(beta: float, smoothing: float):
    """cDPO's loss of one pair: DPO's, with the label flipped with probability ε."""

    def per_pair(difference: Tensor, label: Tensor) -> Tensor:
        label = label * (1 - smoothing) + (1 - label) * smoothing
        return F.binary_cross_entropy_with_logits(beta * difference, label, reduction="none")

    return per_pair


def kto_loss(table: Table, good: Tensor, beta: float):
    """Mean over responses of 1 − σ(±β (d − z_0)); z_0 = max(0, mean d of mismatched pairs), no gradient."""
    ref = table.logprobs(table.reference)

    def loss(logits: Tensor) -> Tensor:
        d = table.logprobs(logits) - ref
        z = d.mean().detach().clamp(min=0)
        sign = 2 * good - 1
        return (1 - (beta * sign * (d - z)).sigmoid()).mean()

    return loss
