"""Attention with a layout of our own: packed rows in training, a preallocated cache in decoding.

transformers calls a registered attention function in every layer. The one here passes queries, keys and values to the
`layout` given to the model's forward pass, and everything else in the layer runs in transformers. Without a layout the
function is transformers' sdpa attention, so a prepared model also works in `generate` and elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "rlhf"  # in the table of transformers
# Decoders whose attention layers pass the layout on, number their layers, and attend to all earlier tokens.
ARCHITECTURES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")


class Layout(Protocol):
    """Where the tokens of a forward pass are, and what each may attend to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The attention output of a layer, (B, T, H, D).

        query is (B, H, T, D); key and value are (B, H_kv, T, D), where H is a multiple of H_kv.
        """
        ...


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention in the interface of transformers, which passes `others`."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    layer: Any = module.layer_idx
    return layout.attend(layer, query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def use_layouts(model: PreTrainedModel) -> str | None:
    """Prepare a model for layouts; return why it cannot be, or None."""
    reason = _obstacle(model)
    if reason is None:
        model.set_attn_implementation(IMPLEMENTATION)
    return reason


def has_layouts(model: nn.Module) -> bool:
    """Whether the model is prepared for layouts."""
    return isinstance(model, PreTrainedModel) and model.config._attn_implementation == IMPLEMENTATION


@contextmanager
def without_layouts(model: nn.Module) -> Iterator[None]:
    """The plain path of a model and of the transformers in it."""
    prepared = [part for part in model.modules() if isinstance(part, PreTrainedModel) and has_layouts(part)]
    for part in prepared:
        part.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        for part in prepared:
            part.set_attn_implementation(IMPLEMENTATION)


def _obstacle(model: PreTrainedModel) -> str | None:
    config = model.config
    if config.model_type not in ARCHITECTURES:
        return f"its model_type {config.model_type} is not one of {', '.join(ARCHITECTURES)}"
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        return "it has sliding-window attention"
    if getattr(config, "add_cross_attention", False) or getattr(config, "reorder_and_upcast_attn", False):
        return "it has cross attention or upcast attention"
    return None


def hidden_states(model: PreTrainedModel, ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """The last hidden states of a prepared model, (B, T, d), for ids and positions (B, T)."""
    transformer: Any = model.base_model
    nothing = torch.empty((1, 1, 1, 1), dtype=torch.bool, device=ids.device)  # a 4-D mask is passed through unread
    states: Tensor = transformer(
        input_ids=ids, position_ids=positions, attention_mask=nothing, layout=layout, use_cache=False
    ).last_hidden_state
    return states
