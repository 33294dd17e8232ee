"""Sample a policy's responses for evaluation, and measure the policy's KL to the SFT model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.common.responses import Response
from rlhf_core.maths.reductions import sequence_sum
from rlhf_core.models.forward import response_kl, response_logprobs
from rlhf_core.models.responses import Responses
from rlhf_core.models.sampling import LocalSampler, Sampler
from rlhf_core.models.store import own_temperature
from rlhf_core.models.tokens import Prompt, decode_response, encode_response
from rlhf_core.scoring.rewards import WeightedSum
from tasks.common.models import StageModels
from tasks.common.sampling import make_sampler, sample_responses
from tasks.params.schema import Params
from tasks.rewards.best_of_n import BEST_OF_N, best_of_n
from tasks.rewards.terms import make_reward

ROWS = 128  # rows of one forward pass without gradients; even, so that no pair is split between two passes


@dataclass(frozen=True)
class PolicySample:
    """One policy's responses to a set of prompts.

    temperature: of the sampling. kl: (n,), nats per response against the SFT model, both at `kl_temperature`. For
    best-of-N sampling it is the upper bound, and `kl_is_bound` is True.
    """

    responses: Responses
    temperature: float
    kl: Tensor
    kl_temperature: float
    kl_is_bound: bool = False


class PolicySampler:
    """Sample the policies under evaluation, each from a separate random stream."""

    def __init__(
        self, params: Params, models: StageModels, tokenizer: PreTrainedTokenizerBase, reward: WeightedSum | None
    ) -> None:
        """`reward`: policy.rewards, by which best-of-N sampling selects; None if it cannot be computed."""
        self.params, self.models, self.tokenizer, self.reward = params, models, tokenizer, reward
        self.accelerator = models.accelerator
        self.reference = self.accelerator.prepare_model(models.reference(), evaluation_mode=True)

    @torch.no_grad()
    def sample(self, folder: Path, prompts: Sequence[Prompt], stream: str) -> PolicySample:
        """Sample a policy's responses, and measure its KL to the SFT model at the policy's own temperature.

        The sampling temperature is evaluate.temperature, or if null the policy's own, from its generation config. The
        KL compares distributions at the policy's own temperature. If the two temperatures differ, or evaluate.top_k,
        top_p or stop_strings truncate responses, the KL is measured on a second sample. Best-of-N sampling has no
        log-probabilities, so its KL is the upper bound.
        """
        manifest = folder / BEST_OF_N
        if manifest.is_file():
            return self._best_of_n(json.loads(manifest.read_text(encoding="utf-8")), prompts, stream)
        policy = self.accelerator.prepare_model(self.models.checkpoint(folder), evaluation_mode=True)
        own, sampler = own_temperature(policy), self._judged(policy)
        responses = measured = self._sample(policy, prompts, sampler, stream)
        if sampler.truncates or sampler.temperature != own:
            measured = self._sample(policy, prompts, self._sampler(policy, own), f"{stream}/kl")
        return PolicySample(responses, sampler.temperature, self._kl(policy, measured, own), own)

    def _best_of_n(self, chosen: Mapping[str, Any], prompts: Sequence[Prompt], stream: str) -> PolicySample:
        """Return the best of N samples of the SFT model, by the reward that policies are optimised for."""
        sampler = self._judged(self.reference)
        reward = self.reward or make_reward(self.params, self.models, ROWS)  # raises an error with the reason
        best, _ = best_of_n(
            self.reference, self.tokenizer, prompts, sampler, reward, chosen["best_of"], self._stream(stream)
        )
        bound = torch.full((len(prompts),), chosen["kl_bound"])
        own = sampler.temperature
        return PolicySample(self._rows(prompts, best), own, bound, own, kl_is_bound=True)

    def _sample(self, policy: PreTrainedModel, prompts: Sequence[Prompt], sampler: Sampler, stream: str) -> Responses:
        responses = sample_responses(policy, self.tokenizer, prompts, sampler, self._stream(stream))
        return self._rows(prompts, [self._without_stop_string(response) for response in responses])

    def _without_stop_string(self, response: Response) -> Response:
        """A response that a stop string ended, as if it had ended before it: judges must not read the string."""
        if decode_response(self.tokenizer, response.ids) == response.text:
            return response
        return Response(encode_response(self.tokenizer, response.text), response.text, ended=True)

    def _kl(self, policy: PreTrainedModel, responses: Responses, temperature: float) -> Tensor:
        """KL(π_θ ‖ π_SFT) along each response, (n,)."""
        parts = []
        for start in range(0, len(responses), ROWS):
            part = responses.batch.select(slice(start, start + ROWS))
            tokens = response_kl(policy, self.reference, part, temperature=temperature)
            parts.append(sequence_sum(tokens, part.response_mask))
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def perplexities(self, responses: Responses) -> list[float]:
        """The perplexity of each response under the SFT model: exp of its mean negative log-probability."""
        found: list[float] = []
        for start in range(0, len(responses), ROWS):
            part = responses.batch.select(slice(start, start + ROWS))
            total = sequence_sum(response_logprobs(self.reference, part), part.response_mask)
            found += (-total / part.lengths).exp().tolist()
        return found

    def _judged(self, policy: PreTrainedModel) -> Sampler:
        """The sampler of a policy's judged responses."""
        chosen = self.params.evaluate
        temperature = own_temperature(policy) if chosen.temperature is None else chosen.temperature
        return replace(
            self._sampler(policy, temperature),
            top_k=chosen.top_k,
            top_p=chosen.top_p,
            stop_strings=tuple(chosen.stop_strings),
        )

    def _sampler(self, policy: PreTrainedModel, temperature: float) -> LocalSampler:
        return make_sampler(policy, self.tokenizer, self.params.prepare.max_response_tokens, temperature)

    def _stream(self, name: str) -> tuple[int, str]:
        return self.params.run.seed, f"evaluate/{name}"

    def _rows(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> Responses:
        return Responses(prompts, responses, self.tokenizer.pad_token_id, self.accelerator.device)
