"""Questions with one right answer: rewards and judge verify it, so there is no reward model."""

from typing import TYPE_CHECKING

from tasks.params.sections import PrepareParams
from tasks.problems.problem import Problem, text_judge

if TYPE_CHECKING:
    from rlhf_core.scoring.judges import ScoreJudge


class Questions(Problem):
    """Prompts with an answer that a response either states or does not."""

    kinds = ("question_answer",)
    has_answers = True
    has_judge = True
    no_feedback = "rewards are verified answers"
    instead = "Reward exact_answer instead, with grpo or rloo."

    def judge(self, prepare: PrepareParams) -> "ScoreJudge":
        """1 for a right answer, 0 for a wrong one."""
        from rlhf_core.scoring.rewards import ExactMatch

        exact = ExactMatch(prepare.answer_pattern)
        return text_judge("exact match", lambda prompt, text: float(exact.correct(text, prompt.answer)))
