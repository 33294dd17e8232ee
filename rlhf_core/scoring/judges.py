"""The interface of judges, and the win rate computed from their verdicts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import pstdev
from typing import Protocol

from rlhf_core.common.responses import Response
from rlhf_core.common.seeding import stream_seed
from rlhf_core.maths.metrics import bootstrap_mean
from rlhf_core.models.responses import Responses


class Judge(Protocol):
    """Decides which of two responses is better."""

    @property
    def name(self) -> str:
        """The name of the judge, reported with every win rate."""
        ...

    def prefer(self, first: Responses, second: Responses) -> list[float]:
        """For each prompt: 1 if the response shown first is better, 0 if the second is better, ½ for a tie.

        `first` and `second` have the same prompts in the same order.
        """
        ...


@dataclass(frozen=True)
class ScoreJudge:
    """Prefers the response with the higher score, from a gold rubric, an exact answer, or a second reward model.

    `scores` gets both sides of all pairs in one call. The sides of a pair are adjacent and sorted by content, not by
    presentation: the padding is then the same in both orders of presentation, and the verdicts are exactly opposite.

    tolerance: a difference of at most this many standard deviations is a tie. The population standard deviation is
    computed over all scores of both sides. 0 compares exactly. Identical token ids always tie.
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
    """The key that sorts the sides of a pair."""
    return list(response.ids), response.text


@dataclass(frozen=True)
class WinRate:
    """(wins + ½ ties) / n over n prompts, with its 95 % interval and the name of the judge."""

    value: float
    low: float
    high: float
    n: int
    judge: str


def win_rate(judge: Judge, policy: Responses, opponent: Responses, resamples: int, seed: int) -> WinRate:
    """The win rate of `policy` against `opponent`; each prompt is judged in both orders of presentation.

    The value of a prompt is the mean of its two verdicts. The bootstrap interval resamples prompts, because the two
    verdicts on one prompt are not independent.
    """
    shown_first = judge.prefer(policy, opponent)
    shown_second = [1.0 - verdict for verdict in judge.prefer(opponent, policy)]
    wins = [(a + b) / 2 for a, b in zip(shown_first, shown_second, strict=True)]
    value, low, high = bootstrap_mean(wins, resamples, stream_seed(seed, "win_rate"))
    return WinRate(value, low, high, len(policy), judge.name)
