"""What annotators leave behind: records of judgements in every form of feedback, and what follows from them.

| form | what one record holds | its `choice` |
|---|---|---|
| side_by_side | two responses | "A" (the first is better), "B" or "tie" |
| likert | one response | a score, higher is better |
| ranking | K responses | their ranks, 1 the best, equal for ties |
| best_of_n | K responses | the index of the best |
| thumbs | one response | "good" or "bad" |

An annotator may be a person, a model or simulated (`rlhf_core.feedback.panel`).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from typing import Any, Literal

from rlhf_core.common.errors import UserError

Form = Literal["side_by_side", "likert", "ranking", "best_of_n", "thumbs"]
Choice = Literal["A", "B", "tie"]
Message = dict[str, str]


@dataclass(frozen=True)
class Judgement:
    """One judgement: what was shown, exactly as it was sampled, and what was chosen.

    `order` is the position in the annotator's sequence and stands in for a time, so that a record reproduces.
    """

    form: str
    prompt: list[Message]
    responses: list[str]
    response_tokens: list[list[int] | None]  # the sampled ids, end token included; None where text was not sampled
    choice: Any  # what the table above says for the form
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
        if needed := judgement.fault():
            raise UserError(f"{where}: {judgement.form} needs {needed}. Mend the record.")
        return judgement

    def fault(self) -> str:
        """What the form asks for, if the record does not have it; else nothing."""
        count, choice = len(self.responses), self.choice
        faults = {
            "side_by_side": (count != 2 or choice not in ("A", "B", "tie"), "two responses and a choice A, B or tie"),
            "likert": (count != 1 or not isinstance(choice, int | float), "one response and a score"),
            "ranking": (
                count < 2 or not isinstance(choice, list) or len(choice) != count,
                "two or more responses and a rank for each",
            ),
            "best_of_n": (count < 2 or choice not in range(count), "two or more responses and the index of the best"),
            "thumbs": (count != 1 or choice not in ("good", "bad"), "one response and a choice good or bad"),
        }
        if self.form not in faults:
            return f"to be one of {', '.join(faults)}"
        wrong, needed = faults[self.form]
        return needed if wrong else ""


def side_by_side(judgements: Iterable[Judgement]) -> list[Judgement]:
    """The verdicts on pairs that judgements of any form imply, each in the name of its annotator.

    A ranking implies one for every pair. The best of N is better than each other response; between those it says
    nothing. Scores and thumbs are compared among one annotator's responses to one prompt: equal scores are a tie,
    equal thumbs say nothing.
    """
    pairs: list[Judgement] = []
    alone: dict[tuple[str, str], list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        if judgement.form == "side_by_side":
            pairs.append(judgement)
        elif judgement.form in ("likert", "thumbs"):
            alone[judgement.annotator, repr(judgement.prompt)].append(judgement)
        else:
            pairs += _implied(judgement, ranks_of(judgement), ties=judgement.form == "ranking")
    for same in alone.values():
        together = replace(
            same[0],
            responses=[judgement.responses[0] for judgement in same],
            response_tokens=[judgement.response_tokens[0] for judgement in same],
        )
        worth = [judgement.choice == "good" if judgement.form == "thumbs" else judgement.choice for judgement in same]
        pairs += _implied(together, [-value for value in worth], ties=same[0].form == "likert")
    return pairs


def _implied(judgement: Judgement, ranks: list[float], *, ties: bool) -> Iterator[Judgement]:
    """A verdict for every pair of one record's responses; for those of equal rank only with `ties`."""
    for first, second in combinations(range(len(ranks)), 2):
        if ties or ranks[first] != ranks[second]:
            yield replace(
                judgement,
                form="side_by_side",
                responses=[judgement.responses[first], judgement.responses[second]],
                response_tokens=[judgement.response_tokens[first], judgement.response_tokens[second]],
                choice="tie" if ranks[first] == ranks[second] else "A" if ranks[first] < ranks[second] else "B",
            )


def ranks_of(judgement: Judgement) -> list[float]:
    """The ranks of a ranking; for the best of N 1 for the best, 2 for the others."""
    if judgement.form == "ranking":
        return list(judgement.choice)
    return [1 if index == judgement.choice else 2 for index in range(len(judgement.responses))]


def pairs_from_judgements(
    judgements: Iterable[Judgement], *, keep_ties: bool = False
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Preference rows {"prompt", "chosen", "rejected"} from the verdicts that judgements imply, one for each, in order.

    Where both responses were sampled, `chosen_tokens` and `rejected_tokens` hold the sampled ids. With `keep_ties` a
    tie makes a row whose `label`, the probability that chosen is the better one, is ½.

    Also what became of the verdicts: `pairs`, `ties`, and `identical` (equal texts), which make no row.
    """
    pairs = []
    counts = {"pairs": 0, "ties": 0, "identical": 0}
    for judgement in side_by_side(judgements):
        first, second = judgement.responses
        tie = judgement.choice == "tie"
        if first == second:
            counts["identical"] += 1
            continue
        counts["ties" if tie else "pairs"] += 1
        if tie and not keep_ties:
            continue
        better, worse = (1, 0) if judgement.choice == "B" else (0, 1)
        row: dict[str, Any] = {"prompt": judgement.prompt, "chosen": judgement.responses[better]}
        row["rejected"] = judgement.responses[worse]
        # What was sampled is trained on as it was sampled; its text might encode to other tokens (docs/pitfalls.md, 2).
        if None not in judgement.response_tokens:
            row["chosen_tokens"] = judgement.response_tokens[better]
            row["rejected_tokens"] = judgement.response_tokens[worse]
        pairs.append(row | ({"label": 0.5} if tie else {}))
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
    for judgement in side_by_side(judgements):
        if judgement.responses[0] == judgement.responses[1]:
            continue
        low, high = sorted(judgement.responses)
        verdict = {"A": 1, "B": -1, "tie": 0}[judgement.choice]
        if judgement.responses[0] != low:
            verdict = -verdict
        found[repr(judgement.prompt), low, high].append((judgement.annotator, verdict))
    return found
