"""Prompts alone: nothing to imitate, and nothing that judges."""

from tasks.problems.problem import Problem


class Prompts(Problem):
    """Only rewards that need neither feedback nor answers."""

    kinds = ("prompts",)
    has_text = False
