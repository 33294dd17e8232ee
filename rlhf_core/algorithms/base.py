"""The seam between algorithms and loops.

An algorithm is a frozen dataclass whose fields are its hyperparameters. The loops never ask which one they run:

    fixed data:    batch   -> losses, weights -> scalar
    sampled data:  rollout -> targets -> minibatches -> losses, weights -> scalar

`losses` and `weights` have the same shape: (B, R) for a loss per token, (B,) per response or (N,) per unit of
`rows_per_unit` adjacent rows (a pair). The loop computes `(losses * weights).sum()`.
"""

from typing import ClassVar, Protocol, TypeVar

from torch import Tensor

from rlhf_core.batch import Batch, Outputs, Rollout

BatchT = TypeVar("BatchT", bound=Batch, contravariant=True)

# What a method carries from rollout to rollout (a KL coefficient, a running mean): part of the checkpoint.
State = dict[str, float]


class Algorithm(Protocol[BatchT]):
    """What every method gives a loop."""

    needs: ClassVar[frozenset[str]]  # of "critic", "entropy"
    rows_per_unit: ClassVar[int]  # adjacent rows that no split may part

    def losses(self, outputs: Outputs, batch: BatchT) -> Tensor:
        """Losses with gradient: (B, R), (B,) or (N,)."""
        ...

    def weights(self, batch: BatchT) -> Tensor:
        """Weights of the same shape, computed once from the whole minibatch."""
        ...

    def statistics(self, outputs: Outputs, batch: BatchT) -> dict[str, Tensor]:
        """Named quantities of the same shape, averaged with the same weights and logged."""
        ...


class OnPolicyAlgorithm(Algorithm[Rollout], Protocol):
    """What a method on sampled data gives besides."""

    @property
    def group_size(self) -> int:
        """G, responses sampled per prompt."""
        ...

    def initial_state(self) -> State:
        """The state before the first rollout."""
        ...

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """The rollout with rewards, advantages and returns; no gradient."""
        ...

    def next_state(self, state: State, metrics: dict[str, float], responses: int) -> State:
        """The state for the next rollout, from this one's metrics (`kl` in nats per response)."""
        ...
