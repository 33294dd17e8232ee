"""A penalty that grows as a response approaches the length limit.

Soft overlong punishment of DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 13.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_core.common.fields import setting
from rlhf_core.scoring.term import Offer, Term, require

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_core.models.responses import Responses
    from rlhf_core.scoring.rewards import Reward


@dataclass(frozen=True)
class Overlong(Term):
    """0 to -1 over the last `cache` tokens before the length limit."""

    cache: int | None = setting(None, "tokens before the limit over which it grows (arXiv:2503.14476, eq. 13)", ge=1)

    name = "overlong"
    meaning = "0, and −1 at the token limit: a penalty that grows over the last tokens"

    def __post_init__(self) -> None:
        require(self.name, "cache", self.cache)

    def unfit(self, longest: int) -> str:
        """Say that the cache is longer than a response can be."""
        if (self.cache or 0) <= longest:
            return ""
        return (
            f"The cache of overlong in policy.rewards exceeds prepare.max_response_tokens, {longest}. "
            f"Set it to {longest} or less."
        )

    def make(self, offer: Offer) -> "Reward":
        """The punishment for the run's length limit."""
        return OverlongPunishment(offer.longest, self.cache or 0)


@dataclass(frozen=True)
class OverlongPunishment:
    """Eq. 13.

    longest: L_max, the length limit of responses, in tokens. cache: L_cache, the number of tokens before it over which
    the punishment grows from 0 to 1. A response that was cut off has L_max tokens.
    """

    longest: int
    cache: int

    def __call__(self, responses: "Responses") -> "Tensor":
        """0 up to L_max - L_cache tokens, then (L_max - L_cache - |y|)/L_cache, which is -1 at L_max, (B,)."""
        excess = responses.batch.lengths - (self.longest - self.cache)
        return -(excess / self.cache).clamp(0, 1)
