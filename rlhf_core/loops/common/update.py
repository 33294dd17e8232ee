"""One optimiser step on one minibatch, in microbatches, for any algorithm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any, Generic

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf_core.algorithms.base.algorithm import Algorithm, BatchT
from rlhf_core.algorithms.base.config import OfflineConfig, OnlineConfig, OptimizerConfig, learning_rate_factor
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.errors import UserError
from rlhf_core.loops.common.optimizer import make_optimizer


@dataclass(frozen=True)
class MicroSize:
    """The largest microbatch: `units` units, and `tokens` real tokens if it is set."""

    units: int
    tokens: int | None = None


def micro_size(config: OfflineConfig | OnlineConfig, rows_per_unit: int = 1) -> MicroSize:
    """The largest microbatch that the configuration allows."""
    return MicroSize(config.micro_batch_size // rows_per_unit, config.micro_batch_tokens)


class GradientStep(Generic[BatchT]):
    """AdamW on the algorithm's loss; the gradient of each model is clipped separately.

    The critic's loss has no coefficient: policy and critic share no parameters, and Adam divides out the scale of a
    gradient. A coefficient would only change the effect of clipping and of Adam's ε.

    The loss of a minibatch is `(losses * weights).sum()` with weights computed from the whole minibatch, so the
    gradient does not depend on the microbatch size.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        algorithm: Algorithm[BatchT],
        forward: Callable[[BatchT], Outputs],
        models: Mapping[str, tuple[nn.Module, float]],
        config: OptimizerConfig,
        size: MicroSize,
        complete: Callable[[Outputs, BatchT], BatchT] = lambda outputs, batch: batch,
    ) -> None:
        """models: name -> (model, peak learning rate), all trained. size: the largest microbatch.

        complete(outputs, batch): the microbatch with values that only its forward pass gives.
        """
        self.accelerator = accelerator
        self.algorithm = algorithm
        self.forward = forward
        self.config = config
        self.size = size
        self.complete = complete
        self.names = list(models)
        self.peaks = [rate for _, rate in models.values()]
        self.parameters = [[p for p in model.parameters() if p.requires_grad] for model, _ in models.values()]
        groups = [{"params": p, "lr": rate} for p, rate in zip(self.parameters, self.peaks, strict=True)]
        self.optimizer = accelerator.prepare(make_optimizer(config, groups))

    def __call__(self, minibatch: BatchT, step: int, total: int) -> dict[str, float]:
        """Take optimiser step `step` of `total` and return loss, statistics and gradient norms.

        Raises:
            UserError: if the loss or a gradient is not finite; the weights are unchanged.
        """
        metrics = self.accumulate(minibatch, step)
        for name, parameters in zip(self.names, self.parameters, strict=True):
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
            self._require_finite(norm, "gradient norm", step)
            metrics["critic_grad_norm" if name == "critic" else "grad_norm"] = norm.item()
        factor = learning_rate_factor(self.config, step, total)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()
        metrics["learning_rate"] = self.peaks[0] * factor
        return metrics

    def accumulate(self, minibatch: BatchT, step: int) -> dict[str, float]:
        """Compute the gradients of a whole minibatch and return its loss and statistics."""
        self.optimizer.zero_grad()
        minibatch = self.algorithm.prepare(minibatch, self._without_gradient)
        total = self.algorithm.weights(minibatch)
        trained, kept = with_gradient(self.algorithm, minibatch, total)
        share = kept.sum() / total.sum()  # statistics are means over the trained rows
        sums: dict[str, Tensor] = {}
        for batch, weights in microbatches(trained, kept, self.size):
            outputs = self.forward(batch)
            complete = self.complete(outputs, batch)
            loss = (self.algorithm.losses(outputs, complete) * weights).sum()
            self._require_finite(loss, "loss", step)
            self.accelerator.backward(loss)
            named = {"loss": loss.detach()}
            for name, value in self.algorithm.statistics(outputs, complete).items():
                named[name] = (value * weights).sum() / share
            for name, value in named.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        return {name: value.item() for name, value in sums.items()}

    def _without_gradient(self, minibatch: BatchT) -> Outputs:
        return forward_in_parts(self.forward, minibatch, self.size)

    def _require_finite(self, value: Tensor, what: str, step: int) -> None:
        if not bool(torch.isfinite(value).all()):
            self.optimizer.zero_grad()
            raise UserError(
                f"the {what} of optimiser step {step} is {value.item()}; the weights were not changed. "
                "Lower learning_rate or max_grad_norm, or check the data and the rewards for extreme values."
            )

    def state_dict(self) -> dict[str, Any]:
        """The optimiser state, for resuming."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved optimiser state."""
        self.optimizer.load_state_dict(state)


def microbatches(minibatch: BatchT, weights: Tensor, size: MicroSize) -> "list[tuple[BatchT, Tensor]]":
    """Split a minibatch into microbatches with their slices of its weights; no unit is split."""
    by_row = weights.shape[0] == minibatch.rows
    return [
        (minibatch.select(rows), weights[rows if by_row else units]) for units, rows in unit_slices(minibatch, size)
    ]


def with_gradient(algorithm: Algorithm[BatchT], minibatch: BatchT, weights: Tensor) -> tuple[BatchT, Tensor]:
    """The rows whose losses have a gradient, and their weights, whose denominator still counts the other rows."""
    idle = algorithm.without_gradient(minibatch)
    if idle is None or not bool(idle.any()):
        return minibatch, weights
    rows = (~idle).nonzero()[:, 0]
    if not len(rows):
        rows = rows.new_zeros(1)  # without any gradient, the optimiser would leave out its step
    return minibatch.select(rows), weights[rows]


def unit_slices(batch: Batch, size: MicroSize) -> list[tuple[slice, slice]]:
    """Split a batch into runs of consecutive units within `size`: the slice of units and the slice of rows of each.

    A unit with more tokens than `size.tokens` is a run of its own.
    """
    ends = [0, *accumulate(batch.unit_sizes)]
    tokens = [0, *batch.attention_mask.sum(-1).cumsum(0).tolist()]
    slices, start = [], 0
    for unit in range(1, len(ends)):
        count = tokens[ends[unit]] - tokens[ends[start]]
        if unit - start > size.units or (size.tokens is not None and count > size.tokens and unit - start > 1):
            slices.append((slice(start, unit - 1), slice(ends[start], ends[unit - 1])))
            start = unit - 1
    last = len(ends) - 1
    return [*slices, (slice(start, last), slice(ends[start], ends[last]))]


@torch.no_grad()
def forward_in_parts(forward: Callable[[BatchT], Outputs], batch: BatchT, size: MicroSize) -> Outputs:
    """The outputs of a whole batch, computed without gradient in microbatches."""
    parts = [forward(batch.select(rows)) for _, rows in unit_slices(batch, size)]
    return Outputs(**{item.name: torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Outputs)})
