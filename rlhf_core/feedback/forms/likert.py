"""A score for each response, from 1 to the highest score of the scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_core.common.data import Data
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.feedback.form import Form, is_number
from rlhf_core.feedback.judgement import Judgement, Row, response_row
from rlhf_core.feedback.opinion import Opinion


@dataclass(frozen=True)
class Likert(Form):
    """An answer is a number; higher is better. Equal scores are a tie."""

    scale: int = setting(5, "highest score of the panel's or the user's ratings; 1 is the lowest", ge=2)

    name = "likert"
    needs = "one response and a score on the scale"
    file = "ratings"
    kind = "ratings"
    data = Data.RATINGS
    suggested_loss = "likert"
    is_alone = True

    def __post_init__(self) -> None:
        check_bounds(self)

    def question(self, count: int) -> str:
        """The question in words."""
        return f"scores from 1 to {self.scale}"

    def accepts(self, answer: Any, count: int) -> bool:
        """Whether the answer is a number from 1 to the scale, for one response."""
        return count == 1 and is_number(answer) and 1 <= answer <= self.scale

    def simulated(self, opinion: Opinion) -> list[Any]:
        """A score for each response."""
        return list(opinion.scores(self.scale))

    def row(self, judgement: Judgement) -> Row:
        """{"prompt", "response", "score"}."""
        return response_row(judgement) | {"score": judgement.choice}

    def read(self, row: Mapping[str, Any]) -> tuple[list[str], Any]:
        """The response and its score."""
        return [row["response"]], row["score"]

    def worth(self, answer: Any, count: int) -> list[float]:
        """The score."""
        return [answer]
