"""Capital letters and small letters."""

import random
from dataclasses import dataclass
from typing import Self

from instructions.constraint import Constraint, Topic, holds, require_relation


@dataclass(frozen=True)
class EnglishCapital(Constraint):
    """No small letter. IFEval also requires English text; the guard does that here."""

    id = "change_case:english_capital"
    aspects = frozenset({"case"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "Write in capital letters only."

    def check(self, response: str) -> bool:
        """All letters are capital, and there is one."""
        return response.isupper()


@dataclass(frozen=True)
class EnglishLowercase(Constraint):
    """No capital letter. IFEval also requires English text; the guard does that here."""

    id = "change_case:english_lowercase"
    aspects = frozenset({"case"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "Write in lowercase letters only."

    def check(self, response: str) -> bool:
        """All letters are small, and there is one."""
        return response.islower()


@dataclass(frozen=True)
class CapitalWordFrequency(Constraint):
    """Fewer than N words in capital letters, or at least N. A word ends at a space."""

    capital_frequency: int
    capital_relation: str

    id = "change_case:capital_word_frequency"
    aspects = frozenset({"case"})

    def __post_init__(self) -> None:
        require_relation(self.capital_relation)

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """At least two or three words."""
        return cls(rng.choice([2, 3]), "at least")

    def phrase(self) -> str:
        """The sentence in the prompt."""
        how = "fewer than" if self.capital_relation == "less than" else "at least"
        return f"Write {how} {self.capital_frequency} words in CAPITAL letters."

    def check(self, response: str) -> bool:
        """Compare the number of words in capital letters, of which `I` is one, as in IFEval."""
        count = sum(word.isupper() for word in response.split())
        return holds(self.capital_relation, count, self.capital_frequency)
