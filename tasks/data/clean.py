"""Clean rows and split them by prompt. Unusable rows are dropped and listed."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_core.common.errors import UserError
from rlhf_core.feedback.form import Form, is_number
from rlhf_core.feedback.table import form_of_kind
from tasks.data.fields import Message
from tasks.data.formats import RawRow

Row = dict[str, Any]
CountTokens = Callable[[list[Message], str], tuple[int, int]]

DUPLICATE = "duplicate"
SURROGATE = re.compile(r"[\ud800-\udfff]")  # half of a surrogate pair, left by cutting an emoji; tokenizers reject it


@dataclass(frozen=True)
class Cleaned:
    """The usable rows, and the dropped rows as `{"file", "line", "reason"}`; together, all rows that were read."""

    rows: list[RawRow] = field(default_factory=list)
    dropped: list[Row] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)  # one number per row kept
    response_tokens: list[int] = field(default_factory=list)  # one number per response kept

    @property
    def read(self) -> int:
        """The number of rows that were read."""
        return len(self.rows) + len(self.dropped)

    @property
    def reasons(self) -> Counter[str]:
        """The number of dropped rows by reason, including duplicates."""
        return Counter(row["reason"] for row in self.dropped)


def clean(
    rows: Iterable[RawRow],
    *,
    count_tokens: CountTokens,
    max_prompt_tokens: int,
    max_response_tokens: int,
    context: int | None = None,
    scale: int = 5,
) -> Cleaned:
    """Drop rows that are empty, too long or duplicates, and rows with invalid or uninformative feedback.

    Args:
        rows: The rows as read.
        count_tokens: Returns the number of tokens of (prompt, response), including generation prompt and end token.
        max_prompt_tokens: Maximum number of tokens of a prompt.
        max_response_tokens: Maximum number of tokens of a response.
        context: The model's context, which limits prompt tokens plus `max_response_tokens`. None: no limit.
        scale: The highest score of a rating; the lowest is 1.
    """
    cleaned = Cleaned()
    seen = set()
    for row in rows:
        reason = row.fault or _fault(row, scale)
        identity = None if reason else _identity(row)
        if identity in seen:
            reason = DUPLICATE
        if not reason:
            sizes = [count_tokens(row.prompt, response) for response in row.responses or [""]]
            reason = _excess(sizes, max_prompt_tokens, max_response_tokens, context)
        if reason:
            cleaned.dropped.append({"file": row.file, "line": row.line, "reason": reason})
        else:
            seen.add(identity)
            cleaned.rows.append(row)
            cleaned.prompt_tokens.append(sizes[0][0])
            cleaned.response_tokens.extend(response for _, response in sizes[: len(row.responses)])
    return cleaned


def _identity(row: RawRow) -> tuple[Any, ...]:
    """What duplicates share. The same judgement in two sources is one of each."""
    return (_canonical(row.prompt), *row.responses, row.label, repr((row.score, row.ranks, row.margin)), row.source)


def _fault(row: RawRow, scale: int) -> str:
    if not row.prompt or not row.prompt[-1]["content"].strip():
        return "empty prompt"
    if not all(response.strip() for response in row.responses):
        return "empty response"
    if not row.same_prompt:
        return "different prompts for chosen and rejected"
    if row.chosen is not None and row.chosen == row.rejected:
        return "chosen equal to rejected"
    if any(SURROGATE.search(text) for text in (*row.texts, row.answer or "", row.source or "")):
        return "invalid Unicode text"
    return _score_fault(row.score, scale) or _margin_fault(row.margin) or _ranking_fault(row.ranked, row.ranks)


def _score_fault(score: Any, scale: int) -> str:
    if score is None:
        return ""
    if not is_number(score):
        return "score not a number"
    return "" if 1 <= score <= scale else f"score outside 1 to collect.scale {scale}"


def _margin_fault(margin: Any) -> str:
    return "" if margin is None or is_number(margin) else "margin not a number"


def _ranking_fault(responses: Sequence[str] | None, ranks: Sequence[Any]) -> str:
    if responses is None:
        return ""
    if len(responses) != len(ranks):
        return "different numbers of responses and ranks"
    if not all(is_number(rank) for rank in ranks):
        return "rank not a number"
    return "ranking of fewer than 2 different responses" if len(set(responses)) < 2 else ""


def _excess(sizes: Sequence[tuple[int, int]], max_prompt: int, max_response: int, context: int | None) -> str:
    if sizes[0][0] > max_prompt:
        return "prompt too long"
    longest = max(response for _, response in sizes)
    if longest > max_response:
        return "response too long"
    # Stages sample from this prompt, so a response of any allowed length must fit, not only this row's response.
    if context is not None and sizes[0][0] + max_response > context:
        return f"prompt plus max_response_tokens {max_response} longer than the context of {context}"
    return ""


def check_dropped(cleaned: Cleaned, max_dropped: float) -> None:
    """Raise UserError if more than a fraction `max_dropped` of the rows is unusable. Duplicates do not count.

    Raises:
        UserError: the message has the count and the first row of each reason.
    """
    bad = [row for row in cleaned.dropped if row["reason"] != DUPLICATE]
    if len(bad) <= max_dropped * cleaned.read:
        return
    first: dict[str, Row] = {}
    for row in bad:
        first.setdefault(row["reason"], row)
    reasons = "; ".join(
        f"{reason} ({cleaned.reasons[reason]}, first in {row['file']}, line {row['line']})"
        for reason, row in first.items()
    )
    raise UserError(
        f"{len(bad)} of {cleaned.read} rows are unusable, more than prepare.max_dropped {max_dropped:g} allows: "
        f"{reasons}. Correct the rows, change the token limits, or raise prepare.max_dropped."
    )


def split_by_prompt(rows: Sequence[RawRow], fractions: Mapping[str, float], seed: int) -> dict[str, list[RawRow]]:
    """Return the rows of each split. All rows of a prompt are in the same split; fractions count prompts.

    Prompts are sorted by sha256(seed, prompt) and divided into slices, so the split depends neither on the order of
    the rows nor on Python's hashing. Prompts that differ only in case or spaces count as the same prompt.

    Raises:
        UserError: a split with a positive fraction is empty, or the fractions are negative or do not sum to 1.
    """
    if min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-9:
        raise UserError(
            f"the fractions of the splits must be at least 0 and sum to 1, not {_shares(fractions)}. "
            "Correct prepare.*_fraction."
        )
    groups: dict[str, list[RawRow]] = defaultdict(list)
    for row in rows:
        groups[prompt_key(row.prompt)].append(row)
    order = sorted(groups, key=lambda prompt: hashlib.sha256(f"{seed}\n{prompt}".encode()).digest())
    splits: dict[str, list[RawRow]] = {}
    start, share = 0, 0.0
    for name, fraction in fractions.items():
        share += fraction
        end = round(share * len(order))
        splits[name] = [row for prompt in order[start:end] for row in groups[prompt]]
        if fraction > 0 and start == end:
            raise UserError(
                f"{len(order)} distinct prompts are too few for the splits {_shares(fractions)}: {name} is empty. "
                "Add data, or raise prepare.*_fraction."
            )
        start = end
    return splits


def _shares(fractions: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {fraction:g}" for name, fraction in fractions.items())


def to_prepared(splits: Mapping[str, Sequence[RawRow]], kind: str, scale: int = 5) -> dict[str, list[Row]]:
    """Return the rows of each file of data/prepared, by name without `.jsonl` (listed in docs/architecture.md).

    `splits` contains train, development and test, and judge if the kind has feedback. These responses become
    demonstrations and references for their prompts: a chosen response, a response labelled good, the best of a ranking,
    and the best rated response of a prompt if its score is in the upper half of the scale. Feedback files without rows
    are omitted. Without any response there are no demonstrations.
    """
    files: dict[str, list[Row]] = {}
    has_responses = any(row.responses for rows in splits.values() for row in rows)
    splits = {split: _best_rated(rows, scale) for split, rows in splits.items()}
    for split in ("train", "development") if has_responses else ():
        files[f"demonstrations_{split}"] = _distinct(
            {"prompt": row.prompt, "response": response} for row in splits[split] for response in _good(row)
        )
    for split in ("train", "development", "test"):
        files[f"prompts_{split}"] = _prompts(splits[split], with_response=split != "train" and has_responses)
    if form := form_of_kind(kind):
        for split in ("train", "development", "judge"):
            if rows := splits.get(split):
                files[f"{form.file}_{split}"] = [_feedback(form, row) for row in rows]
    elif splits.get("judge"):
        raise ValueError(f"data of kind {kind} has no preferences, so its split 'judge' must be empty")
    return files


def _best_rated(rows: Sequence[RawRow], scale: int) -> list[RawRow]:
    """Label the best rated responses of each prompt as good if their score is in the upper half of the scale.

    Rows without a score are unchanged.
    """
    best: dict[str, float] = defaultdict(float)
    for row in rows:
        if row.score is not None:
            best[_canonical(row.prompt)] = max(best[_canonical(row.prompt)], row.score)
    middle = (1 + scale) / 2

    def labelled(row: RawRow) -> RawRow:
        is_good = row.score == best[_canonical(row.prompt)] and row.score > middle
        return row if row.score is None else replace(row, label=is_good)

    return [labelled(row) for row in rows]


def _feedback(form: Form, row: RawRow) -> Row:
    """Return a row's feedback, as its form stores it."""
    given = form.stored(vars(row) | {"responses": row.responses})
    return given if row.source is None else given | {"source": row.source}


