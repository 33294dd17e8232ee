"""Whether a response has a format."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_core.common.fields import setting
from rlhf_core.common.lazy import torch
from rlhf_core.scoring.answers import format_pattern, matches_whole
from rlhf_core.scoring.term import Term, require

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_core.models.responses import Responses


@dataclass(frozen=True)
class Format(Term):
    """1 if the whole response matches `pattern`, else 0. Example: `<think>.*</think>.*`; a dot matches any character.

    Raises:
        UserError: the pattern is not a regular expression, or takes too long on a response.
    """

    pattern: str | None = setting(None, "regular expression that must match the whole response")

    name = "format"
    meaning = "1 if the pattern matches the whole response, otherwise 0"

    def __post_init__(self) -> None:
        require(self.name, "pattern", self.pattern)
        format_pattern(self.pattern or "")

    def __call__(self, responses: "Responses") -> "Tensor":
        """0 or 1, (B,)."""
        right = [float(matches_whole(self.pattern or "", text.strip())) for text in responses.texts]
        return torch.tensor(right, device=responses.device)
