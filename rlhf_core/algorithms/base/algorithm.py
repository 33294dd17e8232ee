"""The seam between algorithms and loops.

An algorithm is a frozen dataclass whose fields are its hyperparameters. The loops never ask which one they run:

    fixed data:    batch   -> prepare -> losses, weights -> scalar
    sampled data:  rollout -> targets -> minibatches -> prepare -> losses, weights -> scalar

`losses` and `weights` have the same shape: (B, R) for a loss per token, (B,) per response or (N,) per unit (a pair, a
ranking). The loop computes `(losses * weights).sum()`. A method states only what differs from the defaults here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Generic, Literal, Self, TypeVar

from rlhf_core.algorithms.base.config import OfflineConfig, OnlineConfig, OptimizerConfig
from rlhf_core.common.batch import Batch, Outputs, Rollout
from rlhf_core.common.lazy import Tensor

BatchT = TypeVar("BatchT", bound=Batch)

# What turns the difference of two scores into the probability that the first is better: σ or Φ.
Link = Literal["logistic", "normal"]

# What a method carries from rollout to rollout (a KL coefficient, a running mean): part of the checkpoint.
State = dict[str, float]


class Data(StrEnum):
    """What a method learns from."""

    PAIRS = "pairs"  # preferences
    UNPAIRED = "unpaired"  # responses labelled good or bad
    RATINGS = "ratings"
    RANKINGS = "rankings"
    ROLLOUTS = "rollouts"  # responses of the current policy, with their rewards
    BEST_OF_N = "best_of_n"  # the best of N responses of the SFT model
    NOTHING = "none"

    @property
    def is_rewarded(self) -> bool:
        """Whether policy.rewards decides what is learned."""
        return self in (Data.ROLLOUTS, Data.BEST_OF_N, Data.NOTHING)


@dataclass(frozen=True)
class Needs:
    """What the loop has to provide for an algorithm."""

    critic: bool = False  # values
    entropies: bool = False
    exact_kl: bool = False
    trust_region: bool = False  # the natural-gradient step, and a copy of the policy
    final_kl: bool = False  # the KL to the policy that sampled, after the last update on a rollout


class Method:
    """What is declared of every method, in its own file; tables, parameters, forms and reports follow from it."""

    name: ClassVar[str]  # in params.yaml; for a policy also its file's
    title: ClassVar[str]  # for people
    data: ClassVar[Data]
    loop: ClassVar[type[OptimizerConfig] | None] = None  # the loop that trains it, by its configuration
    notes: ClassVar[Mapping[str, str]] = {}  # what an option of the loop means here, where that differs


class Algorithm(Method, Generic[BatchT]):
    """What a method that is trained gives a loop."""

    loop: ClassVar[type[OptimizerConfig] | None] = OfflineConfig

    @property
    def needs(self) -> Needs:
        """What the loop has to provide."""
        return Needs()

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

    data = Data.ROLLOUTS
    loop = OnlineConfig
    reuse_options: ClassVar[tuple[str, ...]] = ()  # options without effect where a rollout makes a single step
    group_size: int

    @property
    def rows_per_unit(self) -> int:
        """Adjacent responses that one loss needs together: 2 for a pair."""
        return 1

    def check_rollouts(self, config: OnlineConfig) -> None:
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
