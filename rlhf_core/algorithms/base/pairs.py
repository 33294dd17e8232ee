"""Shared by the methods on preference pairs: DPO, cDPO, IPO."""

from rlhf_core.algorithms.base.algorithm import Algorithm
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.data import Data
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.accuracy import correct
from rlhf_core.maths.reductions import sequence_sum, unit_mean


class PairAlgorithm(Algorithm[Batch]):
    """Rows alternate between chosen and rejected. A row's preference is the probability that it is the better one."""

    beta: float
    data = Data.PAIRS

    def weights(self, batch: Batch) -> Tensor:
        """Equal weight for every pair, (N,)."""
        return unit_mean(batch.rows // 2, batch.input_ids.device)

    def statistics(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Implicit rewards β log π_θ/π_ref, their margin, and whether its sign is right (½ if it is 0), (N,)."""
        implicit = self.beta * self.logratios(outputs, batch).detach()
        chosen, rejected = implicit[0::2], implicit[1::2]
        logprobs = sequence_sum(outputs.logprobs.detach(), batch.response_mask)
        return {
            "implicit_reward_chosen": chosen,
            "implicit_reward_rejected": rejected,
            "margin": chosen - rejected,
            "accuracy": correct(chosen, rejected),
            "logprobs_chosen": logprobs[0::2],
        }

    def logratios(self, outputs: Outputs, batch: Batch) -> Tensor:
        """log π_θ(y|x) - log π_ref(y|x), summed over response tokens, (B,)."""
        return sequence_sum(outputs.logprobs - batch.ref_logprobs, batch.response_mask)
