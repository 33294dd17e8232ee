"""The reward function made of the terms in policy.rewards."""

from pathlib import Path

from rlhf_core.common.errors import UserError
from rlhf_core.scoring.rewards import WeightedSum
from rlhf_core.scoring.term import Offer
from tasks.common.models import StageModels
from tasks.common.source import download
from tasks.files import paths
from tasks.params.schema import Params
from tasks.problems.table import prepared_problem
from tasks.rewards.trained import trained_reward


def make_reward(params: Params, models: StageModels, rows: int) -> WeightedSum:
    """Return the reward function of policy.rewards. `rows` responses are scored in one forward pass.

    `models` loads the reward model, which may share weights with the stage's other models.

    Raises:
        UserError: there is no term, the data does not support one, or a model cannot be loaded.
    """
    entries = params.policy.rewards
    if not entries:
        raise UserError("policy.rewards is empty. Name at least one term, such as [{name: model}].")
    problem = prepared_problem()
    problem.check_rewards(params)
    offer = Offer(
        rows=rows,
        prepare=lambda model: models.accelerator.prepare_model(model, evaluation_mode=True),
        reward_model=lambda name, clamp: trained_reward(paths.reward_model(name), models, rows, clamp),
        checkpoint=_checkpoint,
        longest=params.prepare.max_response_tokens,
        answer_pattern=params.prepare.answer_pattern,
        constraints=problem.constraint_score,
    )
    return WeightedSum([(entry.label, entry.weight, entry.term.make(offer)) for entry in entries])


def _checkpoint(path: str | None, hub: str | None) -> Path:
    """The folder of an existing reward model."""
    return Path(path) if path is not None else download(hub or "", "policy.rewards: hub")
