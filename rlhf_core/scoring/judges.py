"""Judges behind one interface, and the win rate they give."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import pstdev
from typing import Protocol

from rlhf_core.common.seeding import stream_seed
from rlhf_core.maths.metrics import bootstrap_mean
from rlhf_core.models.responses import Response, Responses


class Judge(Protocol):
    """Anything that prefers one of two responses."""

    @property
    def name(self) -> str:
        """Who judged; stated beside every win rate."""
        ...

    def prefer(self, first: Responses, second: Responses) -> list[float]:
        """For each prompt 1 if the response shown first is better, 0 if the second is, ½ for a tie.

        Both answer the same prompts, row by row.
        """
        ...


@dataclass(frozen=True)
class ScoreJudge:
    """Prefers the response with the higher score: a gold rubric, an exact answer, or a second reward model.

    `scores` gets both sides of all pairs in one call, the sides of a pair adjacent and in an order of their own, not
    that of presentation: a model then pads both alike, and the same pair in the other order gets the mirrored verdict.

    tolerance: a difference of at most this many standard deviations is a tie; the standard deviation is the population
    one of all scores of the comparison, both sides together. 0 compares exactly. Identical token ids always tie.
    """

    name: str
    scores: Callable[[Responses], list[float]]
    tolerance: float = 0.0

    def prefer(self, first: Responses, second: Responses) -> list[float]:
        """1, 0 or ½ by comparing scores."""
        pairs = list(zip(first.responses, second.responses, strict=True))
        swapped = [_content(one) > _content(two) for one, two in pairs]
        ordered = [(two, one) if swap else (one, two) for (one, two), swap in zip(pairs, swapped, strict=True)]
        twice = [prompt for prompt in first.prompts for _ in range(2)]
        scores = self.scores(replace(first, prompts=twice, responses=[side for pair in ordered for side in pair]))
        largest_tie = self.tolerance * pstdev(scores) if self.tolerance else 0.0
        verdicts = []
        for (one, two), swap, left, right in zip(ordered, swapped, scores[0::2], scores[1::2], strict=True):
            is_tie = list(one.ids) == list(two.ids) or abs(left - right) <= largest_tie
            verdicts.append(0.5 if is_tie else float((left > right) != swap))
        return verdicts


def _content(response: Response) -> tuple[list[int], str]:
    """What the sides of a pair are ordered by."""
    return list(response.ids), response.text


@dataclass(frozen=True)
class WinRate:
    """(wins + ½ ties) / n with its 95 % interval, over n prompts, and the judge."""

    value: float
    low: float
    high: float
    n: int
    judge: str


def win_rate(judge: Judge, policy: Responses, opponent: Responses, resamples: int, seed: int) -> WinRate:
    """Win rate of `policy` against `opponent`, each prompt judged in both orders of presentation.

    A prompt counts the mean of its two verdicts; the interval resamples prompts, because the two verdicts on one
    prompt are not independent.
    """
    shown_first = judge.prefer(policy, opponent)
    shown_second = [1.0 - verdict for verdict in judge.prefer(opponent, policy)]
    wins = [(a + b) / 2 for a, b in zip(shown_first, shown_second, strict=True)]
    value, low, high = bootstrap_mean(wins, resamples, stream_seed(seed, "win_rate"))
    return WinRate(value, low, high, len(policy), judge.name)
