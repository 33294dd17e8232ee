"""One decoding step of a model with layouts: from a token per row to the logits of the next.

Families whose decoders consist of the same parts take a step of their own: for a small model the calls of
transformers' modules cost more than their arithmetic. The other families run in transformers.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_core.models.attention import hidden_states
from rlhf_core.models.cache import RowLayout
from rlhf_core.models.linear import LinearCopies

ROTARY = ("llama", "mistral", "qwen2", "qwen3")


class Step:
    """The step of a model, whose weights may not change while it is used."""

    def __init__(self, policy: PreTrainedModel) -> None:
        """Prepare the layers; inside the autocast, if any, of the steps."""
        copies = LinearCopies(policy.device)
        head: Any = policy.get_output_embeddings()
        self.policy, self.head, self.transformer = policy, copies.of(head), _rotary_transformer(policy)
        layers = () if self.transformer is None else self.transformer.layers
        self.blocks = [_Block(layer, copies) for layer in layers]

    def logits(self, tokens: Tensor, positions: Tensor, layout: RowLayout) -> Tensor:
        """The logits after one more token per row, (B, V); tokens and positions are (B,)."""
        if self.transformer is None:
            return self.head(hidden_states(self.policy, tokens[:, None], positions[:, None], layout)[:, 0])
        hidden: Tensor = self.transformer.embed_tokens(tokens)
        cos, sin = self.transformer.rotary_emb(hidden, position_ids=positions[:, None])  # (B, 1, D)
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        for block in self.blocks:
            hidden = block.run(hidden, cos, sin, layout)
        return self.head(self.transformer.norm(hidden))


def _rotary_transformer(policy: PreTrainedModel) -> Any:
    return policy.base_model if policy.config.model_type in ROTARY else None


class _Block:
    """One layer of a decoder with RMS norms, rotary positions and a gated feed-forward network."""

    def __init__(self, layer: Any, copies: LinearCopies) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.size, self.scaling = attention.layer_idx, attention.head_dim, attention.scaling
        self.queries = attention.config.num_attention_heads
        self.keys = attention.config.num_key_value_heads
        self.before_attention, self.before_mlp = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.of_heads = (_norm(attention.q_norm), _norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
        self.query_key_value = copies.of(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output, self.activation = copies.of(attention.o_proj), mlp.act_fn
        self.gate, self.up, self.down = copies.of(mlp.gate_proj), copies.of(mlp.up_proj), copies.of(mlp.down_proj)

    def run(self, hidden: Tensor, cos: Tensor, sin: Tensor, layout: RowLayout) -> Tensor:
        """(B, d) -> (B, d). cos, sin: (B, 1, D), with the sine negated in the first half."""
        queries, keys = self.queries, self.keys
        heads = self.query_key_value(self.before_attention(hidden)).view(len(hidden), -1, self.size)
        turned = heads.narrow(1, 0, queries + keys)
        if self.of_heads is not None:
            of_queries, of_keys = self.of_heads
            turned = torch.cat([of_queries(turned[:, :queries]), of_keys(turned[:, queries:])], 1)
        turned = torch.addcmul(turned * cos, turned.roll(self.size // 2, -1), sin)
        query, key, value = turned.narrow(1, 0, queries), turned.narrow(1, queries, keys), heads.narrow(1, -keys, keys)
        hidden = hidden + self.output(layout.read(self.number, query, key, value, self.scaling))
        states = self.before_mlp(hidden)
        return hidden + self.down(self.activation(self.gate(states)) * self.up(states))


def _norm(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """An RMS norm of transformers as one call. In float64 the module itself, since it computes in float32."""
    own: Any = norm
    weight, epsilon = own.weight.detach(), own.variance_epsilon
    if weight.dtype == torch.float64:
        return norm
    return lambda states: F.rms_norm(states, weight.shape, weight.to(states.dtype), epsilon)
