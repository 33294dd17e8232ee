"""The interface of reward terms. Each term of policy.rewards declares its properties in its own file.

Parameters, checks, the pages and the reward itself are made from these declarations. They are read without torch, which
a term imports when it makes or computes a reward.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import nn


class Need(Enum):
    """What the data must have for a term; the value is its name in messages."""

    FEEDBACK = "feedback"
    ANSWERS = "answers"
    CONSTRAINTS = "constraints"


@dataclass(frozen=True)
class Offer:
    """What a run offers to the terms that it makes. Models are loaded only if a term asks for one.

    rows: responses of one forward pass. prepare: puts a model on the run's device. reward_model: makes the reward of a
    model of the run, by its name in reward_models (None: the one on all feedback) and its clamp. checkpoint: finds the
    folder of a model by path or hub id. longest: the length limit of responses, in tokens. answer_pattern:
    prepare.answer_pattern. constraints: given whether a response must also be an answer, the share of a prompt's
    constraints that a response meets.
    """

    rows: int
    prepare: Callable[["nn.Module"], "nn.Module"]
    reward_model: Callable[[str | None, float | None], Any]
    checkpoint: Callable[[str | None, str | None], Path]
    longest: int
    answer_pattern: str
    constraints: Callable[[bool], Callable[[Sequence[Mapping[str, str]], str], float]]


@dataclass(frozen=True)
class Term:
    """A term of policy.rewards. Its fields are its options, each made with `setting`; they are keys of an entry.

    A constructor raises ValueError for options that do not go together.
    """

    name: ClassVar[str]  # the name in params.yaml and of the file
    meaning: ClassVar[str]  # what a score is, for the pages

    @property
    def needs(self) -> Need | None:
        """What the data must have; None if any data will do."""
        return None

    @property
    def label(self) -> str:
        """The name under which the term is logged."""
        return self.name

    def unfit(self, longest: int) -> str:
        """What is wrong with the options if responses have at most `longest` tokens, and the fix; '' if nothing."""
        return ""

    def make(self, offer: Offer) -> Any:
        """Return the rlhf_core.scoring.rewards.Reward that scores responses; by default the term itself.

        Raises:
            UserError: a model or a function that the options name cannot be loaded.
        """
        return self


def require(term: str, option: str, value: Any) -> None:
    """Raise ValueError if the option that a term needs is not set."""
    if value is None:
        raise ValueError(f"reward {term} needs {option}; add it")
