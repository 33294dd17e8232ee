"""Best-of-N sampling: N responses per prompt, of which the one with the highest reward is kept."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.models.responses import Response, Responses
from rlhf_core.models.sampling import Sampler
from rlhf_core.models.tokens import Prompt
from rlhf_core.scoring.rewards import WeightedSum
from tasks.common.sampling import sample_responses

BEST_OF_N = "best_of_n.json"  # in the folder of a policy without weights: which policy is sampled from, and N


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
    total, _ = reward(Responses(repeated, responses, tokenizer.pad_token_id, policy.device))
    best = total.view(-1, count).argmax(-1).tolist()
    kept = [responses[row * count + choice] for row, choice in enumerate(best)]
    return kept, sum(len(response.ids) for response in responses)
