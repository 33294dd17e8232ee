"""Best-of-N distillation: supervised fine-tuning on the best of N samples.

Sample N responses per prompt from the SFT model, keep the one that the reward model scores highest, and train the SFT
model on the kept responses by cross-entropy. Touvron et al. 2023 (arXiv:2307.09288, sec. 3.2.3) call this rejection
sampling fine-tuning.
"""

from dataclasses import dataclass
from typing import Any

from rlhf_core.algorithms.base.algorithm import Work
from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.common.data import Data
from rlhf_core.common.fields import check_bounds, setting


@dataclass(frozen=True, kw_only=True)
class BestOfNDistillation(SFT):
    """The loss of SFT on other data: the best of N samples."""

    name = "best_of_n_distillation"
    title = "Best-of-N distillation"

    best_of: int = setting(8, "N, responses sampled per prompt; the best one is kept", title="N", ge=2)
    prompts: int = setting(512, "number of prompts to sample responses for", ge=1)

    data = Data.BEST_OF_N

    def __post_init__(self) -> None:
        check_bounds(self)

    def work(self, config: Any, prompts: int, feedback: int) -> Work:
        """Sample and score N responses per prompt, then train on one of them."""
        kept = min(self.prompts, prompts)
        sampled = kept * self.best_of
        return Work(trained=config.visits(kept), read=sampled, sampled=sampled)
