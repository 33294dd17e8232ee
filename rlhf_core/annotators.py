"""Simulated annotators: a panel that shares a hidden gold reward but differs in taste, and the records they leave.

A variant of AlpacaFarm's simulated panel (Dubois et al. 2023, arXiv:2305.14387), whose annotators are prompted
models with 25 % of labels flipped. Here the gold reward is a weighted sum of features that the caller computes;
each annotator weighs them in an own way, likes or dislikes length, leans to one side of the page, judges with
Bradley-Terry noise and now and then errs.
"""

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from typing import Any, Literal

from rlhf_core.errors import UserError
from rlhf_core.seeding import stream_seed

SIDE_BY_SIDE = "side_by_side"

Choice = Literal["A", "B", "tie"]
Message = dict[str, str]


@dataclass(frozen=True)
class Annotator:
    """One annotator's taste and noise. Utilities are in the unit of the gold reward."""

    id: str
    weights: Mapping[str, float]  # per feature
    length_liking: float  # utility per ten units of length
    position_bias: float  # utility added to the response shown as A
    flip_probability: float  # chance that a verdict for one side is given to the other
    scale: float  # how sharply utility decides: the inverse temperature of Bradley-Terry
    tie_band: float  # verdicts closer than this to indifference are ties, in logits


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
) -> list[Annotator]:
    """`size` annotators around the gold weights, the same for the same seed; the first n of any panel agree.

    Each weight is the gold one times exp(taste × normal); `length_liking` and `position_bias` are standard
    deviations around 0; flips are uniform in [0, max_flip_probability]. Raises UserError for an empty panel.
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
            )
        )
    return annotators


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
        _utility(annotator, features_a, length_a) - _utility(annotator, features_b, length_b) + annotator.position_bias
    )
    chance, flip = rng.random(), rng.random() < annotator.flip_probability
    if chance < _sigmoid(annotator.scale * difference - annotator.tie_band):
        return "B" if flip else "A"
    if 1 - chance <= _sigmoid(-annotator.scale * difference - annotator.tie_band):
        return "A" if flip else "B"
    return "tie"


def _utility(annotator: Annotator, features: Mapping[str, float], length: int) -> float:
    taste = sum(annotator.weights[key] * value for key, value in features.items())
    return taste + annotator.length_liking * length / 10


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@dataclass(frozen=True)
class Judgement:
    """One judgement: what was shown, exactly as it was sampled, and what was chosen.

    `form` is "side_by_side"; other forms of feedback keep the same fields with a `choice` of their own kind.
    `order` is the position in the annotator's sequence and stands in for a time, so that a record reproduces.
    """

    form: str
    prompt: list[Message]
    responses: list[str]
    response_tokens: list[list[int] | None]  # the sampled ids, end token included; None where text was not sampled
    choice: Any  # side by side: "A" (the first response), "B" or "tie"
    annotator: str
    checkpoint: str  # key of the model that sampled the responses
    order: int

    def to_row(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], where: str = "judgement") -> "Judgement":
        """The record from a JSON object; raises UserError naming `where` (file and line) and the field."""
        for field in fields(cls):
            if field.name not in row:
                raise UserError(f"{where} has no {field.name!r}. Restore the record, or collect again.")
        judgement = cls(**{field.name: row[field.name] for field in fields(cls)})
        if judgement.form == SIDE_BY_SIDE and (
            len(judgement.responses) != 2 or judgement.choice not in ("A", "B", "tie")
        ):
            raise UserError(f"{where}: side_by_side needs two responses and a choice A, B or tie. Mend the record.")
        return judgement


def pairs_from_judgements(judgements: Iterable[Judgement]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Preference rows {"prompt", "chosen", "rejected"} from side-by-side verdicts, one for each, in order.

    Where both responses were sampled, `chosen_tokens` and `rejected_tokens` hold the sampled ids.

    Also what became of the verdicts: `pairs`; `ties` and `identical` (equal texts), which make no row.
    """
    pairs = []
    counts = {"pairs": 0, "ties": 0, "identical": 0}
    for judgement in judgements:
        if judgement.form != SIDE_BY_SIDE:
            continue
        first, second = judgement.responses
        if first == second:
            counts["identical"] += 1
        elif judgement.choice == "tie":
            counts["ties"] += 1
        else:
            counts["pairs"] += 1
            better, worse = (0, 1) if judgement.choice == "A" else (1, 0)
            row: dict[str, Any] = {"prompt": judgement.prompt, "chosen": judgement.responses[better]}
            row["rejected"] = judgement.responses[worse]
            # What was sampled is trained on as it was sampled; its text might encode to other tokens (pitfall 2).
            if None not in judgement.response_tokens:
                row["chosen_tokens"] = judgement.response_tokens[better]
                row["rejected_tokens"] = judgement.response_tokens[worse]
            pairs.append(row)
    return pairs, counts


def agreement(judgements: Iterable[Judgement]) -> float | None:
    """Share of equal verdicts among all couples of verdicts on one pair by two different annotators.

    Ties are left out; the order in which the pair was shown doesn't matter. None if no pair has two verdicts.
    """
    equal = total = 0
    for verdicts in _verdicts(judgements).values():
        for (one, first), (other, second) in combinations(verdicts, 2):
            if one != other and first and second:
                total += 1
                equal += first == second
    return equal / total if total else None


def cyclic_triples(judgements: Iterable[Judgement]) -> float | None:
    """Share of cycles (a > b > c > a) among triples of one prompt's responses with all three pairs judged.

    A pair's winner is the one with more verdicts; a triple with an undecided pair counts as no cycle. None if
    there is no such triple.
    """
    wins: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)
    for (prompt, low, high), verdicts in _verdicts(judgements).items():
        net = sum(verdict for _, verdict in verdicts)
        wins[prompt][low, high] = (net > 0) - (net < 0)
    cyclic = total = 0
    for pairs in wins.values():
        texts = sorted({text for pair in pairs for text in pair})
        for a, b, c in combinations(texts, 3):
            if (a, b) in pairs and (b, c) in pairs and (a, c) in pairs:
                total += 1
                cyclic += pairs[a, b] == pairs[b, c] == -pairs[a, c] != 0
    return cyclic / total if total else None


def _verdicts(judgements: Iterable[Judgement]) -> dict[tuple[str, str, str], list[tuple[str, int]]]:
    """(prompt, lesser text, greater text) -> [(annotator, 1 lesser is better, −1 greater is better, 0 tie)]."""
    found: dict[tuple[str, str, str], list[tuple[str, int]]] = defaultdict(list)
    for judgement in judgements:
        if judgement.form != SIDE_BY_SIDE or judgement.responses[0] == judgement.responses[1]:
            continue
        low, high = sorted(judgement.responses)
        verdict = {"A": 1, "B": -1, "tie": 0}[judgement.choice]
        if judgement.responses[0] != low:
            verdict = -verdict
        found[repr(judgement.prompt), low, high].append((judgement.annotator, verdict))
    return found
