"""Numbers of words, sentences and paragraphs."""

import random
import re
from dataclasses import dataclass
from typing import Self

from instructions.constraint import Constraint, Topic, holds, require_relation
from instructions.text import sentences, words

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
PLACES = ("", "first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class NumberWords(Constraint):
    """Fewer than N words, or at least N."""

    relation: str
    num_words: int

    id = "length_constraints:number_words"
    aspects = frozenset({"length"})

    def __post_init__(self) -> None:
        require_relation(self.relation)

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """Mostly an upper limit, since long responses are cut off."""
        if rng.random() < 0.75:
            return cls("less than", rng.choice([15, 20, 25, 30]))
        return cls("at least", rng.choice([20, 25, 30]))

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return f"Use {'fewer than' if self.relation == 'less than' else 'at least'} {self.num_words} words."

    def check(self, response: str) -> bool:
        """Compare the number of words."""
        return holds(self.relation, len(words(response)), self.num_words)


@dataclass(frozen=True)
class NumberSentences(Constraint):
    """Fewer than N sentences, or at least N."""

    relation: str
    num_sentences: int

    id = "length_constraints:number_sentences"
    aspects = frozenset({"length", "layout"})

    def __post_init__(self) -> None:
        require_relation(self.relation)

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """At most one or two sentences, or at least three."""
        return cls("less than", rng.choice([2, 3])) if rng.random() < 0.75 else cls("at least", 3)

    def phrase(self) -> str:
        """The sentence in the prompt."""
        if self.relation == "at least":
            return f"Write at least {self.num_sentences} sentences."
        return "Write one sentence." if self.num_sentences == 2 else f"Use fewer than {self.num_sentences} sentences."

    def check(self, response: str) -> bool:
        """Compare the number of sentences."""
        return holds(self.relation, len(sentences(response)), self.num_sentences)


@dataclass(frozen=True)
class NumberParagraphs(Constraint):
    """Exactly N paragraphs, separated by ***."""

    num_paragraphs: int

    id = "length_constraints:number_paragraphs"
    aspects = frozenset({"layout", "asterisks"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """Two or three."""
        return cls(rng.choice([2, 3]))

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return f"Write {NUMBERS[self.num_paragraphs]} paragraphs separated by ***."

    def check(self, response: str) -> bool:
        """Count the parts; the first and the last may be empty and then do not count."""
        parts = re.split(r"\s?\*\*\*\s?", response)
        if any(not part.strip() for part in parts[1:-1]):
            return False
        return sum(bool(part.strip()) for part in parts) == self.num_paragraphs


@dataclass(frozen=True)
class NthParagraphFirstWord(Constraint):
    """Exactly N paragraphs, separated by an empty line, one of which begins with a given word."""

    num_paragraphs: int
    nth_paragraph: int
    first_word: str

    id = "length_constraints:nth_paragraph_first_word"
    aspects = frozenset({"layout", "start"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """Two paragraphs."""
        return cls(2, rng.choice([1, 2]), rng.choice(["first", "also", "then", "however"]))

    def phrase(self) -> str:
        """The sentence in the prompt."""
        where = PLACES[self.nth_paragraph]
        return f"Write {NUMBERS[self.num_paragraphs]} paragraphs; start the {where} with '{self.first_word}'."

    def check(self, response: str) -> bool:
        """Count the paragraphs, and compare the first word without quotes and punctuation."""
        paragraphs = re.split(r"\n\n", response)
        if sum(bool(part.strip()) for part in paragraphs) != self.num_paragraphs:
            return False
        if self.nth_paragraph > len(paragraphs) or not paragraphs[self.nth_paragraph - 1].strip():
            return False
        word = paragraphs[self.nth_paragraph - 1].split()[0].lstrip("'").lstrip('"').lower()
        return re.split(r"""[.,?!'"]""", word)[0] == self.first_word.lower()
