"""The score of a reward model that the run trained."""

from pathlib import Path

from rlhf_core.models.store import load_tokenizer
from rlhf_core.scoring.foreign import ForeignReward, reward_of
from rlhf_core.scoring.rewards import ModelReward
from tasks.common.models import StageModels


def trained_reward(
    folder: Path, models: StageModels, rows: int, clamp: float | None = None
) -> ModelReward | ForeignReward:
    """Load the reward model in a folder. `rows` responses are scored in one forward pass.

    Raises:
        UserError: it cannot be loaded.
    """
    model = models.reward_model(folder)
    models.accelerator.prepare_model(model, evaluation_mode=True)
    return reward_of(model, load_tokenizer(folder) if model.has_own_tokenizer else None, folder.name, rows, clamp)
