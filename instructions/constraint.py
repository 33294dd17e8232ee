"""The interface of constraints. Each type declares its properties in its own class."""

import random
from dataclasses import dataclass
from typing import ClassVar, Self

RELATIONS = ("less than", "at least")  # as IFEval names them


@dataclass(frozen=True)
class Topic:
    """What a request is about: its name in the request, and words that an answer about it may use."""

    name: str
    related: tuple[str, ...]


@dataclass(frozen=True)
class Constraint:
    """One constraint with its values. The fields are IFEval's keyword arguments for the id.

    aspects: what the constraint fixes in a response. Two constraints that share an aspect are never combined.
    """

    id: ClassVar[str]
    aspects: ClassVar[frozenset[str]]

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """Draw the values for a request about a topic."""
        return cls()

    def phrase(self) -> str:
        """The sentence of the prompt that states the constraint."""
        raise NotImplementedError

    def allows(self, text: str) -> bool:
        """Whether a text that the topic or another constraint asks for can be part of the response."""
        return True

    def check(self, response: str) -> bool:
        """Whether a response, not empty, meets the constraint."""
        raise NotImplementedError


def holds(relation: str, count: int, number: int) -> bool:
    """Whether a count is less than, or at least, a number."""
    return count < number if relation == RELATIONS[0] else count >= number


def require_relation(relation: str) -> None:
    """Raise ValueError unless the relation is one of IFEval's."""
    if relation not in RELATIONS:
        raise ValueError(f"the relation is '{relation}'; it must be one of {', '.join(RELATIONS)}")
