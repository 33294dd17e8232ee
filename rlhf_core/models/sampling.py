"""Sampling responses from a policy, as token ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from rlhf_core.common.batch import Batch, Example, collate
from rlhf_core.common.errors import UserError


@dataclass(frozen=True)
class Sampler:
    """How responses are drawn: temperature sampling from the whole vocabulary.

    Truncation (top-k, top-p) is left out on purpose: under a KL penalty it makes the KL estimate negative
    (docs/pitfalls.md, 29). `temperature` 0 takes the most likely token.
    """

    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    pad_token: int
    temperature: float = 1.0
    rows: int = 128  # rows per call of generate

    @torch.no_grad()
    def responses(
        self,
        policy: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        report: Callable[[int], None] = lambda count: None,
    ) -> list[list[int]]:
        """One response per prompt, its end token included where it ended. Draws from torch's global generator.

        report(count): called whenever `count` more responses are there.

        Raises:
            UserError: if prompt and response would not fit into the model's context.
        """
        drawn: list[list[int]] = []
        for start in range(0, len(prompts), self.rows):
            drawn += self._generate(policy, prompts[start : start + self.rows])
            report(len(drawn) - start)
        return drawn

    def ended(self, response: Sequence[int]) -> bool:
        """Whether a response holds an end token, any of them."""
        return response[-1] in self.stop_tokens

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


def sampled_batch(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_token: int
) -> tuple[Batch, Tensor]:
    """Prompts and their responses as a Batch of the very ids that were sampled, and their lengths (B,)."""
    batch = collate([Example(p, r) for p, r in zip(prompts, responses, strict=True)], pad_token)
    return batch, batch.lengths
