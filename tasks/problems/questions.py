"""Questions with one right answer. Rewards and judge compare with it, so there is no reward model."""

from typing import TYPE_CHECKING

from tasks.params.sections import PrepareParams
from tasks.problems.problem import Problem, text_judge

if TYPE_CHECKING:
    from rlhf_core.scoring.judges import Judge


class Questions(Problem):
    """Prompts with an answer, which a response states or does not."""

    kinds = ("question_answer",)
    has_answers = True
    has_judge = True
    no_feedback = "rewards come from verified answers"
    instead = "Use the reward exact_answer instead"

    def judge(self, prepare: PrepareParams) -> "Judge":
        """A judge that scores a right answer 1 and a wrong one 0."""
        from rlhf_core.scoring.rewards import ExactMatch

        exact = ExactMatch(prepare.answer_pattern)
        return text_judge("exact match", lambda prompt, text: float(exact.correct(text, prompt.answer)))
