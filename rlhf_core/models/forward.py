"""Forward passes: from a batch to the log-probabilities, entropies, values and scores that algorithms use.

Only this module handles logits, padding sides and positions.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.maths.losses import exact_kl, token_entropies, token_logprobs


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
    entropy: bool = False,
    reference: PreTrainedModel | None = None,
) -> Outputs:
    """Return the log-probabilities of the response tokens and optional quantities, 0 outside the mask.

    entropy: add entropies. reference: add the exact KL to this model at each state, with gradient.
    """
    logits = response_logits(policy, batch)
    outside = batch.response_mask == 0
    computed = {"logprobs": token_logprobs(logits, batch.response_ids, temperature)}
    if entropy:
        computed["entropies"] = token_entropies(logits, temperature)
    if reference is not None:
        with torch.no_grad():
            ref_logits = response_logits(reference, batch)
        computed["exact_kl"] = exact_kl(logits, ref_logits, temperature)
    return Outputs.of(batch, **{name: value.masked_fill(outside, 0.0) for name, value in computed.items()})


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
    kl = exact_kl(response_logits(policy, batch), response_logits(reference, batch), temperature)
    return kl.masked_fill(batch.response_mask == 0, 0.0)


def _scalars(model: nn.Module, batch: Batch) -> Tensor:
    """Return one scalar per column, (B, P+R)."""
    scalars: Tensor = model(batch.input_ids, batch.attention_mask, position_ids(batch.attention_mask))
    return scalars


def values(critic: nn.Module, batch: Batch) -> Tensor:
    """Return V(s_t) before each response token, (B, R), 0 outside the mask. s_t ends one column before a_t."""
    columns = _scalars(critic, batch)[:, -batch.response_length - 1 : -1]
    return columns.masked_fill(batch.response_mask == 0, 0.0)


def scores(reward_model: nn.Module, batch: Batch) -> Tensor:
    """Return r(x, y), read at the last real token of each row, never at a pad or at the first end token, (B,)."""
    width = batch.attention_mask.shape[1]
    columns = torch.arange(width, device=batch.attention_mask.device)
    last = (columns * batch.attention_mask).argmax(-1, keepdim=True)
    return _scalars(reward_model, batch).gather(-1, last).squeeze(-1)


def score_outputs(reward_model: nn.Module, batch: Batch) -> Outputs:
    """Return the forward pass that reward-model losses use."""
    return Outputs.of(batch, scores=scores(reward_model, batch))
