"""Words and letters that must occur, or must not."""

import random
import re
from dataclasses import dataclass
from typing import Self

from instructions.constraint import Constraint, Topic, holds, require_relation

COMMON = ("good", "great", "very", "important", "always", "make", "time", "help", "enjoy", "best")
LETTERS = "bcfgkmpw"  # not so frequent that every answer has many of them


def _occurrences(word: str, text: str) -> int:
    """How often a word occurs, also inside other words and in any case; IFEval searches the same way."""
    return len(re.findall(re.escape(word), text, re.IGNORECASE))


@dataclass(frozen=True)
class Existence(Constraint):
    """Every keyword occurs."""

    keywords: tuple[str, ...]

    id = "keywords:existence"
    aspects = frozenset({"keywords"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """One or two words that go with the topic."""
        return cls(tuple(rng.sample(topic.related, rng.choice([1, 2, 2]))))

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return f"Include the word{'s' if len(self.keywords) > 1 else ''} {_quoted(self.keywords, 'and')}."

    def check(self, response: str) -> bool:
        """Search every keyword."""
        return all(_occurrences(word, response) for word in self.keywords)


@dataclass(frozen=True)
class Frequency(Constraint):
    """A keyword occurs fewer than N times, or at least N times."""

    relation: str
    keyword: str
    frequency: int

    id = "keywords:frequency"
    aspects = frozenset({"keywords"})

    def __post_init__(self) -> None:
        require_relation(self.relation)

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """At least two or three times."""
        return cls("at least", rng.choice(topic.related), rng.choice([2, 2, 3]))

    def phrase(self) -> str:
        """The sentence in the prompt."""
        how = "fewer than" if self.relation == "less than" else "at least"
        return f"Use the word '{self.keyword}' {how} {self.frequency} times."

    def check(self, response: str) -> bool:
        """Compare the number of occurrences."""
        return holds(self.relation, _occurrences(self.keyword, response), self.frequency)


@dataclass(frozen=True)
class ForbiddenWords(Constraint):
    """No forbidden word occurs."""

    forbidden_words: tuple[str, ...]

    id = "keywords:forbidden_words"
    aspects = frozenset({"forbidden"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """Two words that an answer might well use."""
        return cls((rng.choice(topic.related), rng.choice(COMMON)))

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return (
            f"Do not use the word{'s' if len(self.forbidden_words) > 1 else ''} {_quoted(self.forbidden_words, 'or')}."
        )

    def allows(self, text: str) -> bool:
        """Only a text that meets this constraint."""
        return self.check(text)

    def check(self, response: str) -> bool:
        """Search every word as a whole word."""
        return not any(re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) for word in self.forbidden_words)


@dataclass(frozen=True)
class LetterFrequency(Constraint):
    """A letter occurs fewer than N times, or at least N times."""

    letter: str
    let_frequency: int
    let_relation: str

    id = "keywords:letter_frequency"
    aspects = frozenset({"letters"})

    def __post_init__(self) -> None:
        require_relation(self.let_relation)
        if len(self.letter) != 1:
            raise ValueError(f"letter is '{self.letter}'; it must be one letter")

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """At least three to six times."""
        return cls(rng.choice(LETTERS), rng.randint(3, 6), "at least")

    def phrase(self) -> str:
        """The sentence in the prompt."""
        how = "fewer than" if self.let_relation == "less than" else "at least"
        return f"Use the letter {self.letter} {how} {self.let_frequency} times."

    def check(self, response: str) -> bool:
        """Compare the number of occurrences, in any case."""
        return holds(self.let_relation, response.lower().count(self.letter.lower()), self.let_frequency)


def _quoted(given: tuple[str, ...], between: str) -> str:
    *first, last = (f"'{word}'" for word in given)
    return f"{', '.join(first)} {between} {last}" if first else last
