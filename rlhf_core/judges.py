"""Judges behind one interface, and the win rate they give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlhf_core.metrics import bootstrap_mean
from rlhf_core.seeding import stream_seed
from rlhf_core.tokens import Prompt


@dataclass(frozen=True)
class Answer:
    """A response to be judged: its text, and its token ids where it was sampled."""

    text: str
    ids: Sequence[int]


class Judge(Protocol):
    """Anything that prefers one of two responses."""

    @property
    def name(self) -> str:
        """Who judged; stands beside every win rate."""
        ...

    def prefer(self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]) -> list[float]:
        """For each prompt 1 if the response shown first is better, 0 if the second is, ½ for a tie."""
        ...


@dataclass(frozen=True)
class ScoreJudge:
    """Prefers the response with the higher score: a gold rubric, an exact answer, or a second reward model."""

    name: str
    scores: Callable[[Sequence[Prompt], Sequence[Answer]], list[float]]

    def prefer(self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]) -> list[float]:
        """1, 0 or ½ by comparing scores."""
        pairs = zip(self.scores(prompts, first), self.scores(prompts, second), strict=True)
        return [0.5 if one == two else float(one > two) for one, two in pairs]


@dataclass(frozen=True)
class WinRate:
    """(wins + ½ ties) / n with its 95 % interval, over n prompts, and the judge."""

    value: float
    low: float
    high: float
    n: int
    judge: str


def win_rate(
    judge: Judge,
    prompts: Sequence[Prompt],
    policy: Sequence[Answer],
    opponent: Sequence[Answer],
    resamples: int,
    seed: int,
) -> WinRate:
    """Win rate of `policy` against `opponent`, each prompt judged in both orders of presentation.

    A prompt counts the mean of its two verdicts; the interval resamples prompts, because the two verdicts on one
    prompt are not independent. Seed S2; algorithms section 6.
    """
    shown_first = judge.prefer(prompts, policy, opponent)
    shown_second = [1.0 - verdict for verdict in judge.prefer(prompts, opponent, policy)]
    wins = [(a + b) / 2 for a, b in zip(shown_first, shown_second, strict=True)]
    value, low, high = bootstrap_mean(wins, resamples, stream_seed(seed, "win_rate"))
    return WinRate(value, low, high, len(prompts), judge.name)
