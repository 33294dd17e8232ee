"""Demonstrations: prompts with a reference response, and nothing that judges others."""

from tasks.problems.problem import Problem


class Demonstrations(Problem):
    """Supervised fine-tuning and rewards that need no feedback."""

    kinds = ("demonstration",)
