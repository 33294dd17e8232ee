"""SFT: supervised fine-tuning. InstructGPT, Ouyang et al. 2022 (arXiv:2203.02155) sec. 3.5.

L = - Σ_{t in response} log π(a_t | s_t) / #response tokens. The prompt is masked and the end token is trained. Every
response token of the minibatch has the same weight.
"""

from dataclasses import dataclass

from rlhf_core.algorithms.base.algorithm import Algorithm
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.losses import cross_entropy
from rlhf_core.maths.reductions import token_mean


@dataclass(frozen=True)
class SFT(Algorithm[Batch]):
    """Cross-entropy on response tokens."""

    name = "sft"
    title = "SFT"

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """-log π(a_t|s_t), (B, R)."""
        return cross_entropy(outputs.logprobs)

    def weights(self, batch: Batch) -> Tensor:
        """Equal weight for every response token, (B, R)."""
        return token_mean(batch.response_mask)
