"""The one table that maps an algorithm's name to its class.

The classes are named as text and imported on demand, so that an edit of one algorithm touches no other.
"""

from importlib import import_module
from typing import Any

from rlhf_core.errors import UserError

POLICY_ALGORITHMS = {
    "ppo": "rlhf_core.algorithms.ppo:PPO",
    "grpo": "rlhf_core.algorithms.grpo:GRPO",
    "dpo": "rlhf_core.algorithms.dpo:DPO",
}


def policy_algorithm(name: str) -> type[Any]:
    """The class of the policy algorithm called `name`.

    Raises:
        UserError: if there is none; the names that exist are listed.
    """
    if name not in POLICY_ALGORITHMS:
        known = ", ".join(POLICY_ALGORITHMS)
        raise UserError(f"policy.algorithms names '{name}', which is not an algorithm here. Choose from: {known}.")
    module, _, attribute = POLICY_ALGORITHMS[name].partition(":")
    return getattr(import_module(module), attribute)
