"""Punctuation and digits."""

import re
from dataclasses import dataclass

from instructions.constraint import Constraint


@dataclass(frozen=True)
class NoComma(Constraint):
    """No comma."""

    id = "punctuation:no_comma"
    aspects = frozenset({"commas"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "Do not use commas."

    def allows(self, text: str) -> bool:
        """Only a text that meets this constraint."""
        return self.check(text)

    def check(self, response: str) -> bool:
        """Search a comma."""
        return "," not in response


@dataclass(frozen=True)
class Exclamation(Constraint):
    """An exclamation mark."""

    id = "own:exclamation"
    aspects = frozenset({"marks"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "Use at least one exclamation mark."

    def check(self, response: str) -> bool:
        """Search an exclamation mark."""
        return "!" in response


@dataclass(frozen=True)
class Parentheses(Constraint):
    """A remark in parentheses."""

    id = "own:parentheses"
    aspects = frozenset({"brackets"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "Add a remark in parentheses."

    def check(self, response: str) -> bool:
        """Search a pair of parentheses with a word in it."""
        return re.search(r"\([^()]*\w[^()]*\)", response) is not None


@dataclass(frozen=True)
class Digit(Constraint):
    """A number in digits."""

    id = "own:digit"
    aspects = frozenset({"digits"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "Mention a number, written in digits."

    def check(self, response: str) -> bool:
        """Search a digit that does not number a line."""
        return re.search(r"\d", re.sub(r"^\s*\d+[.)]\s", "", response, flags=re.MULTILINE)) is not None
