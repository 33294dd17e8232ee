"""Our side: rlhf_core's loops. `python -m benchmarks.peer.ours SPEC` is started by compare.py."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

from benchmarks.peer.cells import END, PAD, PAIRED, Cell, new_tokenizer
from benchmarks.peer.lengths import ForcedLengths
from benchmarks.peer.recorder import Recorder, clock, side
from rlhf_core.algorithms.base.config import OfflineConfig, OnlineConfig
from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.reward.bradley_terry import BradleyTerry
from rlhf_core.common.batch import Example, Unit
from rlhf_core.common.responses import Response
from rlhf_core.loops.common.resume import ResumeStore
from rlhf_core.loops.common.run import Run, shuffled
from rlhf_core.loops.offline import train_offline, with_ref_logprobs
from rlhf_core.loops.online import Critic, Models, OnlineTraining
from rlhf_core.models.forward import policy_outputs, score_outputs
from rlhf_core.models.responses import Responses
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import ScalarModel, load_policy, new_scalar_model
from rlhf_core.models.tokens import Prompt
from rlhf_core.scoring.rewards import ModelReward, WeightedSum

RATE = 1e-6
NEVER = 10**6  # resume states are no part of the comparison
NAME = "speed"


class Steps(Protocol):
    """What records the steps: `Recorder`, or that of a GPU."""

    @property
    def total(self) -> int:
        """Optimiser steps, warm-up included."""
        ...

    def is_loaded(self) -> None:
        """All models are loaded."""

    def begin(self) -> None:
        """The first step begins."""

    def end_step(self) -> None:
        """A step has ended, and the next begins."""

    def timing_decode(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that does the same, and whose time counts as decoding."""
        ...

    def once(self, name: str, seconds: float) -> None:
        """Add work that is done once for all steps."""


@dataclass(frozen=True)
class Setup:
    """The models of a cell, and how to train them. micro: units per forward pass; None for all of a step at once."""

    accelerator: Accelerator
    policy: Callable[[], PreTrainedModel]
    reference: Callable[[], PreTrainedModel]
    scalar: Callable[[], ScalarModel]
    micro: int | None = None


def main(cell: Cell, folder: Path, recorder: Recorder, best: bool) -> None:
    """Train the cell's method. We have one column only: `best` is not used."""
    policy = partial(load_policy, folder)
    train(cell, Setup(Accelerator(cpu=True), policy, policy, partial(new_scalar_model, folder)), recorder)


def train(cell: Cell, setup: Setup, recorder: Steps) -> None:
    """Train the cell's method for `recorder.total` steps."""
    run = Run(
        seed=0,
        name=NAME,
        resume=ResumeStore(Path(tempfile.mkdtemp()) / "state"),
        report=lambda metrics, step, total, tokens: recorder.end_step(),
    )
    METHODS[cell.method](cell, setup, recorder, run)


def grpo(cell: Cell, setup: Setup, recorder: Steps, run: Run) -> None:
    """GRPO without a KL penalty, as TRL's default; the reward is the fraction of odd tokens."""

    def odd(responses: Responses) -> Tensor:
        batch = responses.batch
        return ((batch.response_ids % 2) * batch.response_mask).sum(-1) / batch.lengths

    algorithm = GRPO(group_size=cell.group, kl_coef=0.0)
    _train_online(cell, setup, recorder, run, algorithm, WeightedSum([("odd", 1.0, odd)]))


def ppo(cell: Cell, setup: Setup, recorder: Steps, run: Run) -> None:
    """PPO with a reward model and a critic of the policy's size, and TRL's KL weight 0.05."""
    judge = setup.accelerator.prepare_model(setup.scalar(), evaluation_mode=True)
    reward = WeightedSum([("model", 1.0, ModelReward(judge))])
    _train_online(cell, setup, recorder, run, PPO(kl_coef=0.05), reward, Critic(setup.scalar(), RATE))


def dpo(cell: Cell, setup: Setup, recorder: Steps, run: Run) -> None:
    """DPO; the pass of the reference over all pairs counts, once per pair."""
    config, units = _offline_config(cell, setup), _units(cell, recorder.total)
    policy, reference = setup.policy(), setup.reference()
    recorder.is_loaded()
    began = clock()
    units = with_ref_logprobs(setup.accelerator, reference, units, config, PAD)
    recorder.once("reference", clock() - began)
    _train_offline(setup, recorder, run, policy, policy_outputs, DPO(), units, config)


