"""Drawing the tokens of responses from logits: the distribution, the ends, and what is recorded of each row."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from rlhf_core.common.errors import UserError
from rlhf_core.models.inverse_cdf import inverse_cdf, uniforms


@dataclass(frozen=True)
class Distribution:
    """The distribution from which tokens are drawn: temperature first, then the `top_k` best, then the mass `top_p`.

    temperature: divides the logits; 0 takes the most likely token. top_k 0 and top_p 1 truncate nothing.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def truncates(self) -> bool:
        """Whether some tokens can never be drawn."""
        return self.top_k > 0 or self.top_p < 1

    def draw(
        self, logits: Tensor, uniform: Tensor, process: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a token per row and its log-probability at this temperature before truncation, (B,) and (B,).

        logits: (B, V); the softmax is in float32, or float64 if the logits are. uniform: (B,), as in `inverse_cdf`.
        process: returns changed logits, which come before everything else; the log-probability does not include the
        change. At temperature 0, log-probabilities are those at temperature 1.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        tempered = logits if self.temperature in (0, 1) else logits / self.temperature
        if process is None and not self.truncates and self.temperature > 0:
            probabilities = tempered.softmax(-1)
            tokens = inverse_cdf(probabilities, uniform)
            return tokens, probabilities.gather(1, tokens[:, None])[:, 0].log()
        if process is None:
            changed = tempered
        else:
            changed = process(logits)
            changed = changed if self.temperature in (0, 1) else changed / self.temperature
        tokens = self._choose(changed, uniform)
        return tokens, tempered.log_softmax(-1).gather(1, tokens[:, None])[:, 0]

    def _choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        ids = torch.empty((len(logits), 0), dtype=torch.long)  # the warpers do not read it
        if self.top_k > 0:
            logits = TopKLogitsWarper(self.top_k)(ids, logits)
        if self.top_p < 1:
            logits = TopPLogitsWarper(self.top_p)(ids, logits)
        return inverse_cdf(logits.softmax(-1), uniform)


@dataclass(frozen=True)
class Drawn:
    """The tokens of one response through its end, and their log-probabilities (see `Distribution.draw`)."""

    ids: list[int]
    logprobs: list[float]
    ended: bool


@dataclass(frozen=True)
class Ends:
    """What ends a response: each of the stop tokens, and `in_text`, if given, of the ids of a response so far."""

    stop_tokens: tuple[int, ...]
    in_text: Callable[[Sequence[int]], bool] | None = None


class Draws:
    """The draws of one call, token by token, for B rows; finished rows may be left out.

    uniforms, tokens, logprobs: (longest, B). lengths: tokens through the end that `Ends.in_text` found, (B,), or
    longest + 1.
    """

    def __init__(
        self,
        prompts: Tensor,
        seeds: Sequence[int],
        longest: int,
        distribution: Distribution,
        ends: Ends,
        processors: LogitsProcessorList | None = None,
    ) -> None:
        """prompts: ids padded on the left, (B, P), on the device of the draws; only the processors read them."""
        self.prompts, self.distribution, self.ends, self.processors = prompts, distribution, ends, processors
        self.step = 0
        device, count = prompts.device, len(seeds)
        self.uniforms = uniforms(seeds, longest).T.contiguous().to(device)
        self.tokens = torch.zeros((longest, count), dtype=torch.long, device=device)
        self.logprobs = torch.zeros((longest, count), dtype=torch.float64, device=device)
        self.lengths = torch.full((count,), longest + 1, device=device)
        self.stop_tokens = torch.tensor(ends.stop_tokens, device=device)[:, None]
        self.all_logits: Tensor | None = None

    def draw(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the next token of the given rows from their logits, (n, V); return tokens and whether they end, (n,)."""
        uniform = self.uniforms[self.step].index_select(0, rows)
        process = None if self.processors is None else self._processing(rows)
        tokens, logprobs = self.distribution.draw(logits, uniform, process)
        self.tokens[self.step].index_copy_(0, rows, tokens)
        self.logprobs[self.step].index_copy_(0, rows, logprobs.double())
        self.step += 1
        ends = (tokens == self.stop_tokens).any(0)
        if self.ends.in_text is not None:
            texts = self.tokens[: self.step, rows].T.tolist()
            found = torch.tensor([self.ends.in_text(ids) for ids in texts], device=ends.device)
            first = found & (self.lengths[rows] > self.step)
            self.lengths[rows[first]] = self.step
            ends |= found
        return tokens, ends

    def _processing(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """The processors see all rows of the call, in their order; those of rows left out are stale."""

        def process(logits: Tensor) -> Tensor:
            if self.all_logits is None:
                self.all_logits = logits.new_zeros(len(self.lengths), logits.shape[1])
            self.all_logits.index_copy_(0, rows, logits)
            ids = torch.cat([self.prompts, self.tokens[: self.step].T], 1)
            processors: Any = self.processors  # typed for LongTensor
            return processors(ids, self.all_logits).index_select(0, rows)

        return process

    def results(self) -> list[Drawn]:
        """Each row through its end.

        Raises:
            UserError: the policy computed NaN.
        """
        rows = zip(self.tokens.T.tolist(), self.logprobs.T.tolist(), self.lengths.tolist(), strict=True)
        return [self._result(*row) for row in rows]

    def _result(self, tokens: list[int], logprobs: list[float], length: int) -> Drawn:
        stops = (place + 1 for place, token in enumerate(tokens[:length]) if token in self.ends.stop_tokens)
        end = next(stops, min(length, len(tokens)))
        if any(math.isnan(logprob) for logprob in logprobs[:end]):
            raise UserError(
                "the policy computes NaN instead of log-probabilities. "
                "Use an earlier checkpoint, or lower the learning rate."
            )
        ended = tokens[end - 1] in self.ends.stop_tokens or length <= len(tokens)
        return Drawn(tokens[:end], logprobs[:end], ended)


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Pad rows of ids on the left to one width, (B, P)."""
    width = max(len(row) for row in rows)
    return torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
