"""One optimiser step on one minibatch, in microbatches, for any algorithm."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf_core.algorithms.base import Algorithm, BatchT
from rlhf_core.batch import Outputs
from rlhf_core.errors import UserError
from rlhf_core.fields import setting


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, gradient clipping and the learning-rate schedule."""

    learning_rate: float = setting(1e-5, "peak learning rate of AdamW", gt=0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "how the learning rate falls after the warm-up: not at all, or to 0"
    )
    warmup_steps: int = setting(0, "optimiser steps over which the learning rate rises from 0", ge=0)
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay", ge=0)
    adam_eps: float = setting(1e-8, "AdamW's ε; PPO uses 1e-5 (Huang et al. 2022)", gt=0)
    max_grad_norm: float = setting(1.0, "gradients of a model with a larger norm are scaled down to it", gt=0)


def learning_rate_factor(config: OptimizerConfig, step: int, total: int) -> float:
    """The factor on the learning rate at optimiser step 0 <= step < total: a pure function, nothing to resume."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


class GradientStep(Generic[BatchT]):
    """AdamW on the algorithm's loss; gradients of each model are clipped on their own.

    The loss of a minibatch is `(losses * weights).sum()` with weights made from the whole minibatch, so the gradient
    does not depend on the microbatch size.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        algorithm: Algorithm[BatchT],
        forward: Callable[[BatchT], Outputs],
        models: Sequence[tuple[nn.Module, float]],
        config: OptimizerConfig,
        micro_units: int,
    ) -> None:
        """`models` are the trained models with their peak learning rates; `micro_units` units make a microbatch."""
        self.accelerator = accelerator
        self.algorithm = algorithm
        self.forward = forward
        self.config = config
        self.micro_units = micro_units
        self.peaks = [rate for _, rate in models]
        self.parameters = [[p for p in model.parameters() if p.requires_grad] for model, _ in models]
        groups = [{"params": p, "lr": rate} for p, rate in zip(self.parameters, self.peaks, strict=True)]
        self.optimizer = accelerator.prepare(
            torch.optim.AdamW(groups, eps=config.adam_eps, weight_decay=config.weight_decay)
        )

    def __call__(self, minibatch: BatchT, step: int, total: int) -> dict[str, float]:
        """Take optimiser step `step` of `total` and return loss, statistics and gradient norms.

        Raises:
            UserError: if loss or gradient is not finite; the weights have not been changed then.
        """
        metrics = self.accumulate(minibatch, step)
        for index, parameters in enumerate(self.parameters):
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
            self._require_finite(norm, "gradient norm", step)
            metrics["grad_norm" if index == 0 else "critic_grad_norm"] = norm.item()
        factor = learning_rate_factor(self.config, step, total)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()
        metrics["learning_rate"] = self.peaks[0] * factor
        return metrics

    def accumulate(self, minibatch: BatchT, step: int) -> dict[str, float]:
        """Set the gradients of a whole minibatch and return its loss and statistics."""
        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        for batch, weights in microbatches(self.algorithm, minibatch, self.micro_units):
            outputs = self.forward(batch)
            loss = (self.algorithm.losses(outputs, batch) * weights).sum()
            self._require_finite(loss, "loss", step)
            self.accelerator.backward(loss)
            named = {"loss": loss.detach()}
            for name, value in self.algorithm.statistics(outputs, batch).items():
                named[name] = (value * weights).sum()
            for name, value in named.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        return {name: value.item() for name, value in sums.items()}

    def _require_finite(self, value: Tensor, what: str, step: int) -> None:
        if not bool(torch.isfinite(value).all()):
            self.optimizer.zero_grad()
            raise UserError(
                f"the {what} of optimiser step {step} is {value.item()}; the weights were not changed. "
                "Lower learning_rate, raise kl_coef or beta, or look for extreme rewards in that batch."
            )

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, for resuming."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.optimizer.load_state_dict(state)


def microbatches(algorithm: Algorithm[BatchT], minibatch: BatchT, micro_units: int) -> "list[tuple[BatchT, Tensor]]":
    """Split a minibatch into microbatches with their share of its weights, units kept whole."""
    weights = algorithm.weights(minibatch)
    rows_per_unit = algorithm.rows_per_unit
    rows_per_weight = minibatch.rows // weights.shape[0]
    parts = []
    for start in range(0, minibatch.rows, micro_units * rows_per_unit):
        stop = min(start + micro_units * rows_per_unit, minibatch.rows)
        share = weights[start // rows_per_weight : stop // rows_per_weight]
        parts.append((minibatch.select(slice(start, stop)), share))
    return parts
