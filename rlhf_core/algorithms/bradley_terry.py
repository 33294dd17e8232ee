"""Bradley-Terry reward model. Bradley & Terry 1952; InstructGPT (arXiv:2203.02155) eq. 1; seeds S0-S4.

P(y_w ≻ y_l | x) = σ(r(x, y_w) - r(x, y_l)), fitted by maximum likelihood on pairs: L = -log σ(r_w - r_l).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlhf_core.batch import Batch, Outputs
from rlhf_core.losses import bradley_terry
from rlhf_core.reductions import unit_mean


@dataclass(frozen=True)
class BradleyTerry:
    """Rows alternate chosen, rejected; scores are the scalar head at the last response token."""

    needs: ClassVar[frozenset[str]] = frozenset()
    rows_per_unit: ClassVar[int] = 2

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """-log σ(r_w - r_l), (N,)."""
        return bradley_terry(outputs.scores[0::2], outputs.scores[1::2])

    def weights(self, batch: Batch) -> Tensor:
        """One pair, one vote, (N,)."""
        return unit_mean(batch.rows // 2, batch.input_ids.device)

    def statistics(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Accuracy (a tie is half) and margin, (N,)."""
        margin = (outputs.scores[0::2] - outputs.scores[1::2]).detach()
        return {"accuracy": (margin > 0).float() + 0.5 * (margin == 0).float(), "margin": margin}