def _good(row: RawRow) -> list[str]:
    """Return the good response of a row (chosen, best ranked, or the only one); empty if it is bad or a tie."""
    if row.ranked is not None:
        return [row.ranked[row.ranks.index(min(row.ranks))]]
    text = row.chosen if row.response is None else row.response
    return [text] if text is not None and row.label not in (False, 0.5) else []


def _prompts(rows: Iterable[RawRow], with_response: bool) -> list[Row]:
    """Return each prompt once, with its answer if it has one. With `with_response`, keep only prompts that have one."""
    found: dict[str, Row] = {}
    for row in rows:
        good = _good(row)
        if with_response and not good:
            continue
        prompt: Row = {"prompt": row.prompt}
        if row.answer is not None:
            prompt["answer"] = row.answer
        if with_response:
            prompt["response"] = good[0]
        found.setdefault(_canonical(row.prompt), prompt)
    return list(found.values())


def _distinct(rows: Iterable[Row]) -> list[Row]:
    return list({_canonical(row): row for row in rows}.values())


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def prompt_key(prompt: Sequence[Message]) -> str:
    """Return a key that is equal for equal prompts: roles and text, ignoring case and spacing."""
    return _canonical([(message["role"], " ".join(message["content"].split()).casefold()) for message in prompt])
