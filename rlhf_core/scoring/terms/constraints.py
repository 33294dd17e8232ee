"""The share of a prompt's constraints that a response meets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_core.common.fields import setting
from rlhf_core.common.lazy import torch
from rlhf_core.scoring.term import Need, Offer, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_core.models.responses import Responses
    from rlhf_core.scoring.rewards import Reward


@dataclass(frozen=True)
class Constraints(Term):
    """The share of the constraints met, in [0, 1]; with `guard`, 0 for a response that is not an answer."""

    guard: bool = setting(True, "a response that is short, off topic or degenerate gets 0")

    name = "constraints"
    meaning = "share of the prompt's constraints that the response meets"

    @property
    def needs(self) -> Need:
        """Prompts with constraints."""
        return Need.CONSTRAINTS

    def make(self, offer: Offer) -> "Reward":
        """Check with the task's own checker."""
        return _Checked(offer.constraints(self.guard))


@dataclass(frozen=True)
class _Checked:
    """Scores texts one by one."""

    score: Callable[[Sequence[Mapping[str, str]], str], float]

    def __call__(self, responses: "Responses") -> "Tensor":
        """The shares, (B,)."""
        rows = zip(responses.prompts, responses.texts, strict=True)
        return torch.tensor([self.score(prompt.messages, text) for prompt, text in rows], device=responses.device)
