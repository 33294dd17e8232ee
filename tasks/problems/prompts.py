"""Prompts alone: no demonstrations to imitate, and no judge."""

from tasks.problems.problem import Problem


class Prompts(Problem):
    """A task for rewards that need neither feedback nor answers."""

    kinds = ("prompts",)
    has_text = False
