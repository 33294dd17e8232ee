"""Rows of a batch as one sequence of real tokens: no padding runs through the model, and a shared prompt runs once.

The responses to a prompt (a group of GRPO, both responses of a pair) attend to the same prompt tokens and each to its
own tokens, so prompt and responses form a tree. Positions count along the path from the root, and no token sees
another response or another row. Only attention itself needs rectangles; `Tree` and `Rows` make them in each layer.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core.common.batch import Batch
from rlhf_core.models.attention import Layout


@dataclass(frozen=True)
class Packed:
    """The T real tokens of a batch.

    ids, positions: (1, T). before: (B, R), the token whose state predicts each response token; last: (B,), the last
    token of each row. Both are indices into T; `before` is 0 outside the response mask.
    """

    ids: Tensor
    positions: Tensor
    before: Tensor
    last: Tensor
    layout: Layout


def pack(batch: Batch) -> Packed:
    """Pack a batch. Rows with equal prompts share them."""
    width = batch.input_ids.shape[1] - batch.response_length
    prompts, mask = batch.input_ids[:, :width], batch.attention_mask[:, :width]
    lengths, sizes = mask.sum(-1), batch.response_mask.sum(-1).long()
    columns = torch.arange(width, device=prompts.device)
    # Left-padded to right-padded: column j of a row moves to j minus the number of pads. -1 marks padding.
    right = torch.full_like(prompts, -1).scatter_(-1, (columns - (width - lengths)[:, None]) % width, prompts)
    right = right.masked_fill(columns >= lengths[:, None], -1)
    distinct, prompt_of_row = right.unique(dim=0, return_inverse=True)
    if len(distinct) == batch.rows:
        distinct, prompt_of_row = right, torch.arange(batch.rows, device=right.device)
    return _Packing(batch, distinct, prompt_of_row, sizes).packed


class _Packing:
    """The tokens of the distinct prompts, then those of the responses, or whole rows if no prompt is shared."""

    def __init__(self, batch: Batch, prompts: Tensor, prompt_of_row: Tensor, sizes: Tensor) -> None:
        self.batch, self.prompts, self.prompt_of_row, self.sizes = batch, prompts, prompt_of_row, sizes
        self.in_prompt = prompts >= 0  # (N, P)
        self.in_response = batch.response_mask > 0  # (B, R)

    @property
    def packed(self) -> Packed:
        shares = len(self.prompts) < self.batch.rows
        return self._tree() if shares else self._rows()

    @cached_property
    def lengths(self) -> Tensor:
        """Prompt tokens of each row, (B,)."""
        return self.in_prompt.sum(-1)[self.prompt_of_row]

    def _positions(self) -> tuple[Tensor, Tensor]:
        prompt = torch.arange(self.prompts.shape[1], device=self.prompts.device).expand_as(self.prompts)
        response = self.lengths[:, None] + torch.arange(self.batch.response_length, device=self.prompts.device)
        return prompt, response

    def _tree(self) -> Packed:
        in_prompt, in_response = self.in_prompt, self.in_response
        prompt, response = self._positions()
        count = int(in_prompt.sum())
        starts = in_prompt.sum(-1).cumsum(0)[self.prompt_of_row] - 1  # the last token of each row's prompt
        first = count + self.sizes.cumsum(0) - self.sizes
        columns = torch.arange(self.batch.response_length, device=first.device)
        before = torch.cat([starts[:, None], first[:, None] + columns[:-1]], 1)
        return Packed(
            ids=torch.cat([self.prompts[in_prompt], self.batch.response_ids[in_response]])[None],
            positions=torch.cat([prompt[in_prompt], response[in_response]])[None],
            before=before.masked_fill(~in_response, 0),
            last=first + self.sizes - 1,
            layout=Tree(in_prompt, in_response, self.prompt_of_row),
        )

    def _rows(self) -> Packed:
        ends = (self.lengths + self.sizes).cumsum(0)
        real = self.batch.attention_mask > 0
        width = int((self.lengths + self.sizes).max())
        columns = torch.arange(width, device=ends.device)
        in_row = columns < (self.lengths + self.sizes)[:, None]
        start = ends - self.sizes - 1  # the last prompt token of each row
        before = start[:, None] + torch.arange(self.batch.response_length, device=ends.device)
        return Packed(
            ids=self.batch.input_ids[real][None],
            positions=columns.expand_as(in_row)[in_row][None],
            before=before.masked_fill(~self.in_response, 0),
            last=ends - 1,
            layout=Rows(in_row),
        )


class Rows:
    """Separate rows, each causal."""

    def __init__(self, in_row: Tensor) -> None:
        """in_row: (B, L), True at the real tokens of right-padded rows."""
        self.shape = in_row.shape
        self.slots = in_row.flatten().nonzero()[:, 0]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Causal attention in each row; right padding is after every real token."""
        padded = (_padded(_tokens(tensor), self.slots, self.shape) for tensor in (query, key, value))
        return _unpadded(_attention(*padded, scaling=scaling), self.slots)[None]


