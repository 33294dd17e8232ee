"""params.yaml as validated dataclasses."""

from dataclasses import dataclass, field
from typing import Any

from rlhf_core.algorithms.base.table import policy_algorithm
from rlhf_core.common.fields import from_section
from tasks.params.derived import SFT_CRITIC, CollectParams, PolicyParams, RewardParams
from tasks.params.explain import keys_of
from tasks.params.sections import (
    BaseParams,
    EvaluateParams,
    ModelParams,
    PrepareParams,
    RewardModelsParams,
    RunParams,
    SampleParams,
    Section,
    SFTParams,
    nearest,
)


@dataclass(frozen=True, kw_only=True)
class Params(Section):
    """All of params.yaml."""

    run: RunParams = field(default_factory=RunParams)
    model: ModelParams
    prepare: PrepareParams
    base: BaseParams = field(default_factory=BaseParams)
    sft: SFTParams = field(default_factory=SFTParams)
    sample: SampleParams = field(default_factory=SampleParams)
    collect: CollectParams = field(default_factory=CollectParams)
    reward: RewardParams = field(default_factory=RewardParams)
    reward_models: RewardModelsParams
    policy: PolicyParams
    evaluate: EvaluateParams = field(default_factory=EvaluateParams)

    def __post_init__(self) -> None:
        if self.model.dtype != "fp32" and self.run.precision == "fp32":
            raise ValueError(f"model.dtype {self.model.dtype} computes in bf16; set run.precision to bf16")
        for entry in self.policy.rewards:
            if entry.is_own_model:
                self._check_model("policy.rewards", entry.model, f"write {{name: model, model: {self._first}}}")
        if self.policy.critic not in (None, SFT_CRITIC):
            self._check_model("policy.critic", self.policy.critic, "")

    @property
    def _first(self) -> str:
        return next(iter(self.reward_models.names), "")

    def _check_model(self, key: str, name: str | None, fix: str) -> None:
        """Check that a name is that of a reward model that the run trains; None is the one on all feedback."""
        names = self.reward_models.names
        if name is None and names:
            raise ValueError(f"{key} names the model of all feedback, but reward_models.names replaces it; {fix}")
        if name is not None and name not in names:
            raise ValueError(f"{key} names {name}, which is not in reward_models.names; {nearest(name, names)}")

    @property
    def critic(self) -> str | None:
        """The reward model that critics start from: its name in reward_models, or None for the one on all feedback."""
        return self.policy.critic or next(iter(self.reward_models.names), None)


def all_keys() -> list[str]:
    """Return every dotted key of params.yaml."""
    return keys_of(Params)


def algorithm_of(params: Params, name: str) -> Any:
    """Return the policy algorithm `name` with its hyperparameters.

    Raises:
        UserError: the algorithm does not exist; the message lists those that do.
    """
    return from_section(policy_algorithm(name), params.policy.section(name))
