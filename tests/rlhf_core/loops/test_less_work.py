"""Work that the loops leave out, without a change of the gradients."""

from dataclasses import replace

import pytest
import torch

import tiny
from rlhf_core.algorithms.base.config import OnlineConfig
from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.rloo import RLOO
from rlhf_core.common.batch import Example, collate, collate_units
from rlhf_core.loops import offline as offline_loop
from rlhf_core.loops import online as online_loop
from rlhf_core.loops.common.update import GradientStep, MicroSize, OptimizerConfig, unit_slices
from rlhf_core.loops.offline import OfflineConfig, with_ref_logprobs
from rlhf_core.loops.online import Critic, Models, OnlineTraining
from rlhf_core.models.forward import policy_outputs, response_logprobs
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import new_scalar_model, save_policy
from rlhf_core.scoring.rewards import WeightedSum
from tiny import END, PAD


def rows_of(sizes):
    """Rows with a one-token prompt and the given number of tokens in all."""
    return [Example([6], [7] * (size - 1)) for size in sizes]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (MicroSize(2), [(0, 2), (2, 4), (4, 5)]),
        (MicroSize(5, 7), [(0, 2), (2, 3), (3, 5)]),  # 3 + 4, 8 (more than 7, alone), 2 + 5
        (MicroSize(5, 22), [(0, 5)]),
        (MicroSize(1, 100), [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
    ],
)
def test_microbatches_have_at_most_so_many_units_and_tokens(size, expected):
    """Rows of 3, 4, 8, 2 and 5 tokens; padding does not count."""
    batch = collate(rows_of([3, 4, 8, 2, 5]), PAD)
    assert [(rows.start, rows.stop) for _, rows in unit_slices(batch, size)] == expected


def test_tokens_of_a_unit_are_those_of_all_its_rows():
    units = [tuple(rows_of([3, 2])), tuple(rows_of([4, 2])), tuple(rows_of([2, 2]))]
    batch = collate_units(units, PAD)
    slices = unit_slices(batch, MicroSize(8, 10))
    assert [(units.start, units.stop, rows.start, rows.stop) for units, rows in slices] == [(0, 1, 0, 2), (1, 3, 2, 6)]


def test_gradient_does_not_depend_on_tokens_per_microbatch(accelerator):
    batch, gradients = collate(tiny.examples(), PAD), []
    for size in (MicroSize(6), MicroSize(6, 7)):
        model = tiny.rotary()
        step = GradientStep(
            accelerator,
            SFT(),
            lambda part, model=model: policy_outputs(model, part),
            {"model": (model, 1e-3)},
            OptimizerConfig(),
            size,
        )
        step.accumulate(batch, 0)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def grouped_rollout(model, algorithm):
    """Two groups of two: scores 1 and 0, and equal scores, whose advantages are 0."""
    rows = [Example([6], [7, END]), Example([6], [8, 9, END]), Example([7], [8, END]), Example([7], [10, END])]
    batch = collate(rows, PAD)
    old = response_logprobs(model, batch) + 0.1 * batch.response_mask
    scores = torch.tensor([1.0, 0.0, 0.5, 0.5])
    return algorithm.targets(tiny.rollout_of(batch, old_logprobs=old, scores=scores), {})


@pytest.mark.parametrize(
    "algorithm",
    [GRPO(group_size=2, kl_coef=0.0), GRPO(group_size=2, kl_in="reward", kl_estimator="k1"), RLOO(group_size=2)],
)
def test_rows_without_advantage_are_not_computed(accelerator, algorithm):
    """The gradient equals that of all rows: the tokens left out still count in the denominator."""
    model = tiny.rotary()
    rollout, seen, found = grouped_rollout(model, algorithm), [], []

    def forward(part):
        seen.append(part.rows)
        return policy_outputs(model, part)

    class AllRows(type(algorithm)):
        def without_gradient(self, batch):
            return None

    fields = {name: getattr(algorithm, name) for name in algorithm.__dataclass_fields__}
    for method in (algorithm, AllRows(**fields)):
        step = GradientStep(accelerator, method, forward, {"p": (model, 1e-3)}, OptimizerConfig(), MicroSize(4))
        metrics = step.accumulate(rollout, 0)
        found.append([metrics["loss"], *(parameter.grad.clone() for parameter in model.parameters())])
    assert seen == [2, 4]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_statistics_are_means_over_the_computed_rows(accelerator):
    """log ratio -0.1 at every token: k3 = e^-0.1 - 1 + 0.1 = 0.0048374, also with half of the rows left out."""
    model, algorithm = tiny.rotary(), GRPO(group_size=2, kl_coef=0.0)
    step = GradientStep(
        accelerator,
        algorithm,
        lambda part: policy_outputs(model, part),
        {"policy": (model, 1e-3)},
        OptimizerConfig(),
        MicroSize(4),
    )
    assert step.accumulate(grouped_rollout(model, algorithm), 0)["update_kl"] == pytest.approx(0.0048374, abs=1e-6)


