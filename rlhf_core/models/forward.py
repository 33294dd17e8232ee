"""Forward passes: from a batch to the log-probabilities, entropies, values and scores that algorithms use.

Only this module and `packing` handle logits, padding sides and positions. A model prepared for layouts (`attention`)
runs on packed tokens, which gives the same numbers as the plain path up to rounding.
"""

from typing import TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.maths.losses import exact_kl, token_entropies, token_logprobs
from rlhf_core.models.attention import has_layouts, hidden_states
from rlhf_core.models.ensembles import ScalarEnsemble
from rlhf_core.models.head import Entropy, kl_of_states, logprobs_and_entropies
from rlhf_core.models.packing import Packed, pack
from rlhf_core.models.precision import compute
from rlhf_core.models.store import ScalarModel


def position_ids(attention_mask: Tensor) -> Tensor:
    """Return positions 0, 1, 2, ... of the real tokens, independent of padding, (B, P+R).

    Otherwise a left-padded row would get shifted positions and, with learned positions, other log-probabilities.
    """
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def response_logits(policy: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the logits that predict the response tokens, (B, R, V). The head runs only on response positions."""
    keep = batch.response_length + 1
    logits = policy(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=position_ids(batch.attention_mask),
        logits_to_keep=keep,
        use_cache=False,
    ).logits
    # The logits at position t predict token t + 1. An architecture that ignores logits_to_keep returns all P+R.
    return logits[:, -keep:-1]


def policy_outputs(
    policy: PreTrainedModel,
    batch: Batch,
    *,
    temperature: float = 1.0,
    entropy: Entropy | None = None,
    reference: PreTrainedModel | None = None,
) -> Outputs:
    """Return the log-probabilities of the response tokens and optional quantities, 0 outside the mask.

    entropy: add entropies, with or without gradient. reference: add the exact KL to this model at each state, with
    gradient.
    """
    if has_layouts(policy) and (reference is None or has_layouts(reference)):
        return _packed_outputs(policy, batch, temperature, entropy, reference)
    logits = response_logits(policy, batch)
    computed = {"logprobs": token_logprobs(logits, batch.response_ids, temperature)}
    if entropy is not None:
        computed["entropies"] = token_entropies(logits if entropy == "gradient" else logits.detach(), temperature)
    if reference is not None:
        with torch.no_grad():
            ref_logits = response_logits(reference, batch)
        computed["exact_kl"] = exact_kl(logits, ref_logits, temperature)
    outside = batch.response_mask == 0
    return Outputs.of(batch, **{name: value.masked_fill(outside, 0.0) for name, value in computed.items()})


def _packed_outputs(
    policy: PreTrainedModel,
    batch: Batch,
    temperature: float,
    entropy: Entropy | None,
    reference: PreTrainedModel | None,
) -> Outputs:
    packed, inside = pack(batch), batch.response_mask > 0
    before, ids = packed.before[inside], batch.response_ids[inside]

    states = _states(policy, packed).index_select(0, before)
    with compute(policy):
        logprobs, entropies = logprobs_and_entropies(policy, states, ids, temperature, entropy)
        computed = {"logprobs": logprobs}
        if entropies is not None:
            computed["entropies"] = entropies
        if reference is not None:
            with torch.no_grad():
                ref_states = _states(reference, packed).index_select(0, before)
            computed["exact_kl"] = kl_of_states(policy, states, reference, ref_states, temperature)
    return Outputs.of(batch, **{name: _spread(value, inside) for name, value in computed.items()})


def _states(model: PreTrainedModel, packed: Packed) -> Tensor:
    """The last hidden states of the packed tokens, (T, d)."""
    with compute(model):
        return hidden_states(model, packed.ids, packed.positions, packed.layout)[0]


def _spread(values: Tensor, inside: Tensor) -> Tensor:
    """Put one value per response token into a rectangle, 0 outside the mask, (S,) -> (B, R)."""
    return values.new_zeros(inside.shape).masked_scatter(inside, values)


@torch.no_grad()
def response_logprobs(policy: PreTrainedModel, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """Return the log-probabilities of the response tokens without gradient, (B, R)."""
    return policy_outputs(policy, batch, temperature=temperature).logprobs


@torch.no_grad()
def response_kl(
    policy: PreTrainedModel, reference: PreTrainedModel, batch: Batch, *, temperature: float = 1.0
) -> Tensor:
    """Return KL(π_θ ‖ π_ref) at each response position, summed over the vocabulary, 0 outside the mask, (B, R).

    The logits of both models are divided by `temperature`. Its sum over a response sampled from π_θ at that temperature
    is an unbiased, non-negative estimate of the KL per response.
    """
    return policy_outputs(policy, batch, temperature=temperature, reference=reference).exact_kl


def _scalars(model: nn.Module, batch: Batch) -> Tensor:
    """Return one scalar per column, (B, P+R)."""
    scalars: Tensor = model(batch.input_ids, batch.attention_mask, position_ids(batch.attention_mask))
    return scalars


def values(critic: nn.Module, batch: Batch) -> Tensor:
    """Return V(s_t) before each response token, (B, R), 0 outside the mask. s_t ends one column before a_t."""
    if _takes_packed(critic):
        packed, inside = pack(batch), batch.response_mask > 0
        return _spread(_packed_scalars(critic, packed, packed.before[inside]), inside)
    columns = _scalars(critic, batch)[:, -batch.response_length - 1 : -1]
    return columns.masked_fill(batch.response_mask == 0, 0.0)


def scores(reward_model: nn.Module, batch: Batch) -> Tensor:
    """Return r(x, y), read at the last real token of each row, never at a pad or at the first end token, (B,)."""
    if _takes_packed(reward_model):
        packed = pack(batch)
        return _packed_scalars(reward_model, packed, packed.last)
    width = batch.attention_mask.shape[1]
    columns = torch.arange(width, device=batch.attention_mask.device)
    last = (columns * batch.attention_mask).argmax(-1, keepdim=True)
    return _scalars(reward_model, batch).gather(-1, last).squeeze(-1)


def score_outputs(reward_model: nn.Module, batch: Batch) -> Outputs:
    """Return the forward pass that reward-model losses use."""
    return Outputs.of(batch, scores=scores(reward_model, batch))


def _takes_packed(model: nn.Module) -> TypeGuard[ScalarModel | ScalarEnsemble]:
    return isinstance(model, ScalarModel | ScalarEnsemble) and model.has_layouts


def _packed_scalars(model: ScalarModel | ScalarEnsemble, packed: Packed, tokens: Tensor) -> Tensor:
    """The scalars at the given tokens, (S,)."""
    return model.scalars(lambda one: _states(one, packed).index_select(0, tokens))
