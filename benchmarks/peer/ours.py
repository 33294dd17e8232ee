"""Our side: rlhf_core's loops. `python -m benchmarks.peer.ours SPEC` is started by compare.py."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

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
from rlhf_core.loops.common.resume import ResumeStore
from rlhf_core.loops.common.run import Run, shuffled
from rlhf_core.loops.offline import train_offline, with_ref_logprobs
from rlhf_core.loops.online import Critic, Models, OnlineTraining
from rlhf_core.models.forward import policy_outputs, score_outputs
from rlhf_core.models.responses import Responses
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import load_policy, new_scalar_model
from rlhf_core.models.tokens import Prompt
from rlhf_core.scoring.rewards import ModelReward, WeightedSum

RATE = 1e-6
NEVER = 10**6  # resume states are no part of the comparison
NAME = "speed"


def main(cell: Cell, folder: Path, recorder: Recorder, best: bool) -> None:
    """Train the cell's method. We have one column only: `best` is not used."""
    run = Run(
        seed=0,
        name=NAME,
        resume=ResumeStore(Path(tempfile.mkdtemp()) / "state"),
        report=lambda metrics, step, total, tokens: recorder.end_step(),
    )
    METHODS[cell.method](cell, folder, recorder, run)


def grpo(cell: Cell, folder: Path, recorder: Recorder, run: Run) -> None:
    """GRPO without a KL penalty, as TRL's default; the reward is the fraction of odd tokens."""

    def odd(responses: Responses) -> Tensor:
        batch = responses.batch
        return ((batch.response_ids % 2) * batch.response_mask).sum(-1) / batch.lengths

    _train_online(cell, folder, recorder, run, GRPO(group_size=cell.group, kl_coef=0.0), WeightedSum([("odd", 1.0, odd)]))


def ppo(cell: Cell, folder: Path, recorder: Recorder, run: Run) -> None:
    """PPO with a reward model and a critic of the policy's size, and TRL's KL weight 0.05."""
    reward = WeightedSum([("model", 1.0, ModelReward(new_scalar_model(folder)))])
    _train_online(cell, folder, recorder, run, PPO(kl_coef=0.05), reward, Critic(new_scalar_model(folder), RATE))


def dpo(cell: Cell, folder: Path, recorder: Recorder, run: Run) -> None:
    """DPO; the pass of the reference over all pairs counts, once per pair."""
    config, accelerator = _offline_config(cell), Accelerator(cpu=True)
    policy, reference, units = load_policy(folder), load_policy(folder), _units(cell, recorder.total)
    recorder.is_loaded()
    began = clock()
    units = with_ref_logprobs(accelerator, reference, units, config, PAD)
    recorder.once("reference", clock() - began)
    _train_offline(recorder, run, policy, policy_outputs, DPO(), units, config, accelerator)


def reward(cell: Cell, folder: Path, recorder: Recorder, run: Run) -> None:
    """A Bradley–Terry reward model."""
    units, config = _units(cell, recorder.total), _offline_config(cell)
    _train_offline(recorder, run, new_scalar_model(folder), score_outputs, BradleyTerry(), units, config)


def sft(cell: Cell, folder: Path, recorder: Recorder, run: Run) -> None:
    """Cross-entropy on response tokens."""
    units, config = _units(cell, recorder.total), _offline_config(cell)
    _train_offline(recorder, run, load_policy(folder), policy_outputs, SFT(), units, config)


METHODS: dict[str, Callable[[Cell, Path, Recorder, Run], None]] = {
    "grpo": grpo,
    "ppo": ppo,
    "dpo": dpo,
    "reward": reward,
    "sft": sft,
}


class TimedSampler:
    """A sampler that forces the cell's lengths and counts its time as decoding."""

    temperature = 1.0
    truncates = False

    def __init__(self, cell: Cell, policy: PreTrainedModel, recorder: Recorder) -> None:
        forced: Any = LogitsProcessorList([ForcedLengths(cell)])
        takes = "logits_processors" in {item.name for item in fields(LocalSampler)}
        inner = LocalSampler(cell.longest, (END,), PAD, **({"logits_processors": forced} if takes else {}))
        if not takes:
            generate: Any = policy.generate
            policy.generate = lambda *args, **kwargs: generate(*args, logits_processor=forced, **kwargs)
        self.responses = recorder.timing_decode(inner.responses)


def _train_online(
    cell: Cell,
    folder: Path,
    recorder: Recorder,
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
        micro_batch_size=cell.rows,
        epochs=cell.epochs,
        snapshots=0,
        resume_every=NEVER,
    )
    policy = load_policy(folder)
    reference = load_policy(folder) if algorithm.needs.any_reference else None
    prompts = [Prompt([], ids) for step in range(recorder.total) for ids in cell.prompts(step)]
    models = Models(policy, reference, critic, new_tokenizer(cell.vocabulary))
    sampler = TimedSampler(cell, policy, recorder)
    training = OnlineTraining(Accelerator(cpu=True), models, algorithm, reward, prompts, sampler, config, run)
    recorder.begin()
    training.train()


def _offline_config(cell: Cell) -> OfflineConfig:
    return OfflineConfig(
        learning_rate=RATE, batch_size=cell.units, micro_batch_size=cell.units, evaluations=1, resume_every=NEVER
    )


def _units(cell: Cell, steps: int) -> list[Unit]:
    """The units in places where the loop's shuffled order visits them step by step."""
    ordered: list[Unit] = []
    for step in range(steps):
        rows, responses = cell.rows // cell.units, cell.responses(step)
        for unit, prompt in enumerate(cell.prompts(step)):
            answers = responses[unit * rows : (unit + 1) * rows]
            ordered.append(_unit(cell, prompt, answers))
    placed: list[Unit] = list(ordered)
    for unit, place in zip(ordered, shuffled(len(ordered), 0, 0, NAME), strict=True):
        placed[place] = unit
    return placed


def _unit(cell: Cell, prompt: list[int], answers: Sequence[list[int]]) -> Unit:
    if cell.method not in PAIRED:
        return (Example(prompt, answers[0]),)
    return (Example(prompt, answers[0], preference=1.0), Example(prompt, answers[1], preference=0.0))


def _train_offline(
    recorder: Recorder,
    run: Run,
    model: Any,
    forward: Callable[..., Any],
    algorithm: Any,
    units: Sequence[Unit],
    config: OfflineConfig,
    accelerator: Accelerator | None = None,
) -> None:
    recorder.begin()
    train_offline(accelerator or Accelerator(cpu=True), model, forward, algorithm, units, [], config, run, PAD)


if __name__ == "__main__":
    side(main)
