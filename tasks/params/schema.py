"""params.yaml as validated dataclasses."""

from dataclasses import dataclass, field
from typing import Any

from rlhf_core.algorithms.base.table import policy_algorithm
from rlhf_core.common.fields import from_section
from tasks.params.derived import CollectParams, PolicyParams, RewardParams
from tasks.params.explain import keys_of
from tasks.params.sections import (
    BaseParams,
    EvaluateParams,
    ModelParams,
    PrepareParams,
    RunParams,
    SampleParams,
    Section,
    SFTParams,
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
    policy: PolicyParams
    evaluate: EvaluateParams = field(default_factory=EvaluateParams)

    def __post_init__(self) -> None:
        if self.model.dtype != "fp32" and self.run.precision == "fp32":
            raise ValueError(f"model.dtype {self.model.dtype} computes in bf16; set run.precision to bf16")


def all_keys() -> list[str]:
    """Return every dotted key of params.yaml."""
    return keys_of(Params)


def algorithm_of(params: Params, name: str) -> Any:
    """Return the policy algorithm `name` with its hyperparameters.

    Raises:
        UserError: the algorithm does not exist; the message lists those that do.
    """
    return from_section(policy_algorithm(name), params.policy.section(name))
