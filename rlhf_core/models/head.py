"""Log-probabilities and entropies from hidden states, without the logits of all tokens at once.

The logits of S tokens and V vocabulary entries are computed in chunks of at most CHUNK numbers. The backward pass
computes the logits of a chunk again unless there is only one chunk, whose probabilities are kept.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf_core.maths.losses import exact_kl, token_entropies, token_logprobs

CHUNK = 2**24  # logits in memory; 64 MiB in float32

Entropy = Literal["value", "gradient"]  # only the value, or also its gradient


def logprobs_and_entropies(
    model: PreTrainedModel, states: Tensor, ids: Tensor, temperature: float, entropy: Entropy | None
) -> tuple[Tensor, Tensor | None]:
    """log π(ids | states) and, if wanted, the entropies, both (S,), from states (S, d) and ids (S,)."""
    head: Any = model.get_output_embeddings()
    if type(head) is nn.Linear and head.bias is None:
        logprobs, entropies = _Logprobs.apply(states, head.weight, ids, temperature, entropy)
        return logprobs, entropies

    def chunk(states: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        logits = head(states)
        found = token_logprobs(logits, ids, temperature)
        if entropy is None:
            return (found,)
        return found, token_entropies(logits if entropy == "gradient" else logits.detach(), temperature)

    parts = _in_chunks(chunk, _vocabulary(model), states, ids)
    return parts[0], parts[1] if entropy else None


def kl_of_states(
    model: PreTrainedModel, states: Tensor, reference: PreTrainedModel, ref_states: Tensor, temperature: float
) -> Tensor:
    """KL(π ‖ π_ref) at each state, summed over the vocabulary, (S,), with gradient for the states of the model."""
    head, ref_head = model.get_output_embeddings(), reference.get_output_embeddings()

    def chunk(states: Tensor, ref_states: Tensor) -> tuple[Tensor, ...]:
        return (exact_kl(head(states), ref_head(ref_states), temperature),)

    return _in_chunks(chunk, _vocabulary(model), states, ref_states)[0]


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _in_chunks(function: Callable[..., tuple[Tensor, ...]], vocabulary: int, *inputs: Tensor) -> list[Tensor]:
    """Apply a function to chunks of tokens; with several chunks, the backward pass computes each again."""
    size = max(1, CHUNK // vocabulary)
    if len(inputs[0]) <= size:
        return list(function(*inputs))
    parts = [
        checkpoint(function, *part, use_reentrant=False)
        for part in zip(*(tensor.split(size) for tensor in inputs), strict=True)
    ]
    return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]


class _Logprobs(torch.autograd.Function):
    """log softmax(h Wᵀ / T)[id] and the entropy, with dlog π/dz = (onehot - π)/T and dH/dz_j = -π_j (log π_j + H)/T."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, ids: Tensor, temperature: float, entropy: Entropy | None
    ) -> tuple[Tensor, Tensor | None]:
        compute = _compute_dtype(weight)
        cast, size = weight.to(compute), max(1, CHUNK // len(weight))
        logprobs, entropies, kept = [], [], None
        for part, chosen in zip(states.split(size), ids.split(size), strict=True):
            logits = _logits(part, cast, temperature)
            picked = logits.gather(-1, chosen[:, None])[:, 0]
            probabilities, total = _softmax_(logits)
            # Rounding can put the chosen logit slightly above the log-sum-exp; a log-probability must not exceed 0.
            logprobs.append((picked - total).clamp_(max=0.0))
            if entropy:
                entropies.append(-torch.xlogy(probabilities, probabilities).sum(-1))
            if len(states) <= size and any(ctx.needs_input_grad):
                kept = probabilities
        ctx.temperature, ctx.size, ctx.compute, ctx.kept = temperature, size, compute, kept
        ctx.save_for_backward(states, weight, ids)
        ctx.set_materialize_grads(False)
        found = torch.cat(entropies) if entropy else None
        if found is not None and entropy == "value":
            ctx.mark_non_differentiable(found)
        return torch.cat(logprobs), found

    @staticmethod
    def backward(ctx: Any, of_logprobs: Tensor | None, of_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        states, weight, ids = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None  # overwritten below; a second backward pass computes them again
        cast = weight.to(ctx.compute)
        wants_states, wants_weight = ctx.needs_input_grad[:2]
        to_states = torch.empty_like(states) if wants_states else None
        to_weight = torch.zeros_like(weight, dtype=_full(weight.dtype)) if wants_weight else None
        for start in range(0, len(states), ctx.size):
            part = slice(start, start + ctx.size)
            probabilities = kept if kept is not None else _softmax_(_logits(states[part], cast, ctx.temperature))[0]
            slopes = _slopes_(
                probabilities, ids[part], *(None if g is None else g[part] for g in (of_logprobs, of_entropies))
            )
            slopes = slopes.div_(ctx.temperature).to(ctx.compute)
            if to_states is not None:
                to_states[part] = slopes @ cast
            if to_weight is not None:
                to_weight += slopes.t() @ states[part].to(ctx.compute)
        return to_states, None if to_weight is None else to_weight.to(weight.dtype), None, None, None


def _compute_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _full(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _logits(states: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Logits in at least float32, since log-probabilities in bf16 have only three digits, (S, V)."""
    logits = F.linear(states.to(weight.dtype), weight)
    logits = logits.to(_full(logits.dtype))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _softmax_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax in place, and the log-sum-exp: (S, V) -> (S, V), (S,)."""
    highest = logits.amax(-1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(-1, keepdim=True)
    return logits.div_(total), (highest + total.log())[:, 0]


def _slopes_(probabilities: Tensor, ids: Tensor, of_logprobs: Tensor | None, of_entropies: Tensor | None) -> Tensor:
    """The gradient with respect to the logits, (S, V), written over the probabilities."""
    slopes: Tensor | float = 0.0
    if of_entropies is not None:
        surprise = torch.xlogy(probabilities, probabilities)
        slopes = (probabilities * surprise.sum(-1, keepdim=True)).sub_(surprise).mul_(of_entropies[:, None])
    if of_logprobs is None:
        assert isinstance(slopes, Tensor)
        return slopes
    result = probabilities.mul_(-of_logprobs[:, None]).add_(slopes)
    return result.scatter_add_(-1, ids[:, None], of_logprobs[:, None])
