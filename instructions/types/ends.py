"""How a response begins and ends."""

import random
import re
from dataclasses import dataclass
from typing import Self

from instructions.constraint import Constraint, Topic

ENDINGS = (
    "That is all.", "I hope this helps.", "Good luck!", "Give it a try.", "Have a nice day.", "What do you think?",
)  # fmt: skip
OPENINGS = ("In short,", "To be honest,", "First of all,", "Good question!", "Of course!", "My advice:")


@dataclass(frozen=True)
class EndChecker(Constraint):
    """The response ends with a phrase."""

    end_phrase: str

    id = "startend:end_checker"
    aspects = frozenset({"end"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """A common closing phrase."""
        return cls(rng.choice(ENDINGS))

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return f"End with: {self.end_phrase}"

    def check(self, response: str) -> bool:
        """Compare the end, in any case and without quotation marks around the response."""
        return response.strip().strip('"').lower().endswith(self.end_phrase.strip().lower())


@dataclass(frozen=True)
class Quotation(Constraint):
    """The response is within double quotation marks."""

    id = "startend:quotation"
    aspects = frozenset({"start", "end"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "Put your whole answer in double quotation marks."

    def check(self, response: str) -> bool:
        """The first and the last character are different quotation marks."""
        text = response.strip()
        return len(text) > 1 and text[0] == text[-1] == '"'


@dataclass(frozen=True)
class Postscript(Constraint):
    """The response has a postscript."""

    postscript_marker: str

    id = "detectable_content:postscript"
    aspects = frozenset({"end", "layout"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """P.S."""
        return cls("P.S.")

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return f"Add a postscript that starts with {self.postscript_marker}"

    def check(self, response: str) -> bool:
        """Search the marker, in any case; IFEval allows spaces in P.S. and P.P.S."""
        patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
        marker = patterns.get(self.postscript_marker, re.escape(self.postscript_marker.lower()))
        return re.search(marker, response.lower()) is not None


@dataclass(frozen=True)
class StartPhrase(Constraint):
    """The response begins with a phrase."""

    start_phrase: str

    id = "own:start_phrase"
    aspects = frozenset({"start"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """A common opening."""
        return cls(rng.choice(OPENINGS))

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return f"Begin with '{self.start_phrase}'"

    def check(self, response: str) -> bool:
        """Compare the beginning, in any case and without a quotation mark before it."""
        return response.strip().strip("\"'").lower().startswith(self.start_phrase.lower())


@dataclass(frozen=True)
class QuestionEnd(Constraint):
    """The response ends with a question."""

    id = "own:question_end"
    aspects = frozenset({"end"})

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return "End with a question."

    def check(self, response: str) -> bool:
        """The last character is a question mark, also within quotation marks."""
        return response.strip().strip('"').endswith("?")


@dataclass(frozen=True)
class RepeatPrompt(Constraint):
    """The response first repeats the request."""

    prompt_to_repeat: str

    id = "combination:repeat_prompt"
    aspects = frozenset({"start", "case", "commas", "length", "layout", "forbidden"})

    @classmethod
    def draw(cls, rng: random.Random, topic: Topic) -> Self:
        """A question about the topic, which the prompt then states."""
        return cls(f"What is special about {topic.name}?")

    def phrase(self) -> str:
        """The sentence in the prompt."""
        return f"First repeat this question, then answer it: {self.prompt_to_repeat}"

    def check(self, response: str) -> bool:
        """Compare the beginning, in any case."""
        return response.strip().lower().startswith(self.prompt_to_repeat.strip().lower())
