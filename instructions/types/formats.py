"""Formats that a pattern finds: titles, highlights, placeholders, JSON, two responses."""

import json
import random
import re
from dataclasses import dataclass
from typing import Self

from instructions.constraint import Constraint, Topic

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
FENCES = ("```json", "```Json", "```JSON", "```")


@dataclass(frozen=True)
class Title(Constraint):
    """A title in double angular brackets."""

    id = "detectable_format:title"
    aspects = frozenset({"start", "layout"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "Add a title such as <<My title>>."

    def check(self, response: str) -> bool:
        """A pair of brackets in one line encloses more than spaces."""
        found = re.findall(r"<<[^\n]+>>", response)
        return any(title.lstrip("<").rstrip(">").strip() for title in found)


@dataclass(frozen=True)
class NumberHighlightedSections(Constraint):
    """At least N parts in *asterisks* or **double asterisks**."""

    num_highlights: int

    id = "detectable_format:number_highlighted_sections"
    aspects = frozenset({"asterisks"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """One or two."""
        return cls(rng.choice([1, 2]))

    def phrase(self) -> str:
        """The sentence in the prompt."""
        many = "one word" if self.num_highlights == 1 else f"at least {self.num_highlights} words"
        return f"Put {many} in *asterisks*."

    def check(self, response: str) -> bool:
        """Count the parts that are not empty."""
        single = [part.strip("*").strip() for part in re.findall(r"\*[^\n\*]*\*", response)]
        double = [part[2:-2].strip() for part in re.findall(r"\*\*[^\n\*]*\*\*", response)]
        return sum(map(bool, single + double)) >= self.num_highlights


@dataclass(frozen=True)
class NumberPlaceholders(Constraint):
    """At least N placeholders in square brackets."""

    num_placeholders: int

    id = "detectable_content:number_placeholders"
    aspects = frozenset({"brackets"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """One or two."""
        return cls(rng.choice([1, 2]))

    def phrase(self) -> str:
        """The sentence in the prompt."""
        many = "a placeholder" if self.num_placeholders == 1 else f"at least {self.num_placeholders} placeholders"
        return f"Use {many} such as [name]."

    def check(self, response: str) -> bool:
        """Count the brackets."""
        return len(re.findall(r"\[.*?\]", response)) >= self.num_placeholders


@dataclass(frozen=True)
class JsonFormat(Constraint):
    """The whole response is JSON, also in a fence of Markdown."""

    id = "detectable_format:json_format"
    aspects = frozenset({"start", "end", "layout", "length", "case", "commas", "brackets", "asterisks", "marks"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "Write the whole answer as JSON."

    def check(self, response: str) -> bool:
        """Parse it."""
        text = response.strip()
        for fence in FENCES:
            text = text.removeprefix(fence)
        try:
            json.loads(text.removesuffix("```").strip())
        except (ValueError, RecursionError):
            return False
        return True


@dataclass(frozen=True)
class TwoResponses(Constraint):
    """Two different responses, separated by six asterisks."""

    id = "combination:two_responses"
    aspects = frozenset({"start", "end", "layout", "length", "asterisks"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "Give two different answers, separated by ******."

    def check(self, response: str) -> bool:
        """Compare the parts; the first and the last may be empty and then do not count."""
        parts = [part.strip() for part in response.split("******")]
        if not all(parts[1:-1]):
            return False
        given = [part for part in parts if part]
        return len(given) == 2 and given[0] != given[1]


@dataclass(frozen=True)
class ConstrainedResponse(Constraint):
    """The response has one of three fixed answers."""

    id = "detectable_format:constrained_response"
    aspects = frozenset({"case", "end"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "Is it hard? End with 'My answer is yes.' or 'My answer is no.'"

    def check(self, response: str) -> bool:
        """Search the answers."""
        return any(answer in response for answer in ANSWERS)
