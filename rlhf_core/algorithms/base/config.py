"""The configuration of both loops, and checks that need no model. This module does not import torch."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlhf_core.common.fields import setting

if TYPE_CHECKING:
    from rlhf_core.algorithms.base.algorithm import OnPolicyAlgorithm


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, gradient clipping and the learning-rate schedule."""

    learning_rate: float = setting(1e-5, "peak learning rate of AdamW", title="Learning rate", gt=0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "learning rate after the warm-up: constant, or linear or cosine decay to 0"
    )
    warmup_steps: int = setting(0, "optimiser steps over which the learning rate rises from 0", ge=0)
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay", ge=0)
    adam_eps: float = setting(1e-8, "AdamW's ε; PPO uses 1e-5 (Huang et al. 2022)", gt=0)
    max_grad_norm: float = setting(1.0, "largest gradient norm of a model; larger gradients are scaled down", gt=0)


def learning_rate_factor(config: OptimizerConfig, step: int, total: int) -> float:
    """The factor on the learning rate at optimiser step 0 <= step < total.

    This is a pure function of the step, so resuming needs no scheduler state.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True)
class OfflineConfig(OptimizerConfig):
    """Training on fixed data."""

    epochs: int = setting(1, "passes over the training data", ge=1)
    max_steps: int | None = setting(None, "stop after this many optimiser steps; null for whole epochs", ge=1)
    batch_size: int = setting(32, "rows or pairs per optimiser step", ge=1)
    micro_batch_size: int = setting(32, "rows or pairs per forward pass; lower it to save memory", ge=1)
    evaluations: int = setting(4, "evenly spaced evaluations on the development split", ge=1)
    resume_every: int = setting(50, "optimiser steps between two resume states", ge=1)

    def total_steps(self, units: int) -> int:
        """The number of optimiser steps of the whole training on `units` units."""
        steps = self.epochs * -(-units // self.batch_size)
        return steps if self.max_steps is None else min(steps, self.max_steps)


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(OptimizerConfig):
    """Training on responses sampled from the policy."""

    steps: int = setting(100, "number of rollouts", ge=1)
    rollout_size: int = setting(
        64, "responses per rollout: prompts times group_size; a multiple of minibatch_size", ge=1
    )
    minibatch_size: int = setting(64, "responses per optimiser step", ge=1)
    micro_batch_size: int = setting(64, "responses per forward pass; lower it to save memory", ge=1)
    epochs: int = setting(1, "passes over each rollout", ge=1)
    temperature: float = setting(1.0, "divisor of the logits, in sampling and in all log-probabilities", gt=0)
    snapshots: int = setting(4, "evenly spaced snapshots of the policy", ge=0)
    resume_every: int = setting(10, "rollouts between two resume states", ge=1)


def check_loop(config: OnlineConfig, algorithm: "OnPolicyAlgorithm") -> None:
    """Raise ValueError unless rollouts hold whole groups, minibatches whole units, and every option has an effect."""
    size, together = algorithm.group_size, algorithm.rows_per_unit
    if config.rollout_size % size:
        raise ValueError(f"rollout_size {config.rollout_size} is not a multiple of group_size {size}; change one")
    if config.minibatch_size % together or config.micro_batch_size % together:
        raise ValueError(
            f"minibatch_size {config.minibatch_size} and micro_batch_size {config.micro_batch_size} must be multiples "
            f"of {together}, because this method compares {together} responses to a prompt; change them"
        )
    if config.rollout_size % config.minibatch_size:
        raise ValueError(_whole_minibatches(config, size, together))
    algorithm.check_rollouts(config)
    if config.epochs == 1 and config.minibatch_size == config.rollout_size:
        # In the only step on a rollout, the ratio π_θ/π_old is 1 and V is V_old.
        for name in algorithm.reuse_options:
            if getattr(algorithm, name) != getattr(type(algorithm), name):
                raise ValueError(f"{name} has no effect with one step per rollout; leave it out, or raise epochs")


def _whole_minibatches(config: OnlineConfig, size: int, together: int) -> str:
    """The message for a rollout that is not a whole number of minibatches, with the nearest values that fit."""
    rollout, minibatch = config.rollout_size, config.minibatch_size
    step = math.lcm(minibatch, size)
    rollouts = [number for number in (rollout // step * step, (rollout // step + 1) * step) if number]
    divisors = [number for number in range(together, rollout + 1, together) if rollout % number == 0]
    fits = f", or minibatch_size to {min(divisors, key=lambda number: abs(number - minibatch))}" if divisors else ""
    return (
        f"rollout_size {rollout} is not a multiple of minibatch_size {minibatch}, so the last step on a rollout would "
        f"see fewer responses; set rollout_size to {' or '.join(map(str, rollouts))}{fits}"
    )
