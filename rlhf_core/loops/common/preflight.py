"""Checks of the user's model and data before training starts. They find silent faults in seconds.

Each check uses a few real rows and raises UserError with the fault, the row and the fix. No check changes a model. The
caller must preserve the state of the random streams.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_core.common.batch import Batch, Example, collate
from rlhf_core.common.errors import UserError
from rlhf_core.models.attention import has_layouts, without_layouts
from rlhf_core.models.forward import policy_outputs, response_logprobs, scores
from rlhf_core.models.precision import is_exact

# Largest difference of a log-probability or a score that rounding can explain.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.15}


def check_padding(policy: PreTrainedModel, examples: Sequence[Example], pad_token: int, tolerance: float) -> None:
    """Check that log-probabilities are the same for a row alone and in a padded batch (docs/pitfalls.md, 1)."""
    with without_layouts(policy):
        together = _logprobs(policy, examples, pad_token)
        alone = [_logprobs(policy, [example], pad_token)[0] for example in examples]
    for row, single in enumerate(alone):
        gap = (together[row, : len(single)] - single).abs().max().item()
        if not gap <= tolerance:
            raise UserError(
                f"row {row}: a log-probability differs by {gap:.2g} between the row alone and in a padded batch. "
                "The model ignores the attention mask or position ids. Use another model."
            )


def check_fast_path(policy: PreTrainedModel, examples: Sequence[Example], pad_token: int) -> None:
    """Check that packed rows give the log-probabilities and the gradient of the plain path.

    The largest difference of a log-probability is 1e-5, that of the gradient 1e-5 of its norm; both are 0.1 for a model
    that computes in bf16. A model without a fast path passes.
    """
    if not has_layouts(policy):
        return
    fast = _logprobs_and_gradient(policy, examples, pad_token)
    with without_layouts(policy):
        plain = _logprobs_and_gradient(policy, examples, pad_token)
    gap = (fast[0] - plain[0]).abs().max().item()
    slope = ((fast[1] - plain[1]).norm() / plain[1].norm()).item()
    limit = 1e-5 if is_exact(policy) else 0.1
    if not (gap <= limit and slope <= limit):
        raise UserError(
            f"the fast path differs from the plain path by {gap:.2g} in a log-probability and by {slope:.2g} of the "
            "norm of the gradient. Set model.fast to false."
        )


def _logprobs_and_gradient(
    policy: PreTrainedModel, examples: Sequence[Example], pad_token: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and the gradient of their mean for the first two and the last two weights, as one vector."""
    batch = collate(examples, pad_token).to(policy.device)
    weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    trained = weights if len(weights) < 4 else [*weights[:2], *weights[-2:]]
    logprobs = policy_outputs(policy, batch).logprobs
    gradients = torch.autograd.grad(logprobs.sum() / batch.response_mask.sum(), trained)
    return logprobs.detach(), torch.cat([gradient.flatten().float() for gradient in gradients])


def check_masks(examples: Sequence[Example]) -> None:
    """Check that every row has prompt and response tokens: no response mask is full or empty (docs/pitfalls.md, 5)."""
    for row, example in enumerate(examples):
        prompt, response = len(example.prompt_ids), len(example.response_ids)
        if not prompt or not response:
            raise UserError(
                f"row {row} has {prompt} prompt tokens and {response} response tokens. Drop it from the data."
            )


def check_beginning(
    rows: Sequence[Sequence[int]], beginning: int | None, end: int, *, begins_turns: bool = False
) -> None:
    """Check that each row of ids has at most one beginning token, at the start (docs/pitfalls.md, 4).

    begins_turns: the chat template writes the token at the start of every turn, as ChatML's `<|im_start|>`. Then only
    two in a row are one too many.
    """
    if beginning is None or beginning == end:
        return
    for row, ids in enumerate(rows):
        places = [place for place, token in enumerate(ids) if token == beginning]
        doubled = any(second == first + 1 for first, second in pairwise(places))
        if doubled or (places and places[0] > 0) or (len(places) > 1 and not begins_turns):
            raise UserError(
                f"row {row} has {len(places)} beginning tokens (id {beginning}), at {places}; only one at the start is "
                "allowed. Remove bos_token from the tokenizer's chat template."
            )


