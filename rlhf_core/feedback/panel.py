"""Simulated annotators: a panel that shares a hidden gold reward but differs in taste, asked in any form of feedback.

A variant of AlpacaFarm's simulated panel (Dubois et al. 2023, arXiv:2305.14387), whose annotators are prompted
models with 25 % of labels flipped. Here the gold reward is a weighted sum of features that the caller computes;
each annotator weighs them in an own way, likes or dislikes length, leans to what is shown first, and now and then errs.

Every form rests on one noise: a response is worth its utility plus Gumbel noise. The better of two is then
Bradley-Terry's, the order of K Plackett-Luce's (Luce 1959; Yellott 1977), the best of N Luce's choice; a score or a
thumb says where on the annotator's own scale the noisy utility lies. Who errs answers at random, with twice the flip
probability: half of the random verdicts on a pair are right.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rlhf_core.common.errors import UserError
from rlhf_core.common.seeding import stream_seed
from rlhf_core.feedback.judgements import Choice

EULER_GAMMA = 0.5772156649015329  # mean of the standard Gumbel distribution


@dataclass(frozen=True)
class Annotator:
    """One annotator's taste and noise. Utilities are in the unit of the gold reward."""

    id: str
    weights: Mapping[str, float]  # per feature
    length_liking: float  # utility per ten units of length
    position_bias: float  # utility added to the response shown first
    flip_probability: float  # chance that a verdict for one side is given to the other
    scale: float  # how sharply utility decides: the inverse temperature of Bradley-Terry
    tie_band: float  # verdicts closer than this to indifference are ties, in logits
    strictness: float = 0.0  # utility taken off before a response is scored on its own


def panel(
    gold_weights: Mapping[str, float],
    size: int,
    seed: int,
    *,
    taste: float = 0.3,
    length_liking: float = 0.1,
    position_bias: float = 0.1,
    max_flip_probability: float = 0.1,
    scale: float = 1.1,
    tie_band: float = 0.2,
    strictness: float = 0.3,
) -> list[Annotator]:
    """`size` annotators around the gold weights, the same for the same seed; the first n of any panel agree.

    Each weight is the gold one times exp(taste × normal); `length_liking`, `position_bias` and `strictness` are
    standard deviations around 0; flips are uniform in [0, max_flip_probability]. Raises UserError for an empty panel.
    """
    if size < 1:
        raise UserError(f"The panel has {size} annotators. Ask for at least 1.")
    annotators = []
    for number in range(size):
        rng = random.Random(stream_seed(seed, "panel", number))
        annotators.append(
            Annotator(
                id=f"annotator-{number:02d}",
                weights={key: gold_weights[key] * math.exp(rng.gauss(0, taste)) for key in sorted(gold_weights)},
                length_liking=rng.gauss(0, length_liking),
                position_bias=rng.gauss(0, position_bias),
                flip_probability=rng.uniform(0, max_flip_probability),
                scale=scale,
                tie_band=tie_band,
                strictness=rng.gauss(0, strictness),
            )
        )
    return annotators


def utility(annotator: Annotator, features: Mapping[str, float], length: int) -> float:
    """What a response with these features and this length is worth to the annotator, without noise."""
    taste = sum(annotator.weights[key] * value for key, value in features.items())
    return taste + annotator.length_liking * length / 10


def judge(
    annotator: Annotator,
    features_a: Mapping[str, float],
    features_b: Mapping[str, float],
    length_a: int,
    length_b: int,
    rng: random.Random,
) -> Choice:
    """The annotator's verdict on two responses shown side by side; draws two numbers from `rng`.

    Bradley-Terry with ties (Rao and Kupper 1967): with d the scaled difference in utility, P(A) = σ(d − band),
    P(B) = σ(−d − band), the rest are ties. A verdict for one side is then flipped with the flip probability.
    """
    difference = (
        utility(annotator, features_a, length_a) - utility(annotator, features_b, length_b) + annotator.position_bias
    )
    chance, flip = rng.random(), rng.random() < annotator.flip_probability
    if chance < _sigmoid(annotator.scale * difference - annotator.tie_band):
        return "B" if flip else "A"
    if 1 - chance <= _sigmoid(-annotator.scale * difference - annotator.tie_band):
        return "A" if flip else "B"
    return "tie"


def rank(annotator: Annotator, utilities: Sequence[float], rng: random.Random) -> list[int]:
    """The rank of each response in the order shown, 1 the best.

    A response closer than the tie band to the next better one shares its rank, as in a side-by-side tie.
    """
    noisy = _noisy_in_logits(annotator, utilities, rng)
    order = sorted(range(len(noisy)), key=lambda index: -noisy[index])
    ranks = [1] * len(noisy)
    for better, worse in pairwise(order):
        ranks[worse] = ranks[better] + (noisy[better] - noisy[worse] > annotator.tie_band)
    return ranks


def pick(annotator: Annotator, utilities: Sequence[float], rng: random.Random) -> int:
    """The index of the response chosen as the best, in the order shown."""
    noisy = _noisy_in_logits(annotator, utilities, rng)
    return noisy.index(max(noisy))


def rate(annotator: Annotator, utility: float, highest: int, rng: random.Random) -> int:
    """A score from 1 to `highest` for one response shown alone.

    The scale cuts the utilities from 0 to the annotator's ideal (the sum of the positive weights) into equal parts;
    what lies beyond either end gets the score at that end.
    """
    if rng.random() < 2 * annotator.flip_probability:
        return rng.randint(1, highest)
    return min(max(1 + math.floor(_share_of_ideal(annotator, utility, rng) * highest), 1), highest)


def approve(annotator: Annotator, utility: float, rng: random.Random) -> bool:
    """Thumbs up: whether the response lies in the upper half of the annotator's scale."""
    if rng.random() < 2 * annotator.flip_probability:
        return rng.random() < 0.5
    return _share_of_ideal(annotator, utility, rng) >= 0.5


def _share_of_ideal(annotator: Annotator, utility: float, rng: random.Random) -> float:
    noise = (_gumbel(rng) - EULER_GAMMA) / annotator.scale
    ideal = sum(weight for weight in annotator.weights.values() if weight > 0)
    return (utility + noise - annotator.strictness) / ideal


def _noisy_in_logits(annotator: Annotator, utilities: Sequence[float], rng: random.Random) -> list[float]:
    """Noisy utilities times `scale`; of the difference of two the noise is logistic, as Bradley-Terry has it."""
    errs = rng.random() < 2 * annotator.flip_probability
    shown = [value + (annotator.position_bias if place == 0 else 0.0) for place, value in enumerate(utilities)]
    noisy = [annotator.scale * value + _gumbel(rng) for value in shown]
    if errs:
        rng.shuffle(noisy)
    return noisy


def _gumbel(rng: random.Random) -> float:
    return -math.log(-math.log(max(rng.random(), 1e-300)))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
