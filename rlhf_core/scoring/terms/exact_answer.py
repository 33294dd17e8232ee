"""Whether a response states the right answer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_core.scoring.term import Need, Offer, Term

if TYPE_CHECKING:
    from rlhf_core.scoring.rewards import Reward


@dataclass(frozen=True)
class ExactAnswer(Term):
    """1 if the response states the answer of its prompt, else 0; prepare.answer_pattern finds it."""

    name = "exact_answer"
    meaning = "1 for a correct answer, otherwise 0"

    @property
    def needs(self) -> Need:
        """Prompts with answers."""
        return Need.ANSWERS

    def make(self, offer: Offer) -> "Reward":
        """Compare with the run's pattern."""
        from rlhf_core.scoring.rewards import ExactMatch

        return ExactMatch(offer.answer_pattern)
