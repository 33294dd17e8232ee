"""Shared by the reward-model losses on preference pairs: Bradley-Terry, Thurstone."""

from rlhf_core.algorithms.base.algorithm import Algorithm
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.data import Data
from rlhf_core.common.lazy import Tensor, torch
from rlhf_core.maths.accuracy import correct
from rlhf_core.maths.reductions import unit_mean


class ScoredPairs(Algorithm[Batch]):
    """Rows alternate between chosen and rejected. A score is the scalar at the last response token."""

    data = Data.PAIRS

    def weights(self, batch: Batch) -> Tensor:
        """Equal weight for every pair, (N,)."""
        return unit_mean(batch.rows // 2, batch.input_ids.device)

    def statistics(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Accuracy (½ for equal scores, and ½ for a tie with any scores) and margin, (N,)."""
        chosen, rejected = outputs.scores[0::2].detach(), outputs.scores[1::2].detach()
        right = correct(chosen, rejected)
        is_tie = batch.preferences[0::2] == 0.5
        return {"accuracy": torch.where(is_tie, 0.5, right), "margin": chosen - rejected}
