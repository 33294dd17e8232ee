"""Dynamic sampling in the loop, and log-probabilities of a sampler that differs from the trainer."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

import tiny
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.rloo import RLOO
from rlhf_core.common.errors import UserError
from rlhf_core.common.responses import Response
from rlhf_core.loops.dynamic_sampling import Scored, other_prompts, replace_dropped
from rlhf_core.loops.online import Models, OnlineConfig, OnlineTraining
from rlhf_core.models.forward import response_logprobs
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.scoring.rewards import WeightedSum
from tiny import END, PAD

GROUPS = tiny.prompts_of(list("abcdef"))


def scored(pairs, prompts, tokens=1):
    """Groups of two responses of `tokens` tokens with the given scores."""
    repeated = [prompt for prompt in prompts for _ in range(2)]
    responses = tiny.responses_of([prompt.ids for prompt in repeated], [[7] * tokens for _ in repeated])
    scores = torch.tensor([score for pair in pairs for score in pair])
    return Scored(replace(responses, prompts=repeated), torch.ones(len(scores)), scores, {"term": 10 * scores})


def test_dropped_groups_are_replaced_until_their_scores_differ():
    """Groups 1 and 2 of 3 have equal scores; round 1 replaces group 1, round 2 replaces group 2 at its second try."""
    first = scored([(0.0, 1.0), (1.0, 1.0), (0.0, 0.0)], GROUPS[:3], tokens=2)
    rounds = {
        1: scored([(2.0, 3.0), (4.0, 4.0)], GROUPS[3:5], tokens=3),
        2: scored([(5.0, 6.0)], GROUPS[5:], tokens=4),
    }
    asked = []

    def sample(number, groups):
        asked.append((number, groups))
        return rounds[number]

    found, metrics = replace_dropped(first, GRPO(group_size=2, dynamic_sampling=9), sample)
    assert asked == [(1, 2), (2, 1)]  # no third round: every group is kept
    assert found.scores.tolist() == [0, 1, 2, 3, 5, 6]
    assert found.terms["term"].tolist() == [0, 10, 20, 30, 50, 60]
    assert [prompt.ids for prompt in found.responses.prompts[::2]] == [[6], [9], [11]]
    assert [len(response.ids) for response in found.responses.responses] == [2, 2, 3, 3, 4, 4]
    # 6 groups were sampled and 3 dropped, with 2 · 2 + 2 · 2 + 2 · 3 tokens.
    assert metrics == {"dropped_group_fraction": 0.5, "sampled_tokens": 14.0}


def test_after_the_last_round_the_rollout_is_still_full():
    first = scored([(0.0, 1.0), (1.0, 1.0)], GROUPS[:2])
    found, metrics = replace_dropped(
        first, RLOO(group_size=2, dynamic_sampling=1), lambda number, groups: scored([(4.0, 4.0)], GROUPS[2:3])
    )
    assert found.scores.tolist() == [0, 1, 4, 4]
    assert metrics["dropped_group_fraction"] == pytest.approx(1 / 3)


def test_other_prompts_come_first():
    """Of 4 prompts, 2 are in the rollout: the other two first, in the order of the stream, then those."""
    chosen = [other_prompts(4, 4, [1, 2], 0, f"stream/{number}") for number in range(8)]
    assert all(set(order[:2]) == {0, 3} and set(order[2:]) == {1, 2} for order in chosen)
    assert len({tuple(order) for order in chosen}) > 1
    assert other_prompts(4, 1, [], 0, "x") == other_prompts(4, 4, [], 0, "x")[:1]


def has_a(sampled):
    """1 if a response contains token `a`: many groups of two have equal scores."""
    return ((sampled.batch.response_ids == 6) & (sampled.batch.response_mask == 1)).any(-1).float()


def length(sampled):
    """The number of tokens of a response."""
    return sampled.batch.lengths


def training(accelerator, tokenizer, folder, algorithm, sampler=None, reward=has_a, **settings):
    """Rollouts of 4 groups of two."""
    defaults = {"rollout_size": 8, "minibatch_size": 8, "steps": 3, "resume_every": 100}
    return OnlineTraining(
        accelerator,
        Models(tiny.learned(), tiny.learned(seed=1), None, tokenizer),
        algorithm,
        WeightedSum([("a", 2.0, reward)]),
        tiny.prompts_of([f"{first} {second}" for first in "abcdef" for second in "abcdef"]),
        sampler or LocalSampler(4, (END,), PAD),
        OnlineConfig(**defaults | settings),
        tiny.quiet_run(folder),
    )


def test_the_loop_replaces_groups_and_counts_their_tokens(accelerator, tokenizer, tmp_path):
    """Groups with differing scores stay as they are without the option; the others are replaced, and are counted."""
    without = training(accelerator, tokenizer, tmp_path, GRPO(group_size=2))
    whole = training(accelerator, tokenizer, tmp_path, GRPO(group_size=2, dynamic_sampling=30))
    replaced = 0
    for step in range(3):
        found = []
        for run in (without, whole):
            torch.manual_seed(step)
            found.append(run.rollout(step))
        (plain, plain_metrics), (rollout, metrics) = found
        assert rollout.rows == 8
        assert metrics["equal_group_fraction"] == 0
        assert "dropped_group_fraction" not in plain_metrics
        kept = [group for group in range(4) if plain.scores[2 * group] != plain.scores[2 * group + 1]]
        rows = torch.tensor([row for group in kept for row in (2 * group, 2 * group + 1)], dtype=torch.long)
        assert torch.equal(rollout.scores[rows], plain.scores[rows])
        assert torch.equal(rollout.input_ids[rows, :2], plain.input_ids[rows, :2])
        fresh = rollout.input_ids[0::2, :2].tolist()
        assert len({tuple(prompt) for prompt in fresh}) == 4  # no prompt twice
        assert metrics["sampled_tokens"] >= rollout.lengths.sum().item() + (4 - len(kept)) * 2
        assert metrics["trained_tokens"] == rollout.lengths.sum().item()
        assert (metrics["dropped_group_fraction"] > 0) == (len(kept) < 4)
        assert metrics["score"] == pytest.approx(2 * metrics["reward_a"])
        replaced += 4 - len(kept)
    assert replaced > 3


def test_every_round_has_its_own_random_numbers(accelerator, tokenizer, tmp_path):
    """All groups are dropped in 3 rounds; prompts and stream of each are new, and the same in a new run."""

    def seen():
        run = training(accelerator, tokenizer, tmp_path, GRPO(group_size=2, dynamic_sampling=3))
        run.reward = WeightedSum([("nothing", 1.0, lambda drawn: torch.zeros(len(drawn)))])
        drawn, draw = [], run.draw

        def noting(prompts, *stream):
            drawn.append(([tuple(prompt.ids) for prompt in prompts], stream))
            return draw(prompts, *stream)

        run.draw = noting
        for step in (0, 1):
            run.rollout(step)
        return drawn

    first = seen()
    assert len(first) == 8
    assert len({stream for _, stream in first}) == 8
    prompts = [prompt for names, _ in first[:4] for prompt in names]
    assert len(set(prompts)) == 16
    assert seen() == first


@dataclass(frozen=True)
class OtherSampler(LocalSampler):
    """Samples as LocalSampler, and claims that each token had 0.1 nats less than the trainer computes, if `gives`."""

    gives: bool = True
    gap: float = 0.1
    is_local = False

    def responses(self, policy, tokenizer, prompts, seeds, report=lambda count: None):
        drawn = super().responses(policy, tokenizer, prompts, seeds, report)
        if not self.gives:
            return [replace(each, logprobs=None) for each in drawn]
        sampled = tiny.responses_of([prompt.ids for prompt in prompts], [response.ids for response in drawn])
        known = response_logprobs(policy, sampled.batch)
        return [
            Response(each.ids, each.text, each.ended, (known[row, : len(each.ids)] - self.gap).tolist())
            for row, each in enumerate(drawn)
        ]


@pytest.mark.pitfall(9)
def test_the_gap_to_the_sampler_is_logged_and_weights_the_loss(accelerator, tokenizer, tmp_path):
    """A gap of 0.1 nats at every token: the weight is e^0.1, below the cap, so the gradient is e^0.1 times as large."""
    norms = []
    for settings in ({}, {"importance_cap": 2.0}, {"importance_cap": 1.0}):
        algorithm = GRPO(group_size=2, kl_coef=0.0, **settings)
        run = training(accelerator, tokenizer, tmp_path, algorithm, OtherSampler(4, (END,), PAD), length)
        torch.manual_seed(1)
        rollout, metrics = run.rollout(0)
        assert metrics["sampler_gap"] == pytest.approx(0.1, abs=1e-5)
        assert metrics["sampler_gap_max"] == pytest.approx(0.1, abs=1e-5)
        run.step_on.accumulate(algorithm.targets(rollout, {}), 0)
        norms.append(torch.cat([p.grad.flatten() for p in run.policy.parameters() if p.grad is not None]).norm().item())
    assert norms[0] > 1e-3
    assert norms[1] / norms[0] == pytest.approx(math.exp(0.1), rel=1e-4)
    assert norms[2] / norms[0] == pytest.approx(1.0, rel=1e-4)


@pytest.mark.pitfall(28)
def test_a_cap_without_log_probabilities_of_the_sampler_is_refused(accelerator, tokenizer, tmp_path):
    sampler = OtherSampler(4, (END,), PAD, gives=False)
    run = training(accelerator, tokenizer, tmp_path, GRPO(group_size=2, importance_cap=2.0), sampler)
    with pytest.raises(UserError, match="importance_cap needs log-probabilities from the sampler"):
        run.rollout(0)
    _, metrics = training(accelerator, tokenizer, tmp_path, GRPO(group_size=2), sampler).rollout(0)
    assert "sampler_gap" not in metrics


@pytest.mark.pitfall(28)
def test_a_cap_without_effect_is_refused(accelerator, tokenizer, tmp_path):
    """In fp32 the local sampler's log-probabilities are the trainer's; in bf16 they differ."""
    sampler = LocalSampler(4, (END,), PAD)
    with pytest.raises(UserError, match="importance_cap has no effect"):
        training(accelerator, tokenizer, tmp_path, GRPO(group_size=2, importance_cap=2.0), sampler)
    training(accelerator, tokenizer, tmp_path, GRPO(group_size=2), sampler)
