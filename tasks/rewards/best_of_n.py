"""Best-of-N sampling: N responses per prompt, of which the one with the highest reward is kept."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.models.sampling import Sampler, sampled_batch
from rlhf_core.models.tokens import Prompt
from rlhf_core.scoring.rewards import Sampled, WeightedSum
from tasks.common.sampling import Response, sample_responses

BEST_OF_N = "best_of_n.json"  # stands in a policy's folder that holds no weights: which policy, and N


def best_of_n(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    reward: WeightedSum,
    count: int,
    stream: tuple[int, str],
) -> tuple[list[Response], int]:
    """The best of `count` responses to each prompt (of equals the first), and how many tokens were sampled."""
    repeated = [prompt for prompt in prompts for _ in range(count)]
    responses = sample_responses(policy, tokenizer, repeated, sampler, stream)
    batch, _ = sampled_batch([p.ids for p in repeated], [r.ids for r in responses], sampler.pad_token)
    ended = torch.tensor([response.ended for response in responses], device=policy.device)
    texts = [response.text for response in responses]
    total, _ = reward(Sampled(batch.to(policy.device), ended, repeated, texts))
    best = total.view(-1, count).argmax(-1).tolist()
    kept = [responses[row * count + choice] for row, choice in enumerate(best)]
    return kept, sum(len(response.ids) for response in responses)