def reward(cell: Cell, setup: Setup, recorder: Steps, run: Run) -> None:
    """A Bradley–Terry reward model."""
    units, config = _units(cell, recorder.total), _offline_config(cell, setup)
    _train_offline(setup, recorder, run, setup.scalar(), score_outputs, BradleyTerry(), units, config)


def sft(cell: Cell, setup: Setup, recorder: Steps, run: Run) -> None:
    """Cross-entropy on response tokens."""
    units, config = _units(cell, recorder.total), _offline_config(cell, setup)
    _train_offline(setup, recorder, run, setup.policy(), policy_outputs, SFT(), units, config)


METHODS: dict[str, Callable[[Cell, Setup, Steps, Run], None]] = {
    "grpo": grpo,
    "ppo": ppo,
    "dpo": dpo,
    "reward": reward,
    "sft": sft,
}


@dataclass(frozen=True, kw_only=True)
class TimedSampler(LocalSampler):
    """A sampler whose time counts as decoding."""

    recorder: Steps

    def responses(self, *args: Any, **kwargs: Any) -> list[Response]:
        """One response per prompt; see `Sampler`."""
        return self.recorder.timing_decode(super().responses)(*args, **kwargs)


def _sampler(cell: Cell, recorder: Steps) -> TimedSampler:
    """A sampler of one batch that forces the cell's lengths."""
    return TimedSampler(
        max_new_tokens=cell.longest,
        stop_tokens=(END,),
        pad_token=PAD,
        rows=cell.rows,
        logits_processors=LogitsProcessorList([ForcedLengths(cell)]),
        recorder=recorder,
    )


def _train_online(
    cell: Cell,
    setup: Setup,
    recorder: Steps,
    run: Run,
    algorithm: Any,
    reward: WeightedSum,
    critic: Critic | None = None,
) -> None:
    config = OnlineConfig(
        learning_rate=RATE,
        steps=recorder.total,
        rollout_size=cell.rows,
        minibatch_size=cell.rows,
        micro_batch_size=(setup.micro or cell.units) * cell.group,
        epochs=cell.epochs,
        snapshots=0,
        resume_every=NEVER,
    )
    policy = setup.policy()
    reference = setup.reference() if algorithm.needs.any_reference else None
    prompts = [Prompt([], ids) for step in range(recorder.total) for ids in cell.prompts(step)]
    models = Models(policy, reference, critic, new_tokenizer(cell.vocabulary))
    sampler = _sampler(cell, recorder)
    training = OnlineTraining(setup.accelerator, models, algorithm, reward, prompts, sampler, config, run)
    recorder.begin()
    training.train()


def _offline_config(cell: Cell, setup: Setup) -> OfflineConfig:
    return OfflineConfig(
        learning_rate=RATE,
        batch_size=cell.units,
        micro_batch_size=setup.micro or cell.units,
        evaluations=1,
        resume_every=NEVER,
    )


def _units(cell: Cell, steps: int) -> list[Unit]:
    """The units in places where the loop's shuffled order visits them step by step."""
    ordered: list[Unit] = []
    for step in range(steps):
        rows, responses = cell.rows // cell.units, cell.responses(step)
        for unit, prompt in enumerate(cell.prompts(step)):
            ordered.append(_unit(cell, prompt, responses[unit * rows : (unit + 1) * rows]))
    placed: list[Unit] = list(ordered)
    for unit, place in zip(ordered, shuffled(len(ordered), 0, 0, NAME), strict=True):
        placed[place] = unit
    return placed


def _unit(cell: Cell, prompt: list[int], answers: Sequence[list[int]]) -> Unit:
    if cell.method not in PAIRED:
        return (Example(prompt, answers[0]),)
    return (Example(prompt, answers[0], preference=1.0), Example(prompt, answers[1], preference=0.0))


def _train_offline(
    setup: Setup,
    recorder: Steps,
    run: Run,
    model: Any,
    forward: Callable[..., Any],
    algorithm: Any,
    units: Sequence[Unit],
    config: OfflineConfig,
) -> None:
    recorder.begin()
    train_offline(setup.accelerator, model, forward, algorithm, units, [], config, run, PAD)


if __name__ == "__main__":
    side(main)
