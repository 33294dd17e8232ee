"""A penalty for a response that was cut off."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_core.scoring.term import Term

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_core.models.responses import Responses


@dataclass(frozen=True)
class MissingEnd(Term):
    """-1 for a response that was cut off before an end token."""

    name = "missing_end"
    meaning = "−1 for a response that was cut off before its end token, otherwise 0"

    def __call__(self, responses: "Responses") -> "Tensor":
        """0 or -1, (B,)."""
        return -(~responses.ended).float()
