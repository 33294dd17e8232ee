"""The interface between algorithms and loops.

An algorithm is a frozen dataclass; its fields are the hyperparameters. The loops do not know which algorithm they run:

    fixed data:    batch   -> prepare -> losses, weights -> scalar
    sampled data:  rollout -> targets -> minibatches -> prepare -> losses, weights -> scalar

`losses` and `weights` have the same shape: (B, R) for a loss per token, (B,) per response or (N,) per unit (a pair, a
ranking). The loop computes `(losses * weights).sum()`. A method overrides only what differs from the defaults here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from rlhf_core.algorithms.base.config import OfflineConfig, OnlineConfig, OptimizerConfig
from rlhf_core.common.batch import Batch, Outputs, Rollout
from rlhf_core.common.data import Data
from rlhf_core.common.lazy import Tensor

BatchT = TypeVar("BatchT", bound=Batch)

# The function from the difference of two scores to the probability that the first response is better: σ or Φ.
Link = Literal["logistic", "normal"]

# The state that a method keeps between rollouts (a KL coefficient, a running mean); it is part of the resume state.
State = dict[str, float]


@dataclass(frozen=True)
class Needs:
    """What the loop must provide for an algorithm."""

    critic: bool = False  # gives the values
    reference: bool = True  # gives the log-probabilities of the reference; not needed if its KL has weight 0
    entropies: Literal["value", "gradient"] | None = None  # to log them, or as part of the loss
    exact_kl: bool = False
    trust_region: bool = False  # the natural-gradient step, and a copy of the policy
    final_kl: bool = False  # the KL to the policy that sampled, after the last update on a rollout
    sampler_logprobs: bool = False  # those of the sampler, beside old_logprobs, which the trainer computes

    @property
    def any_reference(self) -> bool:
        """Whether the loop needs the reference model."""
        return self.reference or self.exact_kl


@dataclass(frozen=True)
class Work:
    """The rows (prompt and response) that a training trains on, reads without gradient and samples, to estimate time.

    A row counts once per model and per visit.
    """

    trained: float = 0
    read: float = 0
    sampled: float = 0


class Method:
    """The declarations of a method, in its own file. Tables, parameters, forms and reports are derived from them."""

    name: ClassVar[str]  # the name in params.yaml and of the file
    title: ClassVar[str]  # the name in reports and forms
    data: ClassVar[Data]
    loop: ClassVar[type[OptimizerConfig] | None] = None  # the configuration of the loop that trains the method
    notes: ClassVar[Mapping[str, str]] = {}  # descriptions of loop options that have another meaning for this method

    @property
    def samples_per_answer(self) -> int:
        """The responses that the policy samples for each answer."""
        return 1

    def work(self, config: Any, prompts: int, feedback: int) -> Work:
        """The work of training with the options `config` of the loop, given training prompts and rows of feedback."""
        return Work()


class Algorithm(Method, Generic[BatchT]):
    """A method that a loop trains."""

    loop: ClassVar[type[OptimizerConfig] | None] = OfflineConfig

    @property
    def needs(self) -> Needs:
        """What the loop must provide."""
        return Needs()

    def work(self, config: Any, prompts: int, feedback: int) -> Work:
        """Training on feedback; the reference reads each row once."""
        rows = self.data.unit_rows
        return Work(trained=rows * config.visits(feedback), read=rows * feedback)

    def prepare(self, batch: BatchT, forward: Callable[[BatchT], Outputs]) -> BatchT:
        """The minibatch with values that depend on several of its rows; `forward` computes no gradient."""
        return batch

    def losses(self, outputs: Outputs, batch: BatchT) -> Tensor:
        """Losses with gradient: (B, R), (B,) or (N,)."""
        raise NotImplementedError

    def weights(self, batch: BatchT) -> Tensor:
        """Weights of the same shape as the losses, computed once from the whole minibatch."""
        raise NotImplementedError

    def without_gradient(self, batch: BatchT) -> Tensor | None:
        """The rows whose losses have no gradient, bool, (B,); the loop does not compute them. None if unknown."""
        return None

    def statistics(self, outputs: Outputs, batch: BatchT) -> dict[str, Tensor]:
        """Named quantities of the same shape as the losses; the loop averages them with `weights` and logs them."""
        return {}


class OnPolicyAlgorithm(Algorithm[Rollout]):
    """A method that trains on sampled data. Each has a field `group_size`: G, responses per prompt."""

    data = Data.ROLLOUTS
    loop = OnlineConfig
    reuse_options: ClassVar[tuple[str, ...]] = ()  # options that have no effect if a rollout makes one step
    group_size: int

    @property
    def rows_per_unit(self) -> int:
        """The number of adjacent responses that one loss needs: 2 for a pair."""
        return 1

    def work(self, config: Any, prompts: int, feedback: int) -> Work:
        """Policy, reference, reward model and critic read each response; policy and critic train on it each epoch."""
        responses, critic = config.steps * config.rollout_size, self.needs.critic
        trained = config.epochs * responses * (1 + critic)
        return Work(trained=trained, read=(3 + critic) * responses, sampled=responses)

    @property
    def extra_rounds(self) -> int:
        """The largest number of extra sampling rounds per rollout that replace the groups which `keeps` drops."""
        return 0

    def keeps(self, scores: Tensor) -> Tensor:
        """Whether to keep each group, scores (B,) -> bool, (B/G,); only asked if there are extra rounds."""
        raise NotImplementedError

    def critic_rate(self, config: OnlineConfig) -> float:
        """The critic's peak learning rate; without an option of the method, the loop's."""
        return config.learning_rate

    def check_rollouts(self, config: OnlineConfig) -> None:
        """Raise ValueError if the method is incorrect or unstable with the rollouts and steps of `config`."""

    def initial_state(self) -> State:
        """The state before the first rollout."""
        return {}

    def at(self, state: State) -> Self:
        """The method with the coefficients in `state`."""
        return self

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """The rollout with rewards, advantages and returns, without gradient."""
        raise NotImplementedError

    def next_state(self, state: State, metrics: dict[str, float], responses: int) -> State:
        """The state for the next rollout, computed from the metrics of this one.

        The metrics `kl` (to the reference, in nats) and `return` (sum of the token rewards) are means per response.
        """
        return state
