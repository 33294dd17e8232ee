"""One member of the simulated panel: its taste, and the noise in its answers.

This is a variant of the simulated panel of AlpacaFarm (Dubois et al. 2023, arXiv:2305.14387), which uses prompted
models and flips 25 % of the labels. Here the gold reward is a weighted sum of features that the task computes. Each
member has weights close to the gold weights, likes or dislikes length, has a position bias, and makes random errors.

All answers have the same noise: the worth of a response is its utility plus Gumbel noise. The better of two responses
then follows Bradley-Terry, the order of K responses Plackett-Luce (Luce 1959; Yellott 1977), and the best of N Luce's
choice. A score or a thumb is the position of the noisy utility on the member's scale. An error is a random answer. Its
probability is twice the flip probability, since half of the random verdicts on a pair are correct.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rlhf_core.feedback.opinion import Choice

EULER_GAMMA = 0.5772156649015329  # mean of the standard Gumbel distribution


@dataclass(frozen=True)
class Member:
    """The taste and noise of one member. Utilities have the unit of the gold reward."""

    id: str
    weights: Mapping[str, float]  # per feature
    length_liking: float  # utility per ten units of length
    position_bias: float  # utility added to the response shown first
    flip_probability: float  # probability that a verdict for one side is flipped
    scale: float  # logits per unit of utility: the inverse temperature of Bradley-Terry
    tie_band: float  # half-width of the band of ties around indifference, in logits
    strictness: float = 0.0  # utility subtracted before a response gets a separate score


def utility(member: Member, features: Mapping[str, float], length: int) -> float:
    """The utility to the member of a response with these features and this length, without noise."""
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

    Bradley-Terry with ties (Rao and Kupper 1967): with the scaled difference in utility d, P(A) = σ(d − band),
    P(B) = σ(−d − band), and the rest is the probability of a tie. A verdict for one side is then flipped with the flip
    probability.
    """
    difference = utility(member, features_a, length_a) - utility(member, features_b, length_b) + member.position_bias
    chance, flip = rng.random(), rng.random() < member.flip_probability
    if chance < _sigmoid(member.scale * difference - member.tie_band):
        return "B" if flip else "A"
    if 1 - chance <= _sigmoid(-member.scale * difference - member.tie_band):
        return "A" if flip else "B"
    return "tie"


def rank(member: Member, utilities: Sequence[float], rng: random.Random) -> list[int]:
    """The rank of each response, in the order shown; 1 is the best.

    A response within the tie band of the next better one has the same rank, like a tie side by side.
    """
    noisy = _noisy_in_logits(member, utilities, rng)
    order = sorted(range(len(noisy)), key=lambda index: -noisy[index])
    ranks = [1] * len(noisy)
    for better, worse in pairwise(order):
        ranks[worse] = ranks[better] + (noisy[better] - noisy[worse] > member.tie_band)
    return ranks


def pick(member: Member, utilities: Sequence[float], rng: random.Random) -> int:
    """The index, in the order shown, of the response that the member chooses as the best."""
    noisy = _noisy_in_logits(member, utilities, rng)
    return noisy.index(max(noisy))


def rate(member: Member, utility: float, highest: int, rng: random.Random) -> int:
    """A score from 1 to `highest` for one response shown alone.

    The scale divides the utilities from 0 to the member's ideal (the sum of the positive weights) into equal parts.
    Utilities beyond an end get the score at that end.
    """
    if rng.random() < 2 * member.flip_probability:
        return rng.randint(1, highest)
    return min(max(1 + math.floor(_share_of_ideal(member, utility, rng) * highest), 1), highest)


def approve(member: Member, utility: float, rng: random.Random) -> bool:
    """Whether the member gives a thumbs up: the response is in the upper half of the member's scale."""
    if rng.random() < 2 * member.flip_probability:
        return rng.random() < 0.5
    return _share_of_ideal(member, utility, rng) >= 0.5


def _share_of_ideal(member: Member, utility: float, rng: random.Random) -> float:
    noise = (_gumbel(rng) - EULER_GAMMA) / member.scale
    ideal = sum(weight for weight in member.weights.values() if weight > 0)
    return (utility + noise - member.strictness) / ideal


def _noisy_in_logits(member: Member, utilities: Sequence[float], rng: random.Random) -> list[float]:
    """Noisy utilities times `scale`. The difference of two noises is logistic, as in Bradley-Terry."""
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
class MemberOpinion:
    """A member's opinion of responses in the order shown; each method draws answers with `rng`.

    features, lengths: one per response; lengths in tokens.
    """

    member: Member
    features: Sequence[Mapping[str, float]]
    lengths: Sequence[int]
    rng: random.Random

    @property
    def utilities(self) -> list[float]:
        """The utility of each response, without noise."""
        seen = zip(self.features, self.lengths, strict=True)
        return [utility(self.member, found, length) for found, length in seen]

    def verdict(self) -> Choice:
        """The verdict on two responses."""
        (features_a, features_b), (length_a, length_b) = self.features, self.lengths
        return judge(self.member, features_a, features_b, length_a, length_b, self.rng)

    def ranks(self) -> list[int]:
        """The rank of each response."""
        return rank(self.member, self.utilities, self.rng)

    def best(self) -> int:
        """The index of the best response."""
        return pick(self.member, self.utilities, self.rng)

    def scores(self, highest: int) -> list[int]:
        """A score from 1 to `highest` for each response, drawn in order."""
        return [rate(self.member, value, highest, self.rng) for value in self.utilities]

    def approvals(self) -> list[bool]:
        """Whether each response gets a thumbs up, drawn in order."""
        return [approve(self.member, value, self.rng) for value in self.utilities]
