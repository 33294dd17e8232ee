"""Results from judgements in any form of feedback: preferences, and the agreement of annotators."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import combinations
from typing import Any

from rlhf_core.common.errors import UserError
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import Judgement, Row, Verdict, preference_row
from rlhf_core.feedback.table import form


def read_judgement(row: Mapping[str, Any], where: str = "judgement", asked: Form | None = None) -> Judgement:
    """The record in a JSON object. `asked` has the options of the form; without it they have their defaults.

    Raises:
        UserError: a field is missing or the answer is invalid; states `where` (file and line) and the fault.
    """
    for field in fields(Judgement):
        if field.name not in row:
            raise UserError(f"{where} has no {field.name!r}. Restore the record, or collect again.")
    judgement = Judgement(**{field.name: row[field.name] for field in fields(Judgement)})
    if asked is None or asked.name != judgement.form:
        asked = form(judgement.form, where)()
    asked.check(judgement.choice, len(judgement.responses), where)
    return judgement


def verdicts(judgements: Iterable[Judgement]) -> list[Verdict]:
    """The verdicts on pairs that judgements of any form imply, grouped by form."""
    by_form: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        by_form[judgement.form].append(judgement)
    return [verdict for name, same in by_form.items() for verdict in form(name)().verdicts(same)]


def preferences(judgements: Iterable[Judgement], *, keep_ties: bool = False) -> tuple[list[Row], dict[str, int]]:
    """Preference rows from the verdicts that judgements imply, one per verdict and in their order, and counts.

    With `keep_ties`, a tie gives a row with `label` ½; otherwise it gives no row.

    The counts are the numbers of `pairs`, `ties`, and `identical` verdicts (on equal texts), which give no row.
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
    """The preferences that the rows of a form's file imply within each source, and their counts.

    Rows do not name the annotator, so all scores and thumbs for one prompt are compared with each other.
    """
    by_source: dict[str | None, list[Judgement]] = defaultdict(list)
    for order, row in enumerate(rows):
        by_source[row.get("source")].append(form.judgement(row, order))
    found: list[Row] = []
    counts: dict[str, int] = defaultdict(int)
    for source, judgements in by_source.items():
        pairs, added = preferences(judgements, keep_ties=keep_ties)
        found += pairs if source is None else [{**pair, "source": source} for pair in pairs]
        for key, number in added.items():
            counts[key] += number
    return found, dict(counts)


def agreement(judgements: Iterable[Judgement]) -> float | None:
    """The fraction of equal verdicts among all pairs of verdicts by two annotators on the same two responses.

    Ties are ignored, and so is the order in which the responses were shown. None if no two verdicts can be compared.
    """
    equal = total = 0
    for said in _by_pair(judgements).values():
        for (one, first), (other, second) in combinations(said, 2):
            if one != other and first and second:
                total += 1
                equal += first == second
    return equal / total if total else None


def cyclic_triples(judgements: Iterable[Judgement]) -> float | None:
    """The fraction of cycles (a > b > c > a) among the triples of responses to a prompt with all three pairs judged.

    The winner of a pair is the response with more verdicts. A triple with an undecided pair is not a cycle. None if
    there is no triple with three judged pairs.
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
