"""Lists, sections and lines."""

import random
import re
from dataclasses import dataclass
from typing import Self

from instructions.constraint import Constraint, Topic
from instructions.types.length import NUMBERS


@dataclass(frozen=True)
class NumberBulletLists(Constraint):
    """Exactly N bullet points in the notation of Markdown."""

    num_bullets: int

    id = "detectable_format:number_bullet_lists"
    aspects = frozenset({"layout", "asterisks"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """Two to four."""
        return cls(rng.choice([2, 3, 3, 4]))

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return f"Use exactly {self.num_bullets} bullet points (* a point)."

    def check(self, response: str) -> bool:
        """Count the lines that begin with one asterisk or a hyphen."""
        stars = re.findall(r"^\s*\*[^\*].*$", response, re.MULTILINE)
        hyphens = re.findall(r"^\s*-.*$", response, re.MULTILINE)
        return len(stars) + len(hyphens) == self.num_bullets


@dataclass(frozen=True)
class NumberedList(Constraint):
    """A list of exactly N numbered lines."""

    num_items: int

    id = "own:numbered_list"
    aspects = frozenset({"layout"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """Two or three."""
        return cls(rng.choice([2, 3]))

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return f"Answer with a numbered list of {self.num_items} items."

    def check(self, response: str) -> bool:
        """The numbered lines have the numbers 1 to N in order."""
        numbers = re.findall(r"^\s*(\d+)[.)]\s", response, re.MULTILINE)
        return numbers == [str(number) for number in range(1, self.num_items + 1)]


@dataclass(frozen=True)
class MultipleSections(Constraint):
    """At least N sections, each after a numbered heading such as SECTION 1."""

    section_spliter: str
    num_sections: int

    id = "detectable_format:multiple_sections"
    aspects = frozenset({"layout", "start", "case"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """Two sections."""
        return cls(rng.choice(["SECTION", "PART"]), 2)

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return f"Write {NUMBERS[self.num_sections]} sections, headed {self.section_spliter} 1 and so on."

    def check(self, response: str) -> bool:
        """Count the headings."""
        pattern = rf"\s?{re.escape(self.section_spliter)}\s?\d+\s?"
        return len(re.split(pattern, response)) - 1 >= self.num_sections


@dataclass(frozen=True)
class OneLine(Constraint):
    """No line break."""

    id = "own:one_line"
    aspects = frozenset({"layout"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "Write a single line without line breaks."

    def check(self, response: str) -> bool:
        """There is no line break inside."""
        return "\n" not in response.strip()
