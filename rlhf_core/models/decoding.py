"""Decoding of models with layouts (attention.py): each distinct prompt is read once, and finished rows are removed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_core.models.attention import hidden_states
from rlhf_core.models.cache import PromptLayout, RowLayout
from rlhf_core.models.drawing import Draws
from rlhf_core.models.linear import Linear
from rlhf_core.models.precision import compute
from rlhf_core.models.steps import Step

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
    with compute(policy):
        model = Step(policy)
        logits, layout, lengths = _read_prompts(policy, model.head, distinct, prompt_of, longest)
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
            logits = model.logits(tokens, positions + step, layout)


def _read_prompts(
    policy: PreTrainedModel, head: Linear, prompts: Sequence[Sequence[int]], prompt_of: Tensor, longest: int
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
    logits = head(last).index_select(0, prompt_of)
    return logits, RowLayout(layout, lengths, prompt_of.bincount().tolist(), longest), lengths
