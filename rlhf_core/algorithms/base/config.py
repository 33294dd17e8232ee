"""The configuration of both loops. This module does not import torch."""

import math
from dataclasses import dataclass
from typing import Literal

from rlhf_core.common.fields import setting


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, gradient clipping and the learning-rate schedule."""

    learning_rate: float = setting(1e-5, "peak learning rate of AdamW", title="Learning rate", gt=0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "learning rate after the warm-up: constant, or linear or cosine decay to 0"
    )
    warmup_steps: int = setting(0, "optimiser steps over which the learning rate rises from 0", ge=0)
    optimizer: Literal["adamw", "adamw_8bit"] = setting(
        "adamw", "adamw_8bit keeps AdamW's two moments in 8 bits (bitsandbytes), 2 bytes per weight instead of 8"
    )
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
    micro_batch_tokens: int | None = setting(
        None, "real tokens per forward pass; null for micro_batch_size alone", ge=1
    )
    evaluations: int = setting(4, "evenly spaced evaluations on the development split", ge=1)
    resume_every: int = setting(50, "optimiser steps between two resume states", ge=1)

    def total_steps(self, units: int) -> int:
        """The number of optimiser steps of the whole training on `units` units."""
        steps = self.epochs * -(-units // self.batch_size)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def visits(self, units: int) -> int:
        """The number of units that the whole training visits; a unit counts once per visit."""
        return self.total_steps(units) * min(self.batch_size, units)


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(OptimizerConfig):
    """Training on responses sampled from the policy."""

    steps: int = setting(100, "number of rollouts", ge=1)
    rollout_size: int = setting(
        64, "responses per rollout: prompts times group_size; a multiple of minibatch_size", ge=1
    )
    minibatch_size: int = setting(64, "responses per optimiser step", ge=1)
    micro_batch_size: int = setting(64, "responses per forward pass; lower it to save memory", ge=1)
    micro_batch_tokens: int | None = setting(
        None, "real tokens per forward pass; null for micro_batch_size alone", ge=1
    )
    epochs: int = setting(1, "passes over each rollout", ge=1)
    temperature: float = setting(1.0, "divisor of the logits, in sampling and in all log-probabilities", gt=0)
    snapshots: int = setting(4, "evenly spaced snapshots of the policy", ge=0)
    resume_every: int = setting(10, "rollouts between two resume states", ge=1)

    @property
    def makes_one_step(self) -> bool:
        """Whether each rollout makes a single optimiser step, so that the policy is the one that sampled."""
        return self.epochs == 1 and self.minibatch_size == self.rollout_size
