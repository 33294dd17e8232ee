"""Sampling responses from a policy: the protocol, and an implementation with transformers' `generate`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.common.errors import UserError
from rlhf_core.common.responses import Response
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
    def is_local(self) -> bool:
        """Whether it runs the policy itself, so that its log-probabilities are those of the policy."""
        ...

    def responses(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        report: Callable[[int], None] = no_report,
    ) -> list[Response]:
        """One response per prompt, sampled from the policy with its current weights.

        report(count): called each time that `count` more responses are ready.

        Raises:
            UserError: a prompt and its response do not fit into the model's context.
        """
        ...


@dataclass(frozen=True)
class LocalSampler:
    """A Sampler in this process that uses transformers' `generate` and torch's global generator.

    It samples from the whole vocabulary. There is no truncation (top-k, top-p), because truncation can make the
    estimate of the KL penalty negative (docs/pitfalls.md, 29).
    """

    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    pad_token: int
    temperature: float = 1.0
    rows: int = 128  # rows per call of generate

    @property
    def is_local(self) -> bool:
        """True."""
        return True

    def responses(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        report: Callable[[int], None] = no_report,
    ) -> list[Response]:
        """One response per prompt; see `Sampler`."""
        drawn = self.token_ids(policy, [prompt.ids for prompt in prompts], report)
        return [Response(ids, decode_response(tokenizer, ids), self.ended(ids)) for ids in drawn]

    @torch.no_grad()
    def token_ids(
        self,
        policy: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        report: Callable[[int], None] = no_report,
    ) -> list[list[int]]:
        """The token ids of one response per prompt, including the end token if the response ended."""
        drawn: list[list[int]] = []
        for start in range(0, len(prompts), self.rows):
            drawn += self._generate(policy, prompts[start : start + self.rows])
            report(len(drawn) - start)
        return drawn

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether a response ends with one of the end tokens."""
        return ids[-1] in self.stop_tokens

    def _generate(self, policy: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        width = max(len(prompt) for prompt in prompts)
        context = getattr(policy.config, "max_position_embeddings", None)
        if context is not None and width + self.max_new_tokens > context:
            raise UserError(
                f"a prompt of {width} tokens and {self.max_new_tokens} new tokens exceed the model's context of "
                f"{context} tokens. Lower prepare.max_response_tokens or prepare.max_prompt_tokens."
            )
        device = policy.device
        input_ids = torch.full((len(prompts), width), self.pad_token)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            attention_mask[row, width - len(prompt) :] = 1
        # generate takes values that our config does not set from the model's own generation config (a repetition
        # penalty, a minimum length). The samples would then not follow the log-probabilities.
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
        """The ids up to and including the first end token; padding follows it."""
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
