"""Responses with their prompts, as rewards and judges read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rlhf_core.common.batch import Batch, Example, collate, not_computed
from rlhf_core.common.responses import Response
from rlhf_core.models.tokens import Prompt


@dataclass(frozen=True)
class Responses:
    """Responses to prompts, one per row, and their tensors, computed at the first access.

    pad_token: pads the rows of `batch` to one width. device: the device of the tensors.
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
        """The rows as tensors of exactly the ids that were sampled.

        Raises:
            UserError: a row has no prompt token or no response token.
        """
        rows = zip(self.prompts, self.responses, strict=True)
        examples = [Example(prompt.ids, response.ids) for prompt, response in rows]
        return collate(examples, self.pad_token).to(self.device)

    @cached_property
    def ended(self) -> Tensor:
        """Whether each response ended, bool, (B,)."""
        return torch.tensor([response.ended for response in self.responses], device=self.device)

    @cached_property
    def sampler_logprobs(self) -> Tensor:
        """The log-probabilities of the sampler, (B, R), 0 after the end; NaN in rows for which it gave none."""
        logprobs = not_computed(len(self), self.batch.response_length)
        for row, response in enumerate(self.responses):
            if response.logprobs is not None:
                logprobs[row] = 0.0
                logprobs[row, : len(response.logprobs)] = torch.tensor(response.logprobs)
        return logprobs.to(self.device)

    @property
    def texts(self) -> list[str]:
        """The text of each response."""
        return [response.text for response in self.responses]