class Tree:
    """Prompts, and responses that attend to one prompt and to themselves."""

    def __init__(self, in_prompt: Tensor, in_response: Tensor, prompt_of_row: Tensor) -> None:
        """in_prompt: (N, P) and in_response: (B, R), both right-padded. prompt_of_row: (B,)."""
        self.prompts = Rows(in_prompt)
        self.responses = Rows(in_response)
        self.prompt_of_row = prompt_of_row
        length = in_response.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=in_response.device).tril()
        seen = in_prompt[prompt_of_row][:, None].expand(-1, length, -1)
        self.mask = torch.cat([seen, causal.expand(len(in_response), -1, -1)], -1)[:, None]  # (B, 1, R, P + R)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Causal attention in each prompt, then of each response to its prompt and itself."""
        count = len(self.prompts.slots)
        q, k, v = (_tokens(tensor) for tensor in (query, key, value))
        first = [_padded(tensor[:count], self.prompts.slots, self.prompts.shape) for tensor in (q, k, v)]
        own = [_padded(tensor[count:], self.responses.slots, self.responses.shape) for tensor in (q, k, v)]
        keys, values = (
            torch.cat([prompt.index_select(0, self.prompt_of_row), response], 2)
            for prompt, response in zip(first[1:], own[1:], strict=True)
        )
        outputs = _attention(own[0], keys, values, mask=self.mask, scaling=scaling)
        of_prompts = _unpadded(_attention(*first, scaling=scaling), self.prompts.slots)
        return torch.cat([of_prompts, _unpadded(outputs, self.responses.slots)])[None]


def _attention(query: Tensor, key: Tensor, value: Tensor, *, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Attention of (B, H, L, D) to (B, H_kv, L', D); causal without a mask."""
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


def _tokens(tensor: Tensor) -> Tensor:
    """(1, H, T, D) -> (T, H, D)."""
    return tensor[0].transpose(0, 1)


def _padded(tokens: Tensor, slots: Tensor, shape: torch.Size) -> Tensor:
    """(T, H, D) -> (B, H, L, D), zero in padding; `slots` (T,) are the positions of the tokens in B x L."""
    spread: Tensor = _Spread.apply(tokens, slots, shape.numel())
    return spread.view(*shape, *tokens.shape[1:]).transpose(1, 2)


def _unpadded(padded: Tensor, slots: Tensor) -> Tensor:
    """(B, H, L, D) -> (T, H, D)."""
    gathered: Tensor = _Gather.apply(padded.transpose(1, 2).flatten(0, 1), slots)
    return gathered


class _Spread(torch.autograd.Function):
    """Put rows into slots of a larger tensor of zeros.

    Each slot is written once, so forward and backward are copies. The backward pass of index_select adds into slots,
    which is slower and, on a GPU, in no fixed order.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, slots: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(slots)
        return rows.new_zeros(count, *rows.shape[1:]).index_copy_(0, slots, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return gradient.index_select(0, slots), None, None


class _Gather(torch.autograd.Function):
    """Take rows out of slots, each at most once; the reverse of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, spread: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.count = len(spread)
        return spread.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.count, *gradient.shape[1:]).index_copy_(0, slots, gradient), None
