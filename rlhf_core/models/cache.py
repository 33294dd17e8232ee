"""The layouts of decoding: prompts, whose keys and values are kept once, and rows, each with its own tokens behind one.

Tensors start with the heads: (H_kv, N, ...) for N prompts and (H_kv, B, ...) for B rows sorted by prompt. So the G rows
of a prompt are adjacent, and the scores of all of them against the prompt are one matrix product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class PromptLayout:
    """Reads N prompts, padded on the right to P tokens; keeps keys and values of each layer, (H_kv, N, P, D)."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        """dtype: of the kept tensors; None keeps that of the model."""
        self.dtype = dtype
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Causal attention. Padding follows the real tokens, so these never see it."""
        for kept, new in ((self.keys, key), (self.values, value)):
            kept.append(new.transpose(0, 1).to(self.dtype or value.dtype).contiguous())
        query, key = query.to(value.dtype), key.to(value.dtype)
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return output.transpose(1, 2)


class RowLayout:
    """Reads one new token of each of B rows, and keeps its keys and values, (H_kv, B, longest, D) in each layer.

    counts: rows of each prompt, which sum to B. step: the column of the new token, which also reads the earlier ones.
    """

    def __init__(self, prompts: PromptLayout, lengths: Tensor, counts: Sequence[int], longest: int) -> None:
        """lengths: tokens of each prompt, (N,). Prompt tensors are taken over, not copied."""
        self.step, self.longest = 0, longest
        self.prompt_keys, self.prompt_values = prompts.keys, prompts.values
        self.heads, _, self.width, self.size = prompts.keys[0].shape
        self.zero = prompts.keys[0].new_zeros(())
        # Added to the scores: -inf at the padding of shorter prompts, (H_kv, N, 1, P).
        self.mask: Tensor | None = None
        if bool((lengths < self.width).any()):
            outside = torch.arange(self.width, device=lengths.device) >= lengths[:, None]
            mask = self.zero.new_zeros(outside.shape).masked_fill_(outside, -torch.inf)
            self.mask = mask[None, :, None].expand(self.heads, -1, -1, -1).contiguous()
        self._arrange(counts)
        empty = (self.heads, self.rows, longest, self.size)
        self.keys = [keys.new_empty(empty) for keys in self.prompt_keys]
        self.values = [values.new_empty(empty) for values in self.prompt_values]

    def _arrange(self, counts: Sequence[int]) -> None:
        """Compute where each row is. If groups differ in size, their queries are padded to the largest one."""
        self.counts, self.rows, largest = list(counts), sum(counts), max(counts)
        self.slots: Tensor | None = None  # the row of each of the N · largest slots; row 0 in those that are unused
        if len(set(counts)) > 1:
            ends = torch.tensor(counts).cumsum(0)
            place = torch.arange(largest)
            used = place < torch.tensor(counts)[:, None]
            slots = torch.where(used, (ends - torch.tensor(counts))[:, None] + place, 0)
            self.slots = slots.flatten().to(self.zero.device)
            self.slot_of_row = used.flatten().nonzero()[:, 0].to(self.zero.device)

    def keep(self, rows: Tensor, counts: Sequence[int]) -> None:
        """Keep only these rows, ascending; counts: how many of each prompt. Prompts without rows are dropped."""
        for kept in (self.keys, self.values):
            for layer, tensor in enumerate(kept):
                new = tensor.new_empty(self.heads, len(rows), self.longest, self.size)
                new[:, :, : self.step] = tensor[:, :, : self.step].index_select(1, rows)
                kept[layer] = new
        alive = [prompt for prompt, count in enumerate(counts) if count]
        if len(alive) < len(counts):
            prompts = torch.tensor(alive, device=self.zero.device)
            for shared in (self.prompt_keys, self.prompt_values):
                shared[:] = [tensor.index_select(1, prompts) for tensor in shared]
            self.mask = None if self.mask is None else self.mask.index_select(1, prompts)
        self._arrange([counts[prompt] for prompt in alive])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of one token per row, with T = 1; see `Layout`."""
        output = self.read(layer, query.squeeze(2), key.squeeze(2), value.squeeze(2), scaling)
        return output.unflatten(-1, (1, -1, self.size))

    def read(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The same without the dimension of length 1: query (B, H, D), key and value (B, H_kv, D) -> (B, H · D)."""
        heads, rows, size, width, step = self.heads, self.rows, self.size, self.width, self.step
        keys, values = self.keys[layer], self.values[layer]
        keys.select(2, step).copy_(key.transpose(0, 1))
        values.select(2, step).copy_(value.transpose(0, 1))
        keys, values = (kept.view(heads * rows, -1, size).narrow(1, 0, step + 1) for kept in (keys, values))
        queries = query.to(keys.dtype).view(rows, heads, -1, size).transpose(0, 1).contiguous()
        scores = torch.cat(
            [
                self._prompt_scores(layer, queries, scaling),
                _product(self.zero, queries.view(heads * rows, -1, size), keys, scaling).view(-1, step + 1),
            ],
            1,
        )
        if scores.dtype.itemsize < 4:
            weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
        else:
            weights = scores.softmax(-1)
        output = self._prompt_values(layer, weights.narrow(1, 0, width)).view(heads * rows, -1, size)
        own = weights.narrow(1, width, step + 1).unflatten(0, (heads * rows, -1))
        output = output.baddbmm_(own, values)
        return output.view(heads, rows, -1, size).transpose(0, 1).reshape(rows, -1)

    def _prompt_scores(self, layer: int, queries: Tensor, scaling: float) -> Tensor:
        """Scores against the row's prompt, (H_kv · B · H/H_kv, P)."""
        if self.slots is not None:
            queries = queries.index_select(1, self.slots)
        keys = self.prompt_keys[layer].flatten(0, 1)
        mask = self.zero if self.mask is None else self.mask.flatten(0, 1)
        scores = _product(mask, queries.view(len(keys), -1, self.size), keys, scaling)
        if self.slots is None:
            return scores.view(-1, self.width)
        return self._rows(scores).view(-1, self.width)

    def _prompt_values(self, layer: int, weights: Tensor) -> Tensor:
        """The weighted prompt values of each row, (H_kv, B, H/H_kv, D); weights as the scores."""
        values = self.prompt_values[layer].flatten(0, 1)
        if self.slots is None:
            return torch.bmm(weights.unflatten(0, (len(values), -1)), values)
        weights = weights.unflatten(0, (self.heads, self.rows, -1)).index_select(1, self.slots)
        return self._rows(torch.bmm(weights.view(len(values), -1, self.width), values))

    def _rows(self, slots: Tensor) -> Tensor:
        """Take each row from its slot: (H_kv · N, largest · H/H_kv, n) -> (H_kv, B, H/H_kv, n)."""
        assert self.slots is not None
        by_slot = slots.view(self.heads, len(self.slots), -1, slots.shape[-1])
        return by_slot.index_select(1, self.slot_of_row)


def _product(offset: Tensor, queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Scaled scores plus an offset, (n, queries, keys)."""
    return torch.baddbmm(offset, queries, keys.transpose(1, 2), beta=offset.dim() and 1, alpha=scaling)
