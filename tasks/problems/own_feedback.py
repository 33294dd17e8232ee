"""Feedback of the user's own: preferences, ratings, rankings, or responses labelled good or bad."""

from rlhf_core.feedback.table import stored_forms
from tasks.problems.problem import Problem


class OwnFeedback(Problem):
    """Its rows are passed on as they are; the judge is a second reward model, fitted to a split of its own."""

    kinds = tuple(form.kind for form in stored_forms())
    has_feedback = True
