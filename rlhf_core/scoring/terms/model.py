"""The score of a reward model: the run's own, or an existing one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_core.common.fields import setting
from rlhf_core.scoring.place import FOLDER, require_place
from rlhf_core.scoring.term import Need, Offer, Term

if TYPE_CHECKING:
    from rlhf_core.scoring.rewards import Reward


@dataclass(frozen=True)
class Model(Term):
    """The score of the run's reward model; with `path` or `hub`, that of an existing one with its own tokenizer."""

    clamp: float | None = setting(None, "scores are clamped to ± this value; null for no limit", gt=0)
    model: str | None = setting(None, "name in reward_models; null for the model on all feedback")
    path: str | None = setting(None, f"folder in {FOLDER} with an existing reward model; null for the run's own")
    hub: str | None = setting(None, "hub id of an existing reward model with its revision, org/name@revision")

    name = "model"
    meaning = "score of the reward model"

    def __post_init__(self) -> None:
        given = [option for option in ("model", "path", "hub") if getattr(self, option) is not None]
        if len(given) > 1:
            raise ValueError(f"reward model has both {given[0]} and {given[1]}; leave one out")
        require_place(self.path, self.hub, "reward model")

    @property
    def needs(self) -> Need | None:
        """Feedback, from which the run's own model is trained."""
        return Need.FEEDBACK if self.path is None and self.hub is None else None

    @property
    def label(self) -> str:
        """`model`, the name in reward_models, or the name of the existing model."""
        if self.model is not None:
            return self.model
        place = self.path or (self.hub or "").partition("@")[0]
        return place.rpartition("/")[2] or self.name

    def make(self, offer: Offer) -> "Reward":
        """Load the model."""
        if self.needs is Need.FEEDBACK:
            return offer.reward_model(self.model, self.clamp)
        from rlhf_core.scoring.foreign import load_foreign

        return load_foreign(offer.checkpoint(self.path, self.hub), offer.prepare, offer.rows, self.clamp)
