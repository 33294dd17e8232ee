"""The seam between algorithms and loops.

An algorithm is a frozen dataclass whose fields are its hyperparameters. The loops never ask which one they run:

    fixed data:    batch   -> prepare -> losses, weights -> scalar
    sampled data:  rollout -> targets -> minibatches -> prepare -> losses, weights -> scalar

`losses` and `weights` have the same shape: (B, R) for a loss per token, (B,) per response or (N,) per unit (a pair, a
ranking). The loop computes `(losses * weights).sum()`. A method states only what differs from the defaults here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeVar

from rlhf_core.common.batch import Batch, Outputs, Rollout
from rlhf_core.common.lazy import Tensor

if TYPE_CHECKING:
    from rlhf_core.algorithms.base.config import OnlineConfig

BatchT = TypeVar("BatchT", bound=Batch)

# What turns the difference of two scores into the probability that the first is better: σ or Φ.
Link = Literal["logistic", "normal"]

# What a method carries from rollout to rollout (a KL coefficient, a running mean): part of the checkpoint.
State = dict[str, float]


class Algorithm(Generic[BatchT]):
    """What every method gives a loop."""

    @property
    def needs(self) -> frozenset[str]:
        """What the loop has to provide: "critic" (values), "entropy", "exact_kl", "trust_region", "final_kl"."""
        return frozenset()

    def prepare(self, batch: BatchT, forward: Callable[[BatchT], Outputs]) -> BatchT:
        """The minibatch with what its rows must know of each other; `forward` is without gradient."""
        return batch

    def losses(self, outputs: Outputs, batch: BatchT) -> Tensor:
        """Losses with gradient: (B, R), (B,) or (N,)."""
        raise NotImplementedError

    def weights(self, batch: BatchT) -> Tensor:
        """Weights of the same shape, computed once from the whole minibatch."""
        raise NotImplementedError

    def statistics(self, outputs: Outputs, batch: BatchT) -> dict[str, Tensor]:
        """Named quantities of the same shape, averaged with the same weights and logged."""
        return {}


class OnPolicyAlgorithm(Algorithm[Rollout]):
    """What a method on sampled data gives besides. `group_size` is a field of each: G, responses per prompt."""

    group_size: int

    @property
    def rows_per_unit(self) -> int:
        """Adjacent responses that one loss needs together: 2 for a pair."""
        return 1

    def check_rollouts(self, config: "OnlineConfig") -> None:
        """Raise ValueError if the method is wrong, or unstable, with rollouts and optimiser steps as in `config`."""

    def initial_state(self) -> State:
        """The state before the first rollout."""
        return {}

    def at(self, state: State) -> Self:
        """The method with the coefficients that its state has reached."""
        return self

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """The rollout with rewards, advantages and returns; no gradient."""
        raise NotImplementedError

    def next_state(self, state: State, metrics: dict[str, float], responses: int) -> State:
        """The state for the next rollout, from this one's metrics.

        `kl` and `return` are per response: nats to the reference, and the sum of its token rewards.
        """
        return state
