"""Sampling responses from a policy: the protocol, and transformers' `generate` as its implementation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.common.errors import UserError
from rlhf_core.models.responses import Response
from rlhf_core.models.tokens import Prompt, decode_response


def no_report(count: int) -> None:
    """Report nothing."""


class Sampler(Protocol):
    """Anything that draws responses from a policy; loops and stages ask for no more than this."""

    @property
    def max_new_tokens(self) -> int:
        """The length limit: a response that has not ended by then is cut off."""
        ...

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The end tokens; any of them ends a response."""
        ...

    @property
    def temperature(self) -> float:
        """What the logits are divided by; 0 takes the most likely token."""
        ...

    def responses(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        report: Callable[[int], None] = no_report,
    ) -> list[Response]:
        """One response per prompt, drawn from the policy with the weights that it has at this call.

        report(count): called whenever `count` more responses are there.

        Raises:
            UserError: if prompt and response would not fit into the model's context.
        """
        ...


@dataclass(frozen=True)
class LocalSampler:
    """A Sampler in this process, by transformers' `generate`; draws from torch's global generator.

    Samples come from the whole vocabulary: truncation (top-k, top-p) is left out on purpose, because under a KL penalty
    it makes the KL estimate negative (docs/pitfalls.md, 29).
    """

    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    pad_token: int
    temperature: float = 1.0
    rows: int = 128  # rows per call of generate

    def responses(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        report: Callable[[int], None] = no_report,
    ) -> list[Response]:
        """One response per prompt, as in Sampler."""
        drawn = self.token_ids(policy, [prompt.ids for prompt in prompts], report)
        return [Response(ids, decode_response(tokenizer, ids), self.ended(ids)) for ids in drawn]

    @torch.no_grad()
    def token_ids(
        self,
        policy: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        report: Callable[[int], None] = no_report,
    ) -> list[list[int]]:
        """The same as ids alone: one response per prompt, its end token included where it ended."""
        drawn: list[list[int]] = []
        for start in range(0, len(prompts), self.rows):
            drawn += self._generate(policy, prompts[start : start + self.rows])
            report(len(drawn) - start)
        return drawn

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether a response ends with an end token, any of them."""
        return ids[-1] in self.stop_tokens

    def _generate(self, policy: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        width = max(len(prompt) for prompt in prompts)
        context = getattr(policy.config, "max_position_embeddings", None)
        if context is not None and width + self.max_new_tokens > context:
            raise UserError(
                f"a prompt of {width} tokens and {self.max_new_tokens} new ones exceed the model's context of "
                f"{context}. Lower prepare.max_response_tokens, or prepare.max_prompt_tokens."
            )
        device = policy.device
        input_ids = torch.full((len(prompts), width), self.pad_token)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            attention_mask[row, width - len(prompt) :] = 1
        # What the model's own generation config sets (a repetition penalty, a minimum length, ...) would fill in
        # whatever ours leaves open, and the samples would come from another distribution than the log-probabilities.
        own, policy.generation_config = policy.generation_config, GenerationConfig()
        generate: Any = policy.generate  # untyped in transformers
        try:
            sequences = generate(
                input_ids.to(device),
                attention_mask=attention_mask.to(device),
                generation_config=self._generation_config(),
            )
        finally:
            policy.generation_config = own
        return [self._until_end(row) for row in sequences[:, width:].tolist()]

    def _until_end(self, ids: list[int]) -> list[int]:
        """Cut behind the first stop token; what follows is padding."""
        for position, token in enumerate(ids):
            if token in self.stop_tokens:
                return ids[: position + 1]
        return ids

    def _generation_config(self) -> GenerationConfig:
        sampling = {"do_sample": False} if self.temperature == 0 else {
            "do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0,
        }  # fmt: skip
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            eos_token_id=list(self.stop_tokens),
            pad_token_id=self.pad_token,
            **sampling,
        )
