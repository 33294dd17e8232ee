"""Forced response lengths, so that both sides sample the same number of tokens."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from benchmarks.peer.cells import END, PAD, Cell


class ForcedLengths(LogitsProcessor):
    """Ends each row at the cell's length, never earlier. A call on bare prompts begins the next step."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.step = -1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: (B, P + t); scores: logits, (B, V), changed in place."""
        drawn = input_ids.shape[1] - self.cell.prompt
        if drawn == 0:
            self.step += 1
            self.lengths = input_ids.new_tensor(self.cell.lengths(self.step))
        ending = self.lengths <= drawn + 1
        scores.masked_fill_(ending[:, None], -float("inf"))
        scores[:, PAD] = -float("inf")
        scores[:, END] = torch.where(ending, 0.0, -float("inf"))
        return scores
