"""The reward function made of the terms in policy.rewards."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from rlhf_core.common.errors import UserError
from rlhf_core.scoring.rewards import (
    ExactMatch,
    Format,
    Length,
    MissingEnd,
    ModelReward,
    Overlong,
    PythonReward,
    Reward,
    WeightedSum,
)
from tasks.common.models import StageModels
from tasks.files import paths
from tasks.params.schema import Params
from tasks.params.sections import RewardTerm
from tasks.problems.table import prepared_problem


def make_reward(params: Params, models: StageModels, rows: int) -> WeightedSum:
    """Return the reward function of policy.rewards. `rows` responses are scored in one forward pass.

    `models` loads the reward model, which may share weights with the stage's other models.

    Raises:
        UserError: there is no term, or the data does not support one.
    """
    terms = params.policy.rewards
    if not terms:
        raise UserError("policy.rewards is empty. Name at least one term, such as [{name: model}].")
    prepared_problem().check_rewards(params)
    return WeightedSum([(term.label, term.weight, _reward(term, params, models, rows)) for term in terms])


def _reward(term: RewardTerm, params: Params, models: StageModels, rows: int) -> Reward:
    makers: dict[str, Callable[[], Reward]] = {
        "model": lambda: _model(term, models, rows),
        "exact_answer": lambda: ExactMatch(params.prepare.answer_pattern),
        "missing_end": lambda: MissingEnd(1.0),
        "length": Length,
        "overlong": lambda: Overlong(params.prepare.max_response_tokens, term.cache or 0),
        "format": lambda: Format(term.pattern or ""),
        "python": lambda: PythonReward(term.function or "", import_function(term.function or "")),
    }
    return makers[term.name]()


def _model(term: RewardTerm, models: StageModels, rows: int) -> Reward:
    model = models.accelerator.prepare_model(models.reward_model(paths.REWARD), evaluation_mode=True)
    return ModelReward(model, rows, term.clamp)


def import_function(path: str) -> Any:
    """Import the function that `module:function` names.

    Raises:
        UserError: the module or function does not exist.
    """
    module, _, name = path.partition(":")
    try:
        function = getattr(import_module(module), name) if name else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"policy.rewards: {path} cannot be imported ({error}). Fix the name or the file.") from error
    if not callable(function):
        raise UserError(
            f"policy.rewards: '{path}' is not a function. Write it as module:function, such as rewards:brevity."
        )
    return function
