"""The interface of rewards for sampled responses, the rewards that judges share, and the weighted sum of all terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rlhf_core.common.errors import UserError
from rlhf_core.models.forward import scores
from rlhf_core.models.responses import Responses
from rlhf_core.scoring.answers import normal_answer, read_answer


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
