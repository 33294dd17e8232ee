"""Both loops end to end on toy tasks that a model of a few thousand weights learns in seconds."""

from dataclasses import replace

import pytest
import torch

import tiny
from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.algorithms.base.table import policy_algorithm, policy_algorithms, reward_loss, reward_losses
from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.kto import KTO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.reward.bradley_terry import BradleyTerry
from rlhf_core.common.batch import Example, collate, collate_units
from rlhf_core.common.errors import UserError
from rlhf_core.loops.common.run import is_mark, minibatch_indices
from rlhf_core.loops.common.update import MicroSize, OptimizerConfig, learning_rate_factor, microbatches
from rlhf_core.loops.offline import OfflineConfig, evaluate_offline, train_offline, with_ref_logprobs
from rlhf_core.loops.online import Critic, Models, OnlineConfig, OnlineTraining
from rlhf_core.models.forward import policy_outputs, response_kl, response_logprobs, score_outputs
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import new_scalar_model, save_policy
from rlhf_core.scoring.rewards import WeightedSum
from rlhf_core.scoring.terms.missing_end import MissingEnd
from tiny import END, PAD


def offline(accelerator, folder, model, forward, algorithm, units, held_out=(), snapshots=0, run=None, **settings):
    config = OfflineConfig(**{"learning_rate": 1e-2, "batch_size": 4, "micro_batch_size": 4, **settings})
    run = run or tiny.quiet_run(folder / "resume")
    return train_offline(accelerator, model, forward, algorithm, units, held_out, config, run, PAD, snapshots)


