"""The score of a reward model: the run's own, or an existing one."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_core.common.fields import setting
from rlhf_core.scoring.term import Need, Offer, Term

if TYPE_CHECKING:
    from rlhf_core.scoring.rewards import Reward

FOLDER = "inputs/rewards"  # an input of the stages that score responses


@dataclass(frozen=True)
class Model(Term):
    """The score of the run's reward model; with `path` or `hub`, that of an existing one with its own tokenizer."""

    clamp: float | None = setting(None, "scores are clamped to ± this value; null for no limit", gt=0)
    path: str | None = setting(None, f"folder in {FOLDER} with an existing reward model; null for the run's own")
    hub: str | None = setting(None, "hub id of an existing reward model with its revision, org/name@revision")

    name = "model"
    meaning = "score of the reward model"

    def __post_init__(self) -> None:
        if self.path is not None and self.hub is not None:
            raise ValueError("reward model has both path and hub; leave one out")
        if self.path is not None and not re.fullmatch(rf"{FOLDER}/[\w.-]*\w", self.path):
            raise ValueError(f"path of reward model is {self.path}; copy the model to a folder in {FOLDER}")
        if self.hub is not None and not re.fullmatch(r"[^@]+@[^@]+", self.hub):
            raise ValueError(f"hub of reward model is {self.hub}, which is not pinned; write org/name@revision")

    @property
    def needs(self) -> Need | None:
        """Feedback, from which the run's own model is trained."""
        return Need.FEEDBACK if self.path is None and self.hub is None else None

    @property
    def label(self) -> str:
        """`model`, or the name of the existing model."""
        place = self.path or (self.hub or "").partition("@")[0]
        return place.rpartition("/")[2] or self.name

    def make(self, offer: Offer) -> "Reward":
        """Load the model."""
        from rlhf_core.scoring.rewards import ModelReward

        if self.needs is Need.FEEDBACK:
            return ModelReward(offer.prepare(offer.reward_model()), offer.rows, self.clamp)
        from rlhf_core.scoring.foreign import load_foreign

        return load_foreign(offer.checkpoint(self.path, self.hub), offer.prepare, offer.rows, self.clamp)
