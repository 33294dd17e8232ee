"""The training loop for fixed data: SFT, reward models, and offline methods such as DPO."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from rlhf_core.algorithms.base.algorithm import Algorithm
from rlhf_core.algorithms.base.config import OfflineConfig
from rlhf_core.common.batch import Batch, Example, Outputs, Unit, collate, collate_units
from rlhf_core.common.seeding import seed_everything
from rlhf_core.loops.common.resume import load_trained_state, trained_state
from rlhf_core.loops.common.run import Metrics, Run, is_mark, minibatch_indices
from rlhf_core.loops.common.update import GradientStep, forward_in_parts, micro_size, microbatches
from rlhf_core.models.forward import response_logprobs

# The tokens of a row: prompt and response.
Content = tuple[tuple[int, ...], tuple[int, ...]]


def train_offline(
    accelerator: Accelerator,
    model: nn.Module,
    forward: Callable[..., Outputs],
    algorithm: Algorithm[Batch],
    units: Sequence[Unit],
    held_out: Sequence[Unit],
    config: OfflineConfig,
    run: Run,
    pad_id: int,
    snapshots: int = 0,
) -> list[Metrics]:
    """Train `model` in place and return one dict of metrics per optimiser step.

    `held_out` units are evaluated `config.evaluations` times; the metrics are named `development_*`. A run that was
    interrupted continues from its last resume state and gives bit-identical results.
    """
    model = accelerator.prepare(model)
    step_on = GradientStep(
        accelerator,
        algorithm,
        lambda batch: forward(model, batch),
        {"model": (model, config.learning_rate)},
        config,
        micro_size(config),
    )
    total = config.total_steps(len(units))
    history: list[Metrics] = []
    if state := run.resume.load():
        load_trained_state(model, state["model"])
        step_on.load_state_dict(state["optimizer"])
        history = state["history"]
    model.train()
    for step in range(len(history), total):
        seed_everything(run.seed, run.name, accelerator.process_index, step)
        chosen = minibatch_indices(step, len(units), config.batch_size, run.seed, run.name)
        batch = collate_units([units[index] for index in chosen], pad_id).to(accelerator.device)
        metrics = step_on(batch, step, total)
        metrics["trained_tokens"] = batch.response_mask.sum().item()
        if held_out and is_mark(step + 1, total, config.evaluations):
            metrics |= evaluate_offline(accelerator, model, forward, algorithm, held_out, config, pad_id)
        history.append(metrics)
        run.report(metrics, step + 1, total, int(batch.attention_mask.sum()))
        if is_mark(step + 1, total, snapshots):
            run.snapshot(step + 1)
        if (step + 1) % config.resume_every == 0:
            run.resume.save({"model": trained_state(model), "optimizer": step_on.state_dict(), "history": history})
    return history


@torch.no_grad()
def evaluate_offline(
    accelerator: Accelerator,
    model: nn.Module,
    forward: Callable[..., Outputs],
    algorithm: Algorithm[Batch],
    units: Sequence[Unit],
    config: OfflineConfig,
    pad_id: int,
) -> Metrics:
    """Loss and statistics averaged over all held-out units with the algorithm's weights."""
    batch = collate_units(units, pad_id).to(accelerator.device)
    batch = algorithm.prepare(
        batch, lambda whole: forward_in_parts(lambda part: forward(model, part), whole, micro_size(config))
    )
    sums: Metrics = {}
    for part, weights in microbatches(batch, algorithm.weights(batch), micro_size(config)):
        outputs = forward(model, part)
        named = {"loss": algorithm.losses(outputs, part), **algorithm.statistics(outputs, part)}
        for name, value in named.items():
            key = f"development_{name}"
            sums[key] = sums.get(key, 0.0) + (value * weights).sum().item()
    return sums


def with_ref_logprobs(
    accelerator: Accelerator,
    reference: PreTrainedModel,
    units: Sequence[Unit],
    config: OfflineConfig,
    pad_id: int,
    report: Callable[[int], None] = lambda count: None,
) -> list[Unit]:
    """The same units with the reference model's log-probability of each token, computed once for equal rows.

    report(count): called each time `count` more units are done.
    """
    reference = accelerator.prepare_model(reference, evaluation_mode=True)
    known: dict[Content, list[float]] = {}
    for start in range(0, len(units), config.micro_batch_size):
        part = units[start : start + config.micro_batch_size]
        new = {_content(row): row for unit in part for row in unit if _content(row) not in known}
        if new:
            batch = collate(list(new.values()), pad_id).to(accelerator.device)
            found = response_logprobs(reference, batch).tolist()
            known |= {key: values[: len(key[1])] for key, values in zip(new, found, strict=True)}
        report(len(part))
    return [tuple(replace(row, ref_logprobs=known[_content(row)]) for row in unit) for unit in units]


def _content(row: Example) -> Content:
    return tuple(row.prompt_ids), tuple(row.response_ids)
