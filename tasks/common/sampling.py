"""Sampling whole sets of prompts in a stage, with a random stream of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.common.seeding import seed_everything
from rlhf_core.models.sampling import Sampler
from rlhf_core.models.store import stop_tokens
from rlhf_core.models.tokens import Prompt, decode_response
from tasks.runtime.progress import progress


@dataclass(frozen=True)
class Response:
    """A sampled response: its ids, whether it ended, and its text."""

    ids: list[int]
    ended: bool
    text: str


def make_sampler(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float
) -> Sampler:
    """A sampler that knows the policy's stop tokens."""
    return Sampler(max_new_tokens, stop_tokens(policy, tokenizer), tokenizer.pad_token_id, temperature)


def sample_responses(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    stream: tuple[int, str],
) -> list[Response]:
    """One response per prompt, drawn from the stream (run seed, name)."""
    seed_everything(*stream)
    policy.eval()
    with progress(f"sampling {stream[1]}", len(prompts)) as report:
        drawn = sampler.responses(policy, [prompt.ids for prompt in prompts], report)
    return [Response(ids, sampler.ended(ids), decode_response(tokenizer, ids)) for ids in drawn]
