"""Demonstrations: prompts with a reference response, and no judge."""

from tasks.problems.problem import Problem


class Demonstrations(Problem):
    """A task for supervised fine-tuning, and for rewards that need no feedback."""

    kinds = ("demonstration",)
