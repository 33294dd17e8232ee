"""The best of N responses."""

from dataclasses import dataclass
from typing import Any

from rlhf_core.common.data import Data
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.forms.ranking import ranking_row
from rlhf_core.feedback.judgement import Judgement, Row
from rlhf_core.feedback.opinion import Opinion


@dataclass(frozen=True)
class BestOfN(Form):
    """An answer is the index of the best response. It implies nothing about the order of the others."""

    name = "best_of_n"
    needs = "two or more responses and the index of the best"
    file = "rankings"  # rank 1 for the best response, 2 for the others
    data = Data.RANKINGS
    suggested_loss = "best_of_n"
    has_ties = False

    def question(self, count: int) -> str:
        """The question in words."""
        return f"the best of {count}"

    def accepts(self, answer: Any, count: int) -> bool:
        """Whether the answer is the index of one of at least two responses."""
        return count >= 2 and type(answer) is int and 0 <= answer < count

    def simulated(self, opinion: Opinion) -> list[Any]:
        """One index."""
        return [opinion.best()]

    def row(self, judgement: Judgement) -> Row:
        """{"prompt", "responses", "ranks"}."""
        ranks: list[float] = [1 if index == judgement.choice else 2 for index in range(len(judgement.responses))]
        return ranking_row(judgement, ranks)

    def worth(self, answer: Any, count: int) -> list[float]:
        """1 for the best response, 0 for the others."""
        return [float(index == answer) for index in range(count)]
