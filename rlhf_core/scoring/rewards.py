"""Rewards on sampled responses: a reward model, an exact answer, an end token; summed with weights, logged apart."""

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
    """Anything that gives each sampled response a number."""

    def __call__(self, responses: Responses) -> Tensor:
        """Scores, (B,), finite."""
        ...


@dataclass(frozen=True)
class ModelReward:
    """A reward model's score, centred and scaled as its config says, clamped to ±`clamp`."""

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
    """1 where a response states the prompt's answer, else 0; `pattern` reads responses as it reads references."""

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
            UserError: if the prompt has no answer, or the pattern takes too long.
        """
        if answer is None:
            raise UserError("a prompt has no answer to compare with. Set prepare.format to question_answer.")
        found = read_answer(self.pattern, text)
        return found is not None and normal_answer(found) == normal_answer(answer)


@dataclass(frozen=True)
class MissingEnd:
    """-penalty where a response was cut off before any of its stop tokens."""

    penalty: float

    def __call__(self, responses: Responses) -> Tensor:
        """0 or -penalty, (B,)."""
        return -self.penalty * (~responses.ended).float()


class Length:
    """Response tokens, the end token included; a negative weight makes it a price."""

    def __call__(self, responses: Responses) -> Tensor:
        """|y|, (B,)."""
        return responses.batch.lengths.float()


@dataclass(frozen=True)
class Format:
    """1 where the whole response matches `pattern`, as in `<think>.*</think>.*`, else 0; a dot is any character.

    Raises:
        UserError: if the pattern is not a regular expression, or takes too long on a response.
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
    """A function of the user's: function(prompts, responses, answers) -> one number per response.

    prompts: lists of chat messages; responses: texts; answers: the right answers, None where there is none.
    """

    name: str
    function: Callable[[list[Any], list[str], list[str | None]], Sequence[float]]

    def __call__(self, responses: Responses) -> Tensor:
        """What the function gives, (B,).

        Raises:
            UserError: if it raises, or gives something else than one number per response.
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
                f"reward {self.name} gave {len(values)} numbers for {len(responses)} responses. Return one for each."
            )
        for row, value in enumerate(values):
            if not isinstance(value, int | float):
                raise UserError(f"reward {self.name} gave {value!r} for response {row}. Return numbers.")
        return torch.tensor([float(value) for value in values], device=responses.device)


@dataclass(frozen=True)
class WeightedSum:
    """Σ weight · reward, each part logged under its name."""

    parts: Sequence[tuple[str, float, Reward]]

    def __call__(self, responses: Responses) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum and its unweighted parts, (B,) each.

        Raises:
            UserError: if a part is not finite or has another shape; the part is named.
        """
        total = torch.zeros(len(responses), device=responses.device)
        named = {}
        for name, weight, reward in self.parts:
            value = reward(responses)
            if value.shape != total.shape:
                raise UserError(f"reward '{name}' gave shape {tuple(value.shape)} for {len(total)} responses.")
            if not bool(torch.isfinite(value).all()):
                row = int((~torch.isfinite(value)).nonzero()[0])
                raise UserError(
                    f"reward '{name}' is {value[row].item()} for row {row} of the batch. Return a finite number."
                )
            total = total + weight * value
            named[name] = value
        return total, named
