"""A ranking of K responses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_core.common.data import Data
from rlhf_core.feedback.form import Form, is_number
from rlhf_core.feedback.judgement import Judgement, Row
from rlhf_core.feedback.opinion import Opinion


@dataclass(frozen=True)
class Ranking(Form):
    """An answer is a rank for each response; 1 is the best, and equal ranks are ties."""

    name = "ranking"
    needs = "two or more responses and a rank for each"
    file = "rankings"
    kind = "rankings"
    data = Data.RANKINGS
    suggested_loss = "plackett_luce"

    def question(self, count: int) -> str:
        """The question in words."""
        return f"rankings of {count}"

    def accepts(self, answer: Any, count: int) -> bool:
        """Whether the answer is a list of numbers, one for each of at least two responses."""
        return count >= 2 and isinstance(answer, list) and len(answer) == count and all(map(is_number, answer))

    def simulated(self, opinion: Opinion) -> list[Any]:
        """One ranking."""
        return [opinion.ranks()]

    def row(self, judgement: Judgement) -> Row:
        """{"prompt", "responses", "ranks"}."""
        return ranking_row(judgement, list(judgement.choice))

    def read(self, row: Mapping[str, Any]) -> tuple[list[str], Any]:
        """The responses and their ranks."""
        return list(row["responses"]), row["ranks"]

    def worth(self, answer: Any, count: int) -> list[float]:
        """The ranks, negated."""
        return [-rank for rank in answer]


def ranking_row(judgement: Judgement, ranks: list[float]) -> Row:
    """A row with the responses of a record and their ranks, and `responses_tokens` if all were sampled.

    Ranks are renumbered 1, 2, 3 ... without gaps.
    """
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)), 1)}
    row: Row = {"prompt": judgement.prompt, "responses": judgement.responses}
    row |= {} if judgement.tokens is None else {"responses_tokens": judgement.tokens}
    return row | {"ranks": [places[rank] for rank in ranks]}
