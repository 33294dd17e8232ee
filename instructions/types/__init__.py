"""The types of constraints: each class has an id, draws its values, states itself in a prompt, and checks a response.

The ids with a family such as `keywords:` are those of IFEval (Zhou et al. 2023, arXiv:2311.07911), with its keyword
arguments and its checks. The ids with `own:` are this project's.
"""
