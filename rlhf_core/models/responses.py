"""Responses as one type: what samplers give, and what rewards and judges take."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rlhf_core.common.batch import Batch, Example, collate
from rlhf_core.models.tokens import Prompt


@dataclass(frozen=True)
class Response:
    """One response.

    ids: its tokens, as sampled, the end token included. text: for people and text judges only. ended: False where it
    was cut off at the length limit.
    """

    ids: list[int]
    text: str
    ended: bool


@dataclass(frozen=True)
class Responses:
    """Responses to prompts, row by row, and their tensors, which are made when they are first read.

    pad_token fills the rows of `batch` up to one width; the tensors are on `device`.
    """

    prompts: Sequence[Prompt]
    responses: Sequence[Response]
    pad_token: int
    device: "torch.device" = torch.device("cpu")

    def __len__(self) -> int:
        """The number of rows, B."""
        return len(self.responses)

    @cached_property
    def batch(self) -> Batch:
        """The rows as tensors of the very ids that were sampled.

        Raises:
            UserError: if a row has no prompt or no response token.
        """
        rows = zip(self.prompts, self.responses, strict=True)
        examples = [Example(prompt.ids, response.ids) for prompt, response in rows]
        return collate(examples, self.pad_token).to(self.device)

    @cached_property
    def ended(self) -> Tensor:
        """Whether each response ended, bool, (B,)."""
        return torch.tensor([response.ended for response in self.responses], device=self.device)

    @property
    def texts(self) -> list[str]:
        """The text of each response."""
        return [response.text for response in self.responses]
