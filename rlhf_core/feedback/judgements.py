"""What follows from judgements in any form of feedback: preferences, and how far annotators agree."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import combinations
from typing import Any

from rlhf_core.common.errors import UserError
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import Judgement, Row, Verdict, preference_row
from rlhf_core.feedback.table import form


def read_judgement(row: Mapping[str, Any], where: str = "judgement") -> Judgement:
    """The record of a JSON object.

    Raises:
        UserError: naming `where` (file and line), and the field that is missing or what the form needs.
    """
    for field in fields(Judgement):
        if field.name not in row:
            raise UserError(f"{where} has no {field.name!r}. Restore the record, or collect again.")
    judgement = Judgement(**{field.name: row[field.name] for field in fields(Judgement)})
    form(judgement.form, where)().check(judgement.choice, len(judgement.responses), where)
    return judgement


def verdicts(judgements: Iterable[Judgement]) -> list[Verdict]:
    """The verdicts on pairs that judgements of any form imply, as each form says; those of one form together."""
    by_form: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        by_form[judgement.form].append(judgement)
    return [verdict for name, same in by_form.items() for verdict in form(name)().verdicts(same)]


def preferences(judgements: Iterable[Judgement], *, keep_ties: bool = False) -> tuple[list[Row], dict[str, int]]:
    """Preference rows from the verdicts that judgements imply, one for each, in their order.

    With `keep_ties` a tie makes a row whose `label` is ½; otherwise it makes none.

    Also what became of the verdicts: `pairs`, `ties`, and `identical` (equal texts), which make no row.
    """
    rows = []
    counts = {"pairs": 0, "ties": 0, "identical": 0}
    for verdict in verdicts(judgements):
        is_tie = verdict.preference == 0.5
        if verdict.responses[0] == verdict.responses[1]:
            counts["identical"] += 1
            continue
        counts["ties" if is_tie else "pairs"] += 1
        if keep_ties or not is_tie:
            rows.append(preference_row(verdict))
    return rows, counts


def preferences_of_rows(form: Form, rows: Iterable[Row], *, keep_ties: bool) -> tuple[list[Row], dict[str, int]]:
    """The preferences that rows of a form's file imply, and their counts; within one source each.

    Rows don't say who judged, so all scores and thumbs for one prompt are compared with each other.
    """
    by_source: dict[str | None, list[Judgement]] = defaultdict(list)
    for order, row in enumerate(rows):
        responses, answer = form.read(row)
        unsampled: list[list[int] | None] = [None] * len(responses)
        by_source[row.get("source")].append(
            Judgement(form.name, row["prompt"], responses, unsampled, answer, "data", "", order)
        )
    found: list[Row] = []
    counts: dict[str, int] = defaultdict(int)
    for source, judgements in by_source.items():
        pairs, added = preferences(judgements, keep_ties=keep_ties)
        found += pairs if source is None else [{**pair, "source": source} for pair in pairs]
        for key, number in added.items():
            counts[key] += number
    return found, dict(counts)


def agreement(judgements: Iterable[Judgement]) -> float | None:
    """Share of equal verdicts among all couples of verdicts on one pair by two different annotators.

    Ties are left out; the order in which the pair was shown doesn't matter. None if no pair has two verdicts.
    """
    equal = total = 0
    for said in _by_pair(judgements).values():
        for (one, first), (other, second) in combinations(said, 2):
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
    for (prompt, low, high), said in _by_pair(judgements).items():
        net = sum(sign for _, sign in said)
        wins[prompt][low, high] = (net > 0) - (net < 0)
    cyclic = total = 0
    for pairs in wins.values():
        texts = sorted({text for pair in pairs for text in pair})
        for a, b, c in combinations(texts, 3):
            if (a, b) in pairs and (b, c) in pairs and (a, c) in pairs:
                total += 1
                cyclic += pairs[a, b] == pairs[b, c] == -pairs[a, c] != 0
    return cyclic / total if total else None


def _by_pair(judgements: Iterable[Judgement]) -> dict[tuple[str, str, str], list[tuple[str, int]]]:
    """(prompt, lesser text, greater text) -> [(annotator, 1 lesser is better, −1 greater is better, 0 tie)]."""
    found: dict[tuple[str, str, str], list[tuple[str, int]]] = defaultdict(list)
    for verdict in verdicts(judgements):
        if verdict.responses[0] == verdict.responses[1]:
            continue
        low, high = sorted(verdict.responses)
        first = (verdict.preference > 0.5) - (verdict.preference < 0.5)
        sign = first if verdict.responses[0] == low else -first
        found[repr(verdict.prompt), low, high].append((verdict.annotator, sign))
    return found
