"""The user's own feedback: preferences, ratings, rankings, or responses labelled good or bad."""

from rlhf_core.feedback.table import stored_forms
from tasks.problems.problem import Problem


class OwnFeedback(Problem):
    """The rows are passed on unchanged. The judge is a second reward model, trained on a separate split."""

    kinds = tuple(form.kind for form in stored_forms())
    has_feedback = True
