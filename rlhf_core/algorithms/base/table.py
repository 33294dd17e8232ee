"""The tables of methods, built from their files: each class declares its own name.

A policy method is the class with name = "NAME" in rlhf_core/algorithms/NAME.py. A reward-model loss is the class with
name = "NAME" in rlhf_core/algorithms/reward/NAME.py.
"""

from functools import cache
from typing import Any

from rlhf_core.algorithms.base.algorithm import Method
from rlhf_core.common.classes import classes_in
from rlhf_core.common.errors import UserError


@cache
def policy_algorithms() -> dict[str, type[Any]]:
    """Every policy method by its name."""
    return _methods("rlhf_core.algorithms")


@cache
def reward_losses() -> dict[str, type[Any]]:
    """Every reward-model loss by its name."""
    return _methods("rlhf_core.algorithms.reward")


def policy_algorithm(name: str) -> type[Any]:
    """The class of the policy method `name`.

    Raises:
        UserError: the method does not exist; lists the names.
    """
    return _look_up(policy_algorithms(), name, "policy.online or policy.offline")


def reward_loss(name: str) -> type[Any]:
    """The class of the reward-model loss `name`.

    Raises:
        UserError: the loss does not exist; lists the names.
    """
    return _look_up(reward_losses(), name, "reward.loss")


def _methods(package: str) -> dict[str, type[Any]]:
    """The method in each file of a package, by its name.

    Raises:
        ValueError: a file does not contain exactly one method with the name of the file; states the file.
    """
    found: dict[str, type[Any]] = {}
    for file, methods in classes_in(package, Method, "name").items():
        names = [method.name for method in methods]
        if names != [file]:
            raise ValueError(
                f"{package.replace('.', '/')}/{file}.py must contain one method with name = {file!r}; "
                f"it declares {', '.join(map(repr, names)) or 'none'}. Rename the method or the file."
            )
        found[file] = methods[0]
    return found


def _look_up(table: dict[str, type[Any]], name: str, key: str) -> type[Any]:
    if name not in table:
        raise UserError(f"{key} contains '{name}', which does not exist. Choose from: {', '.join(table)}.")
    return table[name]
