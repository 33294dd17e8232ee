"""Best-of-N sampling: sample N responses per prompt and keep the one with the highest reward."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.common.responses import Response
from rlhf_core.models.responses import Responses
from rlhf_core.models.sampling import Sampler
from rlhf_core.models.tokens import Prompt
from rlhf_core.scoring.rewards import WeightedSum
from tasks.common.sampling import sample_responses

BEST_OF_N = "best_of_n.json"  # in the folder of a policy without weights: the policy to sample from, and N


def best_of_n(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    reward: WeightedSum,
    count: int,
    stream: tuple[int, str],
) -> tuple[list[Response], int]:
    """Return the best of `count` responses to each prompt (the first if tied), and the number of sampled tokens."""
    repeated = [prompt for prompt in prompts for _ in range(count)]
    responses = sample_responses(policy, tokenizer, repeated, sampler, stream)
    total, _ = reward(Responses(repeated, responses, tokenizer.pad_token_id, policy.device))
    best = total.view(-1, count).argmax(-1).tolist()
    kept = [responses[row * count + choice] for row, choice in enumerate(best)]
    return kept, sum(len(response.ids) for response in responses)
