"""Rewards for sampled responses (a reward model, an exact answer, a missing end token, ...) and their weighted sum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlhf_core.common.errors import UserError
from rlhf_core.models.forward import scores
from rlhf_core.models.responses import Responses
from rlhf_core.scoring.answers import format_pattern, matches_whole, normal_answer, read_answer


class Reward(Protocol):
    """Gives each sampled response a number."""

    def __call__(self, responses: Responses) -> Tensor:
        """Scores, (B,), finite."""
        ...


@dataclass(frozen=True)
class ModelReward:
    """The score of a reward model, with the centring and scale of its config, clamped to ±`clamp`."""

    model: nn.Module
    rows: int = 128
    clamp: float | None = None

    @torch.no_grad()
    def __call__(self, responses: Responses) -> Tensor:
        """r_φ(x, y), (B,)."""
        parts = [
            scores(self.model, responses.batch.select(slice(start, start + self.rows)))
            for start in range(0, responses.batch.rows, self.rows)
        ]
        judged = torch.cat(parts)
        return judged if self.clamp is None else judged.clamp(-self.clamp, self.clamp)


@dataclass(frozen=True)
class ExactMatch:
    """1 if a response states the prompt's answer, else 0. `pattern` extracts answers from responses and references."""

    pattern: str

    def __call__(self, responses: Responses) -> Tensor:
        """0 or 1, (B,)."""
        right = [
            float(self.correct(text, prompt.answer))
            for text, prompt in zip(responses.texts, responses.prompts, strict=True)
        ]
        return torch.tensor(right, device=responses.device)

    def correct(self, text: str, answer: str | None) -> bool:
        """Whether `text` states `answer`.

        Raises:
            UserError: the prompt has no answer, or the pattern takes too long.
        """
        if answer is None:
            raise UserError("a prompt has no answer for exact_answer. Set prepare.format to question_answer.")
        found = read_answer(self.pattern, text)
        return found is not None and normal_answer(found) == normal_answer(answer)


@dataclass(frozen=True)
class MissingEnd:
    """-penalty for a response that was cut off before an end token."""

    penalty: float

    def __call__(self, responses: Responses) -> Tensor:
        """0 or -penalty, (B,)."""
        return -self.penalty * (~responses.ended).float()


@dataclass(frozen=True)
class Overlong:
    """Soft overlong punishment of DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 13.

    longest: L_max, the length limit of responses, in tokens. cache: L_cache, the number of tokens before it over which
    the punishment grows from 0 to 1. A response that was cut off has L_max tokens.
    """

    longest: int
    cache: int

    def __call__(self, responses: Responses) -> Tensor:
        """0 up to L_max - L_cache tokens, then (L_max - L_cache - |y|)/L_cache, which is -1 at L_max, (B,)."""
        excess = responses.batch.lengths - (self.longest - self.cache)
        return -(excess / self.cache).clamp(0, 1)


class Length:
    """The number of response tokens, including the end token; a negative weight penalises length."""

    def __call__(self, responses: Responses) -> Tensor:
        """|y|, (B,)."""
        return responses.batch.lengths.float()


@dataclass(frozen=True)
class Format:
    """1 if the whole response matches `pattern`, else 0. Example: `<think>.*</think>.*`; a dot matches any character.

    Raises:
        UserError: the pattern is not a regular expression, or takes too long on a response.
    """

    pattern: str

    def __post_init__(self) -> None:
        format_pattern(self.pattern)

    def __call__(self, responses: Responses) -> Tensor:
        """0 or 1, (B,)."""
        right = [float(matches_whole(self.pattern, text.strip())) for text in responses.texts]
        return torch.tensor(right, device=responses.device)


@dataclass(frozen=True)
class PythonReward:
    """A function of the user: function(prompts, responses, answers) -> one number per response.

    prompts: lists of chat messages. responses: texts. answers: the correct answers, None for a prompt without one.
    """

    name: str
    function: Callable[[list[Any], list[str], list[str | None]], Sequence[float]]

    def __call__(self, responses: Responses) -> Tensor:
        """The values of the function, (B,).

        Raises:
            UserError: the function raises an exception, or does not return one number per response.
        """
        prompts = [list(prompt.messages) for prompt in responses.prompts]
        answers = [prompt.answer for prompt in responses.prompts]
        try:
            values = list(self.function(prompts, responses.texts, answers))
        except Exception as error:
            raise UserError(
                f"reward {self.name} raised {type(error).__name__}: {error}. Correct the function."
            ) from error
        if len(values) != len(responses):
            raise UserError(
                f"reward {self.name} returned {len(values)} values for {len(responses)} responses. "
                "Return one number per response."
            )
        for row, value in enumerate(values):
            if not isinstance(value, int | float):
                raise UserError(f"reward {self.name} returned {value!r} for response {row}. Return a number.")
        return torch.tensor([float(value) for value in values], device=responses.device)


@dataclass(frozen=True)
class WeightedSum:
    """Σ weight · reward, and each reward under its name."""

    parts: Sequence[tuple[str, float, Reward]]

    def __call__(self, responses: Responses) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum and its unweighted parts, (B,) each.

        Raises:
            UserError: a part is not finite or has a wrong shape; states the name of the part.
        """
        total = torch.zeros(len(responses), device=responses.device)
        named = {}
        for name, weight, reward in self.parts:
            value = reward(responses)
            if value.shape != total.shape:
                raise UserError(f"reward '{name}' has shape {tuple(value.shape)} for {len(total)} responses.")
            if not bool(torch.isfinite(value).all()):
                row = int((~torch.isfinite(value)).nonzero()[0])
                raise UserError(
                    f"reward '{name}' is {value[row].item()} for row {row} of the batch. Return a finite number."
                )
            total = total + weight * value
            named[name] = value
        return total, named
