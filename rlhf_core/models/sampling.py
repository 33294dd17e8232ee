"""Sampling responses from a policy: the protocol, and its implementation in this process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from rlhf_core.common.errors import UserError
from rlhf_core.common.responses import Response
from rlhf_core.models.attention import has_layouts
from rlhf_core.models.decoding import decode
from rlhf_core.models.drawing import Distribution, Drawn, Draws, Ends, left_padded
from rlhf_core.models.precision import compute
from rlhf_core.models.tokens import Prompt, decode_response


def no_report(count: int) -> None:
    """Do not report."""


class Sampler(Protocol):
    """Samples responses from a policy. Loops and stages use only this interface."""

    @property
    def temperature(self) -> float:
        """The divisor of the logits; 0 always takes the most likely token."""
        ...

    @property
    def truncates(self) -> bool:
        """Whether responses follow another distribution than the policy's (docs/pitfalls.md, 29)."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether it runs the policy itself, so that its log-probabilities are those of the policy."""
        ...

    def responses(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        report: Callable[[int], None] = no_report,
    ) -> list[Response]:
        """One response per prompt, sampled from the policy with its current weights.

        seeds: one per prompt. A response depends only on the weights, its prompt and its seed, up to rounding.
        report(count): called each time that `count` more responses are ready.

        Raises:
            UserError: a prompt and its response do not fit into the model's context.
        """
        ...


@dataclass(frozen=True)
class LocalSampler:
    """A Sampler in this process. Models with layouts (attention.py) take a fast path; others take `generate`.

    Both paths draw equal tokens from equal logits. The model's own generation config is ignored.

    top_k, top_p, stop_strings: only for chat and evaluation, because truncation can make the estimate of the KL
    penalty negative (docs/pitfalls.md, 29). A response ends with the token that completes a stop string; its text ends
    before the string.
    logits_processors: for benchmarks that force lengths. They see all rows of a call, at most `rows`, in order: the
    logits, and the ids including the prompts, padded on the left. Log-probabilities do not include their changes.
    """

    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    pad_token: int
    temperature: float = 1.0
    rows: int = 128  # rows that are sampled together
    top_k: int = 0
    top_p: float = 1.0
    stop_strings: tuple[str, ...] = ()
    logits_processors: LogitsProcessorList | None = None

    @property
    def truncates(self) -> bool:
        """Whether the distribution is truncated or responses end at stop strings."""
        return self._distribution.truncates or bool(self.stop_strings)

    @property
    def is_local(self) -> bool:
        """True."""
        return True

    def responses(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        report: Callable[[int], None] = no_report,
    ) -> list[Response]:
        """One response per prompt; see `Sampler`."""
        ends = Ends(self.stop_tokens, partial(self._has_stop_string, tokenizer) if self.stop_strings else None)
        drawn = self._in_parts(policy, [prompt.ids for prompt in prompts], seeds, ends, report)
        return [
            Response(one.ids, self._text(tokenizer, one.ids), one.ended, one.logprobs if self.temperature else None)
            for one in drawn
        ]

    def token_ids(
        self, policy: PreTrainedModel, prompts: Sequence[Sequence[int]], seeds: Sequence[int]
    ) -> list[list[int]]:
        """The token ids of one response per prompt, including the end token if the response ended."""
        drawn = self._in_parts(policy, prompts, seeds, Ends(self.stop_tokens), no_report)
        return [one.ids for one in drawn]

    def _in_parts(
        self,
        policy: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        ends: Ends,
        report: Callable[[int], None],
    ) -> list[Drawn]:
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts have {len(seeds)} seeds")
        drawn: list[Drawn] = []
        for start in range(0, len(prompts), self.rows):
            part = slice(start, start + self.rows)
            drawn += self._draw(policy, prompts[part], seeds[part], ends)
            report(len(drawn) - start)
        return drawn

    @property
    def _distribution(self) -> Distribution:
        return Distribution(self.temperature, self.top_k, self.top_p)

    def _has_stop_string(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
        text = decode_response(tokenizer, ids)
        return any(stop in text for stop in self.stop_strings)

    def _text(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
        text = decode_response(tokenizer, ids)
        found = [place for place in map(text.find, self.stop_strings) if place >= 0]
        return text[: min(found)].strip() if found else text

    def _draw(
        self,
        policy: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        ends: Ends,
    ) -> list[Drawn]:
        width = max(len(prompt) for prompt in prompts)
        context = getattr(policy.config, "max_position_embeddings", None)
        if context is not None and width + self.max_new_tokens > context:
            raise UserError(
                f"a prompt of {width} tokens and {self.max_new_tokens} new tokens exceed the model's context of "
                f"{context} tokens. Lower prepare.max_response_tokens or prepare.max_prompt_tokens."
            )
        ids = left_padded(prompts, self.pad_token).to(policy.device)
        draws = Draws(ids, seeds, self.max_new_tokens, self._distribution, ends, self.logits_processors)
        if has_layouts(policy):
            decode(policy, prompts, self.max_new_tokens, draws)
        else:
            mask = left_padded([[1] * len(prompt) for prompt in prompts], 0).to(policy.device)
            self._generate(policy, ids, mask, draws)
        return draws.results()

    @torch.no_grad()
    def _generate(self, policy: PreTrainedModel, ids: Tensor, mask: Tensor, draws: Draws) -> None:
        """Draw with transformers' `generate`, whose greedy choice is the token that `draws` has drawn."""
        config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            eos_token_id=list(self.stop_tokens),
            pad_token_id=self.pad_token,
            do_sample=False,
        )
        chosen = _Chosen(draws)
        # generate takes values that our config does not set from the model's own generation config (a repetition
        # penalty, a minimum length). The samples would then not follow the log-probabilities.
        own, policy.generation_config = policy.generation_config, GenerationConfig()
        generate: Any = policy.generate  # untyped in transformers
        try:
            with compute(policy):
                generate(
                    ids,
                    attention_mask=mask,
                    generation_config=config,
                    logits_processor=LogitsProcessorList([chosen]),
                    stopping_criteria=StoppingCriteriaList([_Ended(chosen)]),
                )
        finally:
            policy.generation_config = own


class _Chosen(LogitsProcessor):
    """Leaves only the drawn token possible in each row."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws
        self.ends: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: (B, P + t); scores: (B, V)."""
        rows = torch.arange(len(scores), device=scores.device)
        tokens, ends = self.draws.draw(scores, rows)
        self.ends = ends if self.ends is None else self.ends | ends
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class _Ended(StoppingCriteria):
    """Tells `generate` which rows have ended."""

    def __init__(self, chosen: _Chosen) -> None:
        self.chosen = chosen

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Both arguments are unused."""
        assert self.chosen.ends is not None
        return self.chosen.ends
