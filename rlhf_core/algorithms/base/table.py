"""The two tables that map a name to its class: policy algorithms and reward-model losses.

The classes are named as text and imported on demand, so that an edit of one algorithm touches no other.
"""

from importlib import import_module
from typing import Any

from rlhf_core.common.errors import UserError

POLICY_ALGORITHMS = {
    "reinforce": "rlhf_core.algorithms.reinforce:Reinforce",
    "rloo": "rlhf_core.algorithms.rloo:RLOO",
    "trpo": "rlhf_core.algorithms.trpo:TRPO",
    "ppo": "rlhf_core.algorithms.ppo:PPO",
    "ppo_penalty": "rlhf_core.algorithms.ppo_penalty:PPOPenalty",
    "grpo": "rlhf_core.algorithms.grpo:GRPO",
    "dpo": "rlhf_core.algorithms.dpo:DPO",
    "cdpo": "rlhf_core.algorithms.cdpo:CDPO",
    "ipo": "rlhf_core.algorithms.ipo:IPO",
    "kto": "rlhf_core.algorithms.kto:KTO",
    "online_dpo": "rlhf_core.algorithms.online_dpo:OnlineDPO",
    "best_of_n": "rlhf_core.algorithms.best_of_n:BestOfN",
    "best_of_n_distillation": "rlhf_core.algorithms.best_of_n_distillation:BestOfNDistillation",
}

REWARD_LOSSES = {
    "bradley_terry": "rlhf_core.algorithms.reward.bradley_terry:BradleyTerry",
    "thurstone": "rlhf_core.algorithms.reward.thurstone:Thurstone",
    "likert": "rlhf_core.algorithms.reward.likert:Likert",
    "ranking_pairs": "rlhf_core.algorithms.reward.ranking:RankingPairs",
    "plackett_luce": "rlhf_core.algorithms.reward.ranking:PlackettLuce",
    "best_of_n": "rlhf_core.algorithms.reward.ranking:BestOfNChoice",
}


def policy_algorithm(name: str) -> type[Any]:
    """The class of the policy algorithm called `name`.

    Raises:
        UserError: if there is none; the names that exist are listed.
    """
    return _look_up(POLICY_ALGORITHMS, name, "policy.algorithms")


def reward_loss(name: str) -> type[Any]:
    """The class of the reward-model loss called `name`.

    Raises:
        UserError: if there is none; the names that exist are listed.
    """
    return _look_up(REWARD_LOSSES, name, "reward.loss")


def _look_up(table: dict[str, str], name: str, key: str) -> type[Any]:
    if name not in table:
        raise UserError(f"{key} names '{name}', which is not known here. Choose from: {', '.join(table)}.")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
