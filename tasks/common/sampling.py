"""Sample responses to a set of prompts in a stage, from a named random stream."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.common.responses import Response
from rlhf_core.common.seeding import row_seeds
from rlhf_core.models.sampling import LocalSampler, Sampler
from rlhf_core.models.store import stop_tokens
from rlhf_core.models.tokens import Prompt
from tasks.runtime.progress import progress


def make_sampler(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float
) -> LocalSampler:
    """Return a sampler with the policy's stop tokens."""
    return LocalSampler(max_new_tokens, stop_tokens(policy, tokenizer), tokenizer.pad_token_id, temperature)


def sample_responses(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    stream: tuple[int, str],
) -> list[Response]:
    """Return one response per prompt, drawn from the stream (run seed, name)."""
    policy.eval()
    with progress(f"sampling {stream[1]}", len(prompts)) as report:
        return sampler.responses(policy, tokenizer, prompts, row_seeds(len(prompts), *stream), report)
