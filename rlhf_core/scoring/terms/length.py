"""The length of a response."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_core.scoring.term import Term

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_core.models.responses import Responses


@dataclass(frozen=True)
class Length(Term):
    """The number of response tokens, including the end token; a negative weight penalises length."""

    name = "length"
    meaning = "number of response tokens"

    def __call__(self, responses: "Responses") -> "Tensor":
        """|y|, (B,)."""
        return responses.batch.lengths.float()
