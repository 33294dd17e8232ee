"""Two responses side by side: the better one, or a tie."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_core.common.data import Data
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import PREFERENCES, Judgement, Row, preference_row
from rlhf_core.feedback.opinion import Opinion

WORTH = {"A": (1.0, 0.0), "B": (0.0, 1.0), "tie": (0.0, 0.0)}


@dataclass(frozen=True)
class SideBySide(Form):
    """An answer is "A" (the first is better), "B" or "tie"."""

    name = "side_by_side"
    needs = "two responses and a choice A, B or tie"
    file = PREFERENCES
    kind = "preference"
    data = Data.PAIRS
    suggested_loss = "bradley_terry"

    def question(self, count: int) -> str:
        """The question in words."""
        return "two responses side by side"

    def shown(self, count: int) -> int:
        """Two responses."""
        return 2

    def accepts(self, answer: Any, count: int) -> bool:
        """Whether the answer is A, B or tie, for two responses."""
        return count == 2 and isinstance(answer, str) and answer in WORTH

    def simulated(self, opinion: Opinion) -> list[Any]:
        """One verdict."""
        return [opinion.verdict()]

    def row(self, judgement: Judgement) -> Row:
        """The verdict as a preference row."""
        (verdict,) = self.verdicts([judgement])
        return preference_row(verdict)

    def stored(self, given: Mapping[str, Any]) -> Row:
        """{"prompt", "chosen", "rejected"}, with `label` and `margin` if the user's data has them."""
        row = {key: given[key] for key in ("prompt", "chosen", "rejected")}
        return row | {key: given[key] for key in ("label", "margin") if given.get(key) is not None}

    def worth(self, answer: Any, count: int) -> tuple[float, float]:
        """1 for the better response and 0 for the other; 0 for both in a tie."""
        return WORTH[answer]