def next_word_units(count=24):
    """The response is the word after the prompt's only word, then the end token: 7 after 6, 6 after 11."""
    return [(Example([word], [6 + (word - 5) % 6, END]),) for word in range(6, 12) for _ in range(count // 6)]


def test_sft_learns_the_next_word(accelerator, tmp_path):
    model = tiny.rotary()
    history = offline(accelerator, tmp_path, model, policy_outputs, SFT(), next_word_units(), epochs=10)
    assert len(history) == 10 * 6
    assert history[0]["loss"] > 1.5
    assert history[-1]["loss"] < 0.05
    assert LocalSampler(4, (END,), PAD, temperature=0).token_ids(model, [[7], [11]], [0, 1]) == [[8, END], [6, END]]


def preference_units():
    """Responses with word 6 are preferred to the same responses with word 7."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(8, 12, (24, 3), generator=generator).tolist()
    return tiny.paired([Example([a], [b, word, c, END]) for a, b, c in words for word in (6, 7)])


def test_bradley_terry_separates_pairs(accelerator, tmp_path, tokenizer):
    save_policy(tiny.rotary(), tokenizer, tmp_path / "policy", max_new_tokens=4)
    torch.manual_seed(0)
    units = preference_units()
    model = new_scalar_model(tmp_path / "policy")
    history = offline(accelerator, tmp_path, model, score_outputs, BradleyTerry(), units[:16], units[16:], epochs=8)
    assert history[-1]["loss"] < 0.1 < 0.5 < history[0]["loss"]
    assert history[-1]["development_accuracy"] == 1.0
    assert history[-1]["development_margin"] > 2


def test_dpo_raises_the_margin(accelerator, tmp_path):
    """The policy starts at the reference: margin 0, loss log 2, accuracy ½."""
    units = with_ref_logprobs(
        accelerator, tiny.rotary(), preference_units(), OfflineConfig(micro_batch_size=5), pad_id=PAD
    )
    model = tiny.rotary()
    history = offline(accelerator, tmp_path, model, policy_outputs, DPO(beta=0.5), units[:16], units[16:], epochs=6)
    assert history[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert history[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert history[-1]["margin"] > 2
    assert history[-1]["development_accuracy"] == 1.0
    last = history[-1]
    assert last["margin"] == pytest.approx(last["implicit_reward_chosen"] - last["implicit_reward_rejected"], abs=1e-5)


def test_ref_logprobs_are_computed_once_per_token(accelerator):
    """The units keep their tokens and have one log-probability per response token, for any microbatch size.

    Responses of different lengths share a microbatch, so the shorter ones are padded.
    """
    reference, units = tiny.rotary(), [(row,) for row in tiny.examples(5)]
    assert len({len(row.response_ids) for (row,) in units}) > 1
    batch = collate([row for unit in units for row in unit], PAD)
    expected = response_logprobs(reference, batch)
    done = with_ref_logprobs(accelerator, reference, units, OfflineConfig(micro_batch_size=2), pad_id=PAD)
    assert [[row.response_ids for row in unit] for unit in done] == [
        [row.response_ids for row in unit] for unit in units
    ]
    assert [len(row.ref_logprobs) for (row,) in done] == [len(row.response_ids) for (row,) in units]
    found = collate([row for unit in done for row in unit], PAD).ref_logprobs
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.pitfall(30)
def test_evaluation_averages_over_all_held_out_rows(accelerator):
    """Microbatches of 2 rows with different lengths give the same result as one pass over all rows."""
    model, units = tiny.rotary(), [(row,) for row in tiny.examples(7)]
    batch = collate([row for (row,) in units], PAD)
    expected = -response_logprobs(model, batch).sum() / batch.response_mask.sum()
    config = OfflineConfig(micro_batch_size=2)
    found = evaluate_offline(accelerator, model, policy_outputs, SFT(), units, config, PAD)
    assert found["development_loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_evaluation_of_kto_has_one_reference_point(accelerator):
    """z_0 is the mean log-ratio of the mismatched rows of all held-out units, also in microbatches of one unit."""
    model, labelled, mismatched = tiny.rotary(), tiny.examples(6)[:3], tiny.examples(6)[3:]
    zeros = [[0.0] * len(row.response_ids) for row in (*labelled, *mismatched)]
    rows = [replace(row, desirable=1.0, ref_logprobs=zero) for row, zero in zip(labelled, zeros[:3], strict=True)]
    others = [replace(row, ref_logprobs=[-9.0] * len(zero)) for row, zero in zip(mismatched, zeros[3:], strict=True)]
    units = list(zip(rows, others, strict=True))
    batch = collate(others, PAD)
    logratios = ((response_logprobs(model, batch) + 9.0) * batch.response_mask).sum(-1)
    assert logratios.min() > 0
    assert logratios.std() > 1
    found = evaluate_offline(accelerator, model, policy_outputs, KTO(), units, OfflineConfig(micro_batch_size=1), PAD)
    assert found["development_reference_point"] == pytest.approx(logratios.mean().item(), abs=1e-4)


def share_of_a(sampled):
    """The fraction of token 6 in a response of at most four tokens."""
    return ((sampled.batch.response_ids == 6) * sampled.batch.response_mask).sum(-1) / 4


def online(accelerator, tokenizer, folder, algorithm, run=None, **settings):
    """(training, its reference): token 6 is rewarded, and prompts have one word."""
    save_policy(tiny.learned(), tokenizer, folder / "policy", max_new_tokens=4)
    torch.manual_seed(0)
    critic = Critic(new_scalar_model(folder / "policy"), 3e-3) if algorithm.needs.critic else None
    defaults = {"learning_rate": 5e-3, "steps": 40, "rollout_size": 32, "minibatch_size": 16, "epochs": 2}
    reference = tiny.learned()
    training = OnlineTraining(
        accelerator,
        Models(tiny.learned(), reference, critic, tokenizer),
        algorithm,
        WeightedSum([("share", 2.0, share_of_a), ("missing_end", 0.5, MissingEnd())]),
        tiny.prompts_of(list("abcdef") * 6),
        LocalSampler(4, (END,), PAD),
        OnlineConfig(**defaults | settings),
        run or tiny.quiet_run(folder / "resume"),
    )
    return training, reference


@pytest.mark.parametrize("algorithm", [PPO(kl_coef=0.02), GRPO(group_size=8, kl_coef=0.02)], ids=["ppo", "grpo"])
def test_on_policy_methods_raise_the_score(accelerator, tokenizer, tmp_path, algorithm):
    """The largest score is 1.5: three sixes and an end, 2 · ¾, or four sixes without an end, 2 - ½. It starts low."""
    training, reference = online(accelerator, tokenizer, tmp_path, algorithm)
    history = training.train()
    assert history[0]["score"] < 0.5
    assert sum(step["score"] for step in history[-3:]) / 3 > 1.2
    assert history[0]["kl"] == pytest.approx(0.0, abs=1e-5)  # policy and reference start equal
    assert history[-1]["kl"] > 0.5
    rollout, metrics = training.rollout(40)
    assert metrics["score"] == pytest.approx(
        2 * metrics["reward_share"] + 0.5 * metrics["reward_missing_end"], abs=1e-6
    )
    kl = response_kl(training.policy, reference, rollout)
    assert (kl >= -1e-6).all()
    assert kl.sum(-1).mean().item() == pytest.approx(metrics["kl"], rel=0.5)  # exact sum against 32 samples


def test_a_strong_kl_penalty_keeps_the_policy_near_the_reference(accelerator, tokenizer, tmp_path):
    """With β = 5 nats and a reward of at most 1.5, the policy stays near the reference."""
    training, _ = online(accelerator, tokenizer, tmp_path, PPO(kl_coef=5.0), learning_rate=1e-3)
    assert abs(training.train()[-1]["kl"]) < 0.3


def test_rollout_holds_groups_and_sums_its_rewards(accelerator, tokenizer, tmp_path):
    """Rows of one group are adjacent and have the same prompt; four groups of eight have four prompts."""
    training, _ = online(accelerator, tokenizer, tmp_path, GRPO(group_size=8))
    rollout, metrics = training.rollout(0)
    prompts = rollout.input_ids[:, : -rollout.response_length]
    assert rollout.rows == 32
    assert all((group == group[0]).all() for group in prompts.split(8))
    length = rollout.response_mask.sum(-1)
    assert metrics["response_length"] == pytest.approx(length.mean().item())
    ended = rollout.response_ids.gather(-1, length.long()[:, None] - 1)[:, 0] == END
    assert torch.equal(rollout.ended, ended)
    assert metrics["ended_fraction"] == pytest.approx(ended.float().mean().item())
    assert torch.isnan(rollout.old_values).all()  # GRPO has no critic


def test_groups_must_fill_the_rollout(accelerator, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="rollout_size 32 is not a multiple of group_size 5"):
        online(accelerator, tokenizer, tmp_path, GRPO(group_size=5))


def test_minibatch_indices_visit_every_item_once_an_epoch():
    """Ten items in fours: 4, 4 and 2, in a different order each epoch; a pure function of the step."""
    epochs = []
    for epoch in range(3):
        steps = [minibatch_indices(3 * epoch + step, 10, 4, seed=0, name="x") for step in range(3)]
        assert [len(step) for step in steps] == [4, 4, 2]
        epochs.append([index for step in steps for index in step])
        assert sorted(epochs[-1]) == list(range(10))
    assert len({tuple(order) for order in epochs}) == 3
    assert minibatch_indices(0, 10, 4, seed=0, name="x") == epochs[0][:4]
    assert minibatch_indices(0, 10, 4, seed=0, name="y") != epochs[0][:4]
    assert minibatch_indices(0, 10, 4, seed=1, name="x") != epochs[0][:4]


def test_marks_are_evenly_spaced_and_end_with_the_last_step():
    """Three marks in ten steps: 4, 7, 10. More marks than steps: every step. No marks: no step."""
    assert [step for step in range(1, 11) if is_mark(step, 10, 3)] == [4, 7, 10]
    assert [step for step in range(1, 4) if is_mark(step, 3, 9)] == [1, 2, 3]
    assert not any(is_mark(step, 10, 0) for step in range(1, 11))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Warm-up over 3 steps: 1/4, 2/4, 3/4. At the other four steps, 0, 1, 2 and 3 of them are done.
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]),
        # ½ (1 + cos πx) at x = 0, ¼, ½, ¾.
        ("cosine", [0.25, 0.5, 0.75, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
    ],
)
def test_learning_rate_schedules(schedule, expected):
    config = OptimizerConfig(schedule=schedule, warmup_steps=3)
    assert [learning_rate_factor(config, step, 7) for step in range(7)] == pytest.approx(expected)


def test_history_holds_the_learning_rates(accelerator, tmp_path):
    """Six steps, linear schedule: 6/6, 5/6, ... of 0.012."""
    history = offline(
        accelerator,
        tmp_path,
        tiny.rotary(),
        policy_outputs,
        SFT(),
        next_word_units(),
        learning_rate=0.012,
        schedule="linear",
    )
    rates = [step["learning_rate"] for step in history]
    assert rates == pytest.approx([0.012, 0.01, 0.008, 0.006, 0.004, 0.002])


def test_total_steps():
    """Ten units in batches of four are three steps per epoch."""
    assert OfflineConfig(epochs=2, batch_size=4).total_steps(10) == 6
    assert OfflineConfig(epochs=2, batch_size=4, max_steps=5).total_steps(10) == 5


def test_reports_snapshots_and_evaluations_come_at_the_right_steps(accelerator, tmp_path):
    """Six steps: snapshots at 2, 4 and 6, evaluations at 3 and 6, and a report with the tokens after each step."""
    snapshots, reports = [], []
    run = tiny.quiet_run(tmp_path, snapshot=snapshots.append, report=lambda *report: reports.append(report))
    history = offline(
        accelerator,
        tmp_path,
        tiny.rotary(),
        policy_outputs,
        SFT(),
        next_word_units(),
        held_out=next_word_units(6),
        snapshots=3,
        run=run,
        evaluations=2,
    )
    assert snapshots == [2, 4, 6]
    assert [step for step, metrics in enumerate(history, 1) if "development_loss" in metrics] == [3, 6]
    # Four rows of one prompt token and two response tokens.
    assert reports == [(metrics, step, 6, 12) for step, metrics in enumerate(history, 1)]


def test_online_snapshots_come_at_the_right_steps(accelerator, tokenizer, tmp_path):
    snapshots = []
    run = tiny.quiet_run(tmp_path / "resume", snapshot=snapshots.append)
    algorithm = GRPO(group_size=2)
    training, _ = online(
        accelerator, tokenizer, tmp_path, algorithm, run, steps=5, rollout_size=4, minibatch_size=4, snapshots=2
    )
    training.train()
    assert snapshots == [3, 5]


@pytest.mark.pitfall(15)
def test_microbatches_keep_pairs_whole():
    """Three pairs in microbatches of two: rows 0-3 and 4-5; each pair has weight ⅓."""
    batch = collate_units(tiny.paired(tiny.examples(6)), PAD)
    parts = microbatches(batch, BradleyTerry().weights(batch), MicroSize(2))
    assert [part.rows for part, _ in parts] == [4, 2]
    assert torch.equal(torch.cat([part.input_ids for part, _ in parts]), batch.input_ids)
    assert torch.cat([weights for _, weights in parts]).tolist() == pytest.approx([1 / 3] * 3)


def test_tables_return_classes_that_declare_their_data():
    kinds = {name: policy_algorithm(name).data for name in policy_algorithms()}
    assert kinds.pop("best_of_n") == "none"
    assert kinds.pop("best_of_n_distillation") == "best_of_n"
    assert kinds.pop("kto") == "unpaired"
    assert {name for name, kind in kinds.items() if kind == "pairs"} == {"dpo", "cdpo", "ipo"}
    assert {name for name, kind in kinds.items() if kind == "rollouts"} == kinds.keys() - {"dpo", "cdpo", "ipo"}
    assert {reward_loss(name).data for name in reward_losses()} == {"pairs", "ratings", "rankings"}
    with pytest.raises(
        UserError, match=r"policy.online or policy.offline contains 'pp0', which does not exist. Choose"
    ):
        policy_algorithm("pp0")
    with pytest.raises(UserError, match=r"reward.loss contains 'bt'"):
        reward_loss("bt")


def test_a_rollout_that_needs_more_prompts_raises(accelerator, tokenizer, tmp_path):
    """A rollout of 8 responses in groups of 2 needs 4 prompts; there are 3."""
    with pytest.raises(UserError, match="rollout_size 8 needs 4 prompts, but the data has 3"):
        OnlineTraining(
            accelerator,
            Models(tiny.rotary(), tiny.rotary(), None, tokenizer),
            GRPO(group_size=2),
            WeightedSum([]),
            tiny.prompts_of(["a", "b", "c"]),
            LocalSampler(4, (END,), PAD, 1.0),
            OnlineConfig(rollout_size=8, minibatch_size=8),
            tiny.quiet_run(tmp_path),
        )
