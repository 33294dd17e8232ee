"""The shape of a LoRA adapter, with the names and meanings of peft. This module does not import torch."""

import re
from dataclasses import dataclass

from rlhf_core.common.fields import setting

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A low-rank adapter: W x + (lora_alpha / r) B A x, with W frozen. Hu et al. 2021, arXiv:2106.09685, eq. 3."""

    r: int = setting(16, "rank of the adapter", ge=1)
    lora_alpha: int = setting(32, "scale of the adapter times r; often 2 r", ge=1)
    lora_dropout: float = setting(0.0, "must be 0; with dropout, the ratio of equal policies is not 1", ge=0, lt=1)
    target_modules: str | list[str] = setting(
        ALL_LINEAR,
        "layers with an adapter: all-linear for all but the head, a list of names such as [q_proj, v_proj], or a "
        "regular expression for the whole name",
    )

    def __post_init__(self) -> None:
        if self.lora_dropout:
            raise ValueError(
                f"lora_dropout is {self.lora_dropout}: policies, references and rewards are compared between two "
                "forward passes, which dropout makes unequal; set it to 0"
            )
        if not self.target_modules:
            raise ValueError(f"target_modules is empty; name a layer, or set it to {ALL_LINEAR}")
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except re.error as error:
                raise ValueError(f"target_modules is not a regular expression ({error}); correct it") from error
