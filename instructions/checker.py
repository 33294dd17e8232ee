"""Whether a response meets the constraints of its prompt, strictly and loosely, and whether it is an answer at all.

Strict and loose are defined as in IFEval (Zhou et al. 2023, arXiv:2311.07911, sec. 2.2). The guard is not part of
IFEval: without it, a policy can meet constraints with a text that answers nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from instructions.constraint import Constraint
from instructions.table import make_constraint
from instructions.text import distinct_2, words

LEAST_WORDS = 8
LEAST_DISTINCT_2 = 0.5  # fluent answers of 40 words are above 0.9, two copies of an answer at 0.5
SHORTEST_CONTENT = 3  # letters of a content word
ENDINGS = re.compile(r"(ings?|ied|ies|ed|es|er|ers|e|s|y)$")
EMPTY_WORDS = frozenset(
    words(
        "about above after again against all also and any are because been before being below between both but can "
        "cannot could did does doing down during each few for from further had has have having her here hers him his "
        "how into its itself just more most must not now off once only other our ours out over own same shall she "
        "should some such than that the their theirs them then there these they this those through too under until use "
        "using very was were what when where which while who whom why will with would you your yours"
    )
)


@dataclass(frozen=True)
class Task:
    """What one prompt asks for: its constraints, and what an answer is about.

    about: the request, or its topic and words that go with it; a response with none of their content words is off
    topic. group: the prompts with which its figures are averaged, such as `trained`.
    """

    constraints: tuple[Constraint, ...]
    about: tuple[str, ...]
    group: str = ""

    @classmethod
    def of_row(cls, row: Mapping[str, Any], where: str) -> Self:
        """Read a row with `instruction_id_list`, `kwargs`, `about` and `group`.

        Raises:
            UserError: an id or a value is wrong; the message begins with `where`.
        """
        ids, values = row["instruction_id_list"], row["kwargs"]
        made = [make_constraint(id, given, where) for id, given in zip(ids, values, strict=True)]
        return cls(tuple(made), tuple(row["about"]), row["group"])

    def strict(self, response: str) -> list[bool]:
        """Whether the response meets each constraint; an empty response meets none."""
        return [bool(response.strip()) and constraint.check(response) for constraint in self.constraints]

    def loose(self, response: str) -> list[bool]:
        """Whether one of the variants of the response meets each constraint (see `variants`)."""
        texts = [text for text in variants(response) if text.strip()]
        return [any(constraint.check(text) for text in texts) for constraint in self.constraints]

    def is_answer(self, response: str) -> bool:
        """Whether the response has at least 8 words, is on topic and repeats at most half of its word pairs."""
        return len(words(response)) >= LEAST_WORDS and self._is_on_topic(response) and not is_degenerate(response)

    def fraction(self, response: str) -> float:
        """The share of constraints met strictly, in [0, 1]."""
        met = self.strict(response)
        return sum(met) / len(met)

    def score(self, response: str) -> float:
        """The share of constraints met; 0 for a response that is not an answer."""
        return self.fraction(response) if self.is_answer(response) else 0.0

    def _is_on_topic(self, response: str) -> bool:
        return not self._content or not self._content.isdisjoint(content_words([response]))

    @cached_property
    def _content(self) -> frozenset[str]:
        return content_words(self.about)


def variants(response: str) -> list[str]:
    """The eight variants of a response: without first line, last line, or both; each also without asterisks."""
    lines = response.split("\n")
    parts = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return parts + [part.replace("*", "") for part in parts]


def is_degenerate(response: str) -> bool:
    """Whether fewer than half of the pairs of neighbouring words are different."""
    return distinct_2(response) < LEAST_DISTINCT_2


def content_words(texts: Iterable[str]) -> frozenset[str]:
    """The stems of the words of texts, without words that have no content such as `about` or `the`."""
    found = {word.lower() for text in texts for word in words(text)}
    return frozenset(stem(word) for word in found if len(word) >= SHORTEST_CONTENT and word not in EMPTY_WORDS)


def stem(word: str) -> str:
    """A word without its ending, so that swim and swimming, or bake and baking, are equal."""
    cut = ENDINGS.sub("", word)
    if len(cut) < SHORTEST_CONTENT:
        return word
    return cut[:-1] if len(cut) > SHORTEST_CONTENT and cut[-1] == cut[-2] else cut


def fluency_limit(typical: Sequence[float]) -> float:
    """Return the highest perplexity of a fluent response: three times the 95th percentile of `typical`.

    Perplexities are under the SFT model, and `typical` are those of its own samples. A rare format, such as capital
    letters, raises them less than that.
    """
    ordered = sorted(typical)
    return 3 * ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
