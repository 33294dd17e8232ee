"""One member of the simulated panel: a taste, and the noise with which answers are drawn from it.

A variant of AlpacaFarm's simulated panel (Dubois et al. 2023, arXiv:2305.14387), whose annotators are prompted
models with 25 % of labels flipped. Here the gold reward is a weighted sum of features that the task computes; each
member has weights of its own around the gold ones, likes or dislikes length, favours what is shown first, and
sometimes errs.

All answers use the same noise: a response is worth its utility plus Gumbel noise. The better of two is then
Bradley-Terry's, the order of K Plackett-Luce's (Luce 1959; Yellott 1977), the best of N Luce's choice; a score or a
thumb says where on the member's own scale the noisy utility lies. A member who errs answers at random, with twice the
flip probability, since half of the random verdicts on a pair are right.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Choice = Literal["A", "B", "tie"]
EULER_GAMMA = 0.5772156649015329  # mean of the standard Gumbel distribution


@dataclass(frozen=True)
class Member:
    """One member's taste and noise. Utilities are in the unit of the gold reward."""

    id: str
    weights: Mapping[str, float]  # per feature
    length_liking: float  # utility per ten units of length
    position_bias: float  # utility added to the response shown first
    flip_probability: float  # chance that a verdict for one side is given to the other
    scale: float  # how sharply utility decides: the inverse temperature of Bradley-Terry
    tie_band: float  # verdicts closer than this to indifference are ties, in logits
    strictness: float = 0.0  # utility taken off before a response is scored on its own


def utility(member: Member, features: Mapping[str, float], length: int) -> float:
    """What a response with these features and this length is worth to the member, without noise."""
    taste = sum(member.weights[key] * value for key, value in features.items())
    return taste + member.length_liking * length / 10


def judge(
    member: Member,
    features_a: Mapping[str, float],
    features_b: Mapping[str, float],
    length_a: int,
    length_b: int,
    rng: random.Random,
) -> Choice:
    """The member's verdict on two responses shown side by side; draws two numbers from `rng`.

    Bradley-Terry with ties (Rao and Kupper 1967): with d the scaled difference in utility, P(A) = σ(d − band),
    P(B) = σ(−d − band), the rest are ties. A verdict for one side is then flipped with the flip probability.
    """
    difference = utility(member, features_a, length_a) - utility(member, features_b, length_b) + member.position_bias
    chance, flip = rng.random(), rng.random() < member.flip_probability
    if chance < _sigmoid(member.scale * difference - member.tie_band):
        return "B" if flip else "A"
    if 1 - chance <= _sigmoid(-member.scale * difference - member.tie_band):
        return "A" if flip else "B"
    return "tie"


def rank(member: Member, utilities: Sequence[float], rng: random.Random) -> list[int]:
    """The rank of each response in the order shown, 1 the best.

    A response closer than the tie band to the next better one shares its rank, as in a side-by-side tie.
    """
    noisy = _noisy_in_logits(member, utilities, rng)
    order = sorted(range(len(noisy)), key=lambda index: -noisy[index])
    ranks = [1] * len(noisy)
    for better, worse in pairwise(order):
        ranks[worse] = ranks[better] + (noisy[better] - noisy[worse] > member.tie_band)
    return ranks


def pick(member: Member, utilities: Sequence[float], rng: random.Random) -> int:
    """The index of the response chosen as the best, in the order shown."""
    noisy = _noisy_in_logits(member, utilities, rng)
    return noisy.index(max(noisy))


def rate(member: Member, utility: float, highest: int, rng: random.Random) -> int:
    """A score from 1 to `highest` for one response shown alone.

    The scale cuts the utilities from 0 to the member's ideal (the sum of the positive weights) into equal parts;
    what lies beyond either end gets the score at that end.
    """
    if rng.random() < 2 * member.flip_probability:
        return rng.randint(1, highest)
    return min(max(1 + math.floor(_share_of_ideal(member, utility, rng) * highest), 1), highest)


def approve(member: Member, utility: float, rng: random.Random) -> bool:
    """Thumbs up: whether the response lies in the upper half of the member's scale."""
    if rng.random() < 2 * member.flip_probability:
        return rng.random() < 0.5
    return _share_of_ideal(member, utility, rng) >= 0.5


def _share_of_ideal(member: Member, utility: float, rng: random.Random) -> float:
    noise = (_gumbel(rng) - EULER_GAMMA) / member.scale
    ideal = sum(weight for weight in member.weights.values() if weight > 0)
    return (utility + noise - member.strictness) / ideal


def _noisy_in_logits(member: Member, utilities: Sequence[float], rng: random.Random) -> list[float]:
    """Noisy utilities times `scale`; of the difference of two the noise is logistic, as Bradley-Terry has it."""
    errs = rng.random() < 2 * member.flip_probability
    shown = [value + (member.position_bias if place == 0 else 0.0) for place, value in enumerate(utilities)]
    noisy = [member.scale * value + _gumbel(rng) for value in shown]
    if errs:
        rng.shuffle(noisy)
    return noisy


def _gumbel(rng: random.Random) -> float:
    return -math.log(-math.log(max(rng.random(), 1e-300)))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@dataclass(frozen=True)
class Opinion:
    """A member before some responses, in the order shown; each method draws answers from `rng`.

    features: of each response. lengths: of each response, in tokens.
    """

    member: Member
    features: Sequence[Mapping[str, float]]
    lengths: Sequence[int]
    rng: random.Random

    @property
    def utilities(self) -> list[float]:
        """Of each response, without noise."""
        seen = zip(self.features, self.lengths, strict=True)
        return [utility(self.member, found, length) for found, length in seen]

    def verdict(self) -> Choice:
        """Which of two is better."""
        (features_a, features_b), (length_a, length_b) = self.features, self.lengths
        return judge(self.member, features_a, features_b, length_a, length_b, self.rng)

    def ranks(self) -> list[int]:
        """The rank of each."""
        return rank(self.member, self.utilities, self.rng)

    def best(self) -> int:
        """The index of the best."""
        return pick(self.member, self.utilities, self.rng)

    def scores(self, highest: int) -> list[int]:
        """A score from 1 to `highest` for each, one after the other."""
        return [rate(self.member, value, highest, self.rng) for value in self.utilities]

    def approvals(self) -> list[bool]:
        """Thumbs up for each, one after the other."""
        return [approve(self.member, value, self.rng) for value in self.utilities]
