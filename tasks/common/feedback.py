"""The rows of data/feedback: what was judged in its own form, and the preferences that follow from it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_core.feedback.judgements import Judgement, pairs_from_judgements, ranks_of

Row = dict[str, Any]

# Form of feedback -> the file of its own, NAME_SPLIT.jsonl; a verdict side by side is a preference as it stands.
NATIVE = {"likert": "ratings", "ranking": "rankings", "best_of_n": "rankings", "thumbs": "unpaired"}
FORM = {"ratings": "likert", "rankings": "ranking", "unpaired": "thumbs"}


def native_row(judgement: Judgement) -> Row:
    """A judgement as a row of its form's file; sampled ids stand beside the texts where there are any."""
    row: Row = {"prompt": judgement.prompt}
    tokens = None if None in judgement.response_tokens else judgement.response_tokens
    if NATIVE[judgement.form] == "rankings":
        row |= {"responses": judgement.responses}
        row |= {} if tokens is None else {"responses_tokens": tokens}
        return row | {"ranks": ranks_of(judgement)}
    row |= {"response": judgement.responses[0]}
    row |= {} if tokens is None else {"response_tokens": tokens[0]}
    if judgement.form == "likert":
        return row | {"score": judgement.choice}
    return row | {"label": judgement.choice == "good"}


def preferences_from(name: str, rows: Iterable[Row], *, keep_ties: bool) -> tuple[list[Row], dict[str, int]]:
    """The preferences that ratings, rankings or unpaired rows imply, and their counts; within one source each.

    Rows don't say who judged, so all scores and thumbs of one prompt are compared with each other.
    """
    by_source: dict[str | None, list[Judgement]] = defaultdict(list)
    for order, row in enumerate(rows):
        by_source[row.get("source")].append(_judgement(FORM[name], row, order))
    found: list[Row] = []
    counts: dict[str, int] = defaultdict(int)
    for source, judgements in by_source.items():
        pairs, added = pairs_from_judgements(judgements, keep_ties=keep_ties)
        found += pairs if source is None else [{**pair, "source": source} for pair in pairs]
        for key, number in added.items():
            counts[key] += number
    return found, dict(counts)


def _judgement(form: str, row: Row, order: int) -> Judgement:
    responses: Sequence[str] = row["responses"] if form == "ranking" else [row["response"]]
    choices = {"ranking": "ranks", "likert": "score", "thumbs": "label"}
    choice = row[choices[form]]
    if form == "thumbs":
        choice = "good" if choice else "bad"
    return Judgement(form, row["prompt"], list(responses), [None] * len(responses), choice, "data", "", order)