def check_end(examples: Sequence[Example], stop_tokens: Sequence[int], pad_token: int) -> None:
    """Check that every response ends with an end token that is not the pad token (docs/pitfalls.md, 3)."""
    if pad_token in stop_tokens and len(set(stop_tokens)) == 1:
        raise UserError(
            f"the pad token and the only end token have the same id {pad_token}. "
            "Set a separate pad token in the tokenizer."
        )
    for row, example in enumerate(examples):
        if example.response_ids[-1] not in stop_tokens:
            raise UserError(
                f"row {row}: the response ends with token {example.response_ids[-1]}, not with an end token "
                f"({', '.join(map(str, stop_tokens))}). Set the tokenizer's eos_token to the one in its template."
            )


def check_ratio(policy: PreTrainedModel, sampled: Batch, temperature: float, tolerance: float) -> None:
    """Check that the ratio of sampled tokens is 1 before the first update, in eval and train mode.

    See docs/pitfalls.md, 9 and 10.
    """
    sampled = sampled.to(policy.device)
    policy.eval()
    old = response_logprobs(policy, sampled, temperature=temperature)
    policy.train()
    new = response_logprobs(policy, sampled, temperature=temperature)
    policy.eval()
    gap, row = (new - old).abs().amax(-1).max(0)
    if not gap.item() <= tolerance:
        raise UserError(
            f"row {row.item()}: log-probabilities of sampled tokens differ by {gap.item():.2g} between train and eval "
            "mode, so the ratio is not 1 before the first update. Set every dropout in config.json to 0."
        )


def check_reference(
    policy: PreTrainedModel, reference: PreTrainedModel, examples: Sequence[Example], pad_token: int, tolerance: float
) -> None:
    """Check that policy and reference are the same model at the start, with no KL between them."""
    gap = (_logprobs(policy, examples, pad_token) - _logprobs(reference, examples, pad_token)).abs().max().item()
    if not gap <= tolerance:
        raise UserError(
            f"policy and reference differ by {gap:.2g} in a log-probability at the start. "
            "Both must be models/sft. Train it again with: dvc repro sft"
        )


def check_scores(reward_model: nn.Module, examples: Sequence[Example], pad_token: int, tolerance: float) -> None:
    """Check that a score is the same for a row alone and in a batch, so that it is read at the last real token.

    See docs/pitfalls.md, 7 and 27.
    """
    with without_layouts(reward_model):
        together = _scores(reward_model, examples, pad_token)
        alone = [_scores(reward_model, [example], pad_token)[0] for example in examples]
    for row, single in enumerate(alone):
        gap = (together[row] - single).abs().item()
        if not gap <= tolerance:
            raise UserError(
                f"row {row}: the reward model's score differs by {gap:.2g} between the row alone and in a batch. "
                "The model reads a pad token or ignores the attention mask. Use another model."
            )


def check_learning_rate(model: nn.Module, learning_rate: float) -> None:
    """Check that a step of the learning rate changes most weights despite rounding (docs/pitfalls.md, 24)."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dim() > 1:
            # AdamW's first step moves each weight by the learning rate, independent of its gradient.
            moved = (parameter.detach() - learning_rate != parameter.detach()).float().mean().item()
            if moved < 0.5:
                raise UserError(
                    f"a step of learning_rate {learning_rate:g} leaves {1 - moved:.0%} of {name} ({parameter.dtype}) "
                    "unchanged. Raise learning_rate."
                )


@torch.no_grad()
def _scores(reward_model: nn.Module, examples: Sequence[Example], pad_token: int) -> Tensor:
    return scores(reward_model, collate(examples, pad_token).to(next(reward_model.parameters()).device))


def _logprobs(policy: PreTrainedModel, examples: Sequence[Example], pad_token: int) -> Tensor:
    return response_logprobs(policy, collate(examples, pad_token).to(policy.device))
