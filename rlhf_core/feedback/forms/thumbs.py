"""Thumbs up or down for each response."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_core.common.data import Data
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import Judgement, Row, response_row
from rlhf_core.feedback.opinion import Opinion


@dataclass(frozen=True)
class Thumbs(Form):
    """An answer is "good" or "bad". Equal thumbs imply nothing about the order of two responses."""

    name = "thumbs"
    needs = "one response and a choice good or bad"
    file = "unpaired"
    kind = "unpaired"
    data = Data.UNPAIRED
    suggested_loss = "bradley_terry"  # on the preferences that thumbs imply
    has_ties = False
    is_alone = True

    def question(self, count: int) -> str:
        """The question in words."""
        return "good or bad"

    def accepts(self, answer: Any, count: int) -> bool:
        """Whether the answer is good or bad, for one response."""
        return count == 1 and isinstance(answer, str) and answer in ("good", "bad")

    def simulated(self, opinion: Opinion) -> list[Any]:
        """A thumb for each response."""
        return ["good" if is_good else "bad" for is_good in opinion.approvals()]

    def row(self, judgement: Judgement) -> Row:
        """{"prompt", "response", "label"}; the label is true for good."""
        return response_row(judgement) | {"label": judgement.choice == "good"}

    def read(self, row: Mapping[str, Any]) -> tuple[list[str], Any]:
        """The response and its thumb."""
        return [row["response"]], "good" if row["label"] else "bad"

    def worth(self, answer: Any, count: int) -> list[float]:
        """1 for good, 0 for bad."""
        return [float(answer == "good")]