def test_rows_are_computed_if_the_loss_has_a_kl_term():
    algorithm = GRPO(group_size=2, kl_coef=0.04)
    assert algorithm.without_gradient(grouped_rollout(tiny.rotary(), algorithm)) is None


def test_a_minibatch_without_any_gradient_still_makes_its_step(accelerator):
    """AdamW's momentum moves the weights, as it would with gradients of 0."""
    model, algorithm = tiny.rotary(), RLOO(group_size=2, kl_coef=0.0)
    rollout = grouped_rollout(model, algorithm)
    step = GradientStep(
        accelerator,
        algorithm,
        lambda part: policy_outputs(model, part),
        {"policy": (model, 1e-3)},
        OptimizerConfig(learning_rate=1e-3),
        MicroSize(4),
    )
    step(rollout, 0, 2)
    before = [parameter.clone() for parameter in model.parameters()]
    metrics = step(replace(rollout, advantages=torch.zeros_like(rollout.advantages)), 1, 2)
    assert metrics["grad_norm"] == 0
    assert any((old != new).any() for old, new in zip(before, model.parameters(), strict=True))


class Counting:
    """Counts the calls of a function by the model that they receive."""

    def __init__(self, function):
        self.function, self.models = function, []

    def __call__(self, model, *others, **named):
        self.models.append(model)
        return self.function(model, *others, **named)


def training(accelerator, tokenizer, folder, algorithm, reference, **settings):
    policy = tiny.rotary()
    save_policy(policy, tokenizer, folder / "policy", max_new_tokens=4)
    critic = Critic(new_scalar_model(folder / "policy"), 1e-3) if algorithm.needs.critic else None
    config = {"learning_rate": 1e-3, "steps": 2, "rollout_size": 4, "minibatch_size": 4, "snapshots": 0} | settings
    return OnlineTraining(
        accelerator,
        Models(policy, reference, critic, tokenizer),
        algorithm,
        WeightedSum([("ends", 1.0, lambda rows: rows.ended.float())]),
        tiny.prompts_of(list("abcd")),
        LocalSampler(4, (END,), PAD),
        OnlineConfig(**config),
        tiny.quiet_run(folder / "resume"),
    )


@pytest.mark.parametrize(
    "algorithm", [GRPO(group_size=2, kl_coef=0.0), PPO(kl_coef=0.0), RLOO(group_size=2, kl_coef=0)]
)
def test_a_reference_without_weight_is_not_needed(accelerator, tokenizer, tmp_path, algorithm):
    """The KL to it is then unknown and not logged."""
    assert not algorithm.needs.any_reference
    history = training(accelerator, tokenizer, tmp_path, algorithm, None).train()
    assert all("kl" not in metrics and metrics["loss"] == metrics["loss"] for metrics in history)


def test_the_policy_that_sampled_is_not_run_again_for_one_step(accelerator, tokenizer, tmp_path, monkeypatch):
    """The sampler's log-probabilities are the old ones, and the ratio of the only step is exactly 1."""
    count = Counting(response_logprobs)
    monkeypatch.setattr(online_loop, "response_logprobs", count)
    reference = tiny.rotary(1)
    run = training(accelerator, tokenizer, tmp_path, GRPO(group_size=2), reference)
    history = run.train()
    assert count.models == [reference] * 2
    assert [metrics["update_kl"] for metrics in history] == [0.0, 0.0]


def test_log_probabilities_of_several_steps_are_those_before_the_first(accelerator, tokenizer, tmp_path):
    """With two epochs, the second step has ratios other than 1."""
    history = training(accelerator, tokenizer, tmp_path, GRPO(group_size=2), tiny.rotary(1), epochs=2).train()
    assert all(metrics["update_kl"] > 0 for metrics in history)


def test_a_reference_reads_equal_rows_once(accelerator, monkeypatch):
    """Log-probabilities are stored by content: prompt and response. The row of two pairs is read once."""
    count = []
    compute = offline_loop.response_logprobs
    monkeypatch.setattr(
        offline_loop, "response_logprobs", lambda model, batch: count.append(batch.rows) or compute(model, batch)
    )
    one, two, three = tiny.examples(3)
    units = tiny.paired([one, two, one, three])
    reference = tiny.rotary()
    done = with_ref_logprobs(accelerator, reference, units, OfflineConfig(micro_batch_size=2), PAD)
    assert sum(count) == 3
    for unit, pair in zip(units, done, strict=True):
        for row, filled in zip(unit, pair, strict=True):
            alone = response_logprobs(reference, collate([row], PAD))[0]
            torch.testing.assert_close(torch.tensor(filled.ref_logprobs), alone, atol=1e-5, rtol=0)
            assert filled.preference == row.preference
