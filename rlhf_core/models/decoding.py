"""Decoding of models with layouts (attention.py): each distinct prompt is read once, and finished rows are removed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_core.models.attention import hidden_states
from rlhf_core.models.cache import PromptLayout, RowLayout
from rlhf_core.models.drawing import Draws
from rlhf_core.models.packed import packed_weights
from rlhf_core.models.precision import compute

# Families whose decoders consist of the same parts. A step calls these without transformers' wrappers around them,
# which take 40 % of the time of a small model.
ROTARY = ("llama", "mistral", "qwen2", "qwen3")
REMOVED = 0.25  # finished rows are removed once they are this fraction of the rows
INTERVAL = 8  # steps between looks for finished rows on an accelerator, each of which waits for it


@torch.inference_mode()
def decode(policy: PreTrainedModel, prompts: Sequence[Sequence[int]], longest: int, draws: Draws) -> None:
    """Draw one response of at most `longest` tokens per prompt; `draws` keeps them.

    policy: in evaluation mode, prepared for layouts.
    """
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    number = {prompt: place for place, prompt in enumerate(distinct)}
    prompt_of = torch.tensor([number[tuple(prompt)] for prompt in prompts])
    # The active rows, sorted by prompt; numbers of rows in the caller's order.
    prompt_of, rows = prompt_of.sort(stable=True)
    prompt_of, rows = prompt_of.to(policy.device), rows.to(policy.device)
    with compute(policy), packed_weights(policy):
        logits, layout, lengths = _read_prompts(policy, distinct, prompt_of, longest)
        positions = lengths[prompt_of]
        ended = torch.zeros_like(rows, dtype=torch.bool)
        for step in range(longest):
            tokens, ends = draws.draw(logits, rows)
            ended |= ends
            if step + 1 == longest:
                return
            layout.step = step
            if step % (1 if policy.device.type == "cpu" else INTERVAL) == 0:
                finished = int(ended.sum())
                if finished == len(rows):
                    return
                if finished >= REMOVED * len(rows):
                    kept = (~ended).nonzero()[:, 0]
                    counts = prompt_of[kept].bincount(minlength=len(distinct))
                    present = prompt_of.unique()
                    layout.keep(kept, counts[present].tolist())
                    tokens, rows, prompt_of = tokens[kept], rows[kept], prompt_of[kept]
                    positions, ended = positions[kept], ended[kept]
            logits = _step(policy, tokens, positions + step, layout)


def _read_prompts(
    policy: PreTrainedModel, prompts: Sequence[Sequence[int]], prompt_of: Tensor, longest: int
) -> tuple[Tensor, RowLayout, Tensor]:
    """Read the distinct prompts; return the logits of each row's first token, the rows' layout, and the lengths."""
    device = policy.device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = int(lengths.max())
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    lengths = lengths.to(device)
    type_ = device.type
    layout = PromptLayout(torch.get_autocast_dtype(type_) if torch.is_autocast_enabled(type_) else None)
    positions = torch.arange(width, device=device).expand(len(prompts), -1)
    states = hidden_states(policy, ids.to(device), positions, layout)
    last = states[torch.arange(len(prompts), device=device), lengths - 1]
    logits = _logits(policy, last).index_select(0, prompt_of)
    return logits, RowLayout(layout, lengths, prompt_of.bincount().tolist(), longest), lengths


def _step(policy: PreTrainedModel, tokens: Tensor, positions: Tensor, layout: RowLayout) -> Tensor:
    """Return the logits after one more token per row, (B, V); tokens and positions are (B,)."""
    if policy.config.model_type in ROTARY:
        return _logits(policy, _rotary_step(policy.base_model, tokens, positions, layout))
    return _logits(policy, hidden_states(policy, tokens[:, None], positions[:, None], layout)[:, 0])


def _rotary_step(transformer: Any, tokens: Tensor, positions: Tensor, layout: RowLayout) -> Tensor:
    """The last hidden states of one token per row, (B, d)."""
    hidden: Tensor = transformer.embed_tokens(tokens)
    cos, sin = transformer.rotary_emb(hidden, position_ids=positions[:, None])  # (B, 1, D)
    for layer in transformer.layers:
        attention = layer.self_attn
        states = layer.input_layernorm(hidden)
        shape = (len(tokens), -1, attention.head_dim)
        query, key = attention.q_proj(states).view(shape), attention.k_proj(states).view(shape)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        heads, half = query.shape[1], attention.head_dim // 2
        both = torch.cat([query, key], 1)
        both = both * cos + torch.cat([-both[..., half:], both[..., :half]], -1) * sin
        value = attention.v_proj(states).view(shape)
        output = layout.read(attention.layer_idx, both[:, :heads], both[:, heads:], value, attention.scaling)
        hidden = hidden + attention.o_proj(output)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    last: Tensor = transformer.norm(hidden)
    return last


def _logits(policy: PreTrainedModel, states: Tensor) -> Tensor:
    head: Any = policy.get_output_embeddings()
    logits: Tensor = head(states)
    return logits
