"""The data card: what was read, what became of every row, and how long the texts are."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median_low
from typing import Any

from tasks.data.clean import Cleaned, Row, prompt_key

SHORTEST_BIN = 8  # tokens
LINES_SHOWN = 20


def data_card(source: str, kind: str, cleaned: Cleaned, files: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Everything worth knowing about prepared data, as plain values that are the same for the same data.

    Args:
        source: What was read, in words.
        kind: preference, demonstration, unpaired, ratings, rankings, question_answer or prompts.
        cleaned: The rows kept and dropped.
        files: The prepared files by name without `.jsonl`; the last part of a name is its split.

    Raises:
        ValueError: if a prompt stands in two splits, which splitting by prompt rules out.
    """
    overlap = _overlap(files)
    if any(overlap.values()):
        raise ValueError(f"prompts stand in two splits: {overlap}")
    return {
        "source": source,
        "kind": kind,
        "read": cleaned.read,
        "kept": len(cleaned.rows),
        "dropped": dict(sorted(cleaned.reasons.items())),
        "files": {name: len(rows) for name, rows in files.items()},
        "overlap": overlap,
        "prompt_tokens": length_summary(cleaned.prompt_tokens),
        "response_tokens": length_summary(cleaned.response_tokens),
        "dropped_rows": cleaned.dropped,
        "unused_rows": _unused(cleaned, files),
    }


def _overlap(files: Mapping[str, Sequence[Row]]) -> dict[str, int]:
    """How many prompts each two splits share."""
    prompts: dict[str, set[str]] = defaultdict(set)
    for name, rows in files.items():
        stem, _, split = name.rpartition("_")
        if stem:
            prompts[split].update(prompt_key(row["prompt"]) for row in rows)
    return {f"{a}/{b}": len(prompts[a] & prompts[b]) for a, b in combinations(prompts, 2)}


def _unused(cleaned: Cleaned, files: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Rows kept none of whose responses stands in a file.

    They are bad responses, and further rows for a prompt to judge on, in the split `test`.
    """
    used = {
        (json.dumps(row["prompt"]), response)
        for rows in files.values()
        for row in rows
        for response in (row.get("response"), row.get("chosen"), row.get("rejected"), *row.get("responses", ()))
    }
    return [
        {"file": row.file, "line": row.line}
        for row in cleaned.rows
        if row.responses and not any((json.dumps(row.prompt), response) in used for response in row.responses)
    ]


def length_summary(lengths: Sequence[int]) -> dict[str, Any]:
    """Least, lower median and greatest of a list of token counts, and a histogram whose bins double in width."""
    if not lengths:
        return {"bins": []}
    bins = []
    low, high = 0, SHORTEST_BIN
    while low <= max(lengths):
        bins.append({"from": low, "to": high, "count": sum(low <= length <= high for length in lengths)})
        low, high = high + 1, 2 * high
    return {"min": min(lengths), "median": median_low(lengths), "max": max(lengths), "bins": bins}


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    lines = [
        "# Data card",
        f"{card['source']} (kind: {card['kind']}): {card['read']} rows read, {card['kept']} kept.",
        "",
        "## Files",
        "| file | rows |",
        "|---|---:|",
        *(f"| {name}.jsonl | {count} |" for name, count in card["files"].items()),
        "",
        "Prompts that two splits share: "
        + (", ".join(f"{pair} {count}" for pair, count in card["overlap"].items()) or "there is one split")
        + ".",
        "",
        "## Dropped",
        *_dropped(card),
        "",
        f"Kept, but of no use to a stage: {_where(card['unused_rows']) or 'none'}.",
        *_lengths("Prompt", card["prompt_tokens"]),
        *_lengths("Response", card["response_tokens"]),
    ]
    return "\n".join(lines) + "\n"


def _dropped(card: Mapping[str, Any]) -> list[str]:
    if not card["dropped"]:
        return ["Nothing."]
    table = ["| reason | rows | where |", "|---|---:|---|"]
    for reason, count in card["dropped"].items():
        where = _where([row for row in card["dropped_rows"] if row["reason"] == reason])
        table.append(f"| {reason} | {count} | {where} |")
    return table


def _where(rows: Sequence[Row]) -> str:
    """Lines by file, the first few; card.json lists them all."""
    by_file = defaultdict(list)
    for row in rows[:LINES_SHOWN]:
        by_file[row["file"]].append(str(row["line"]))
    text = "; ".join(f"{file}, line {', '.join(numbers)}" for file, numbers in by_file.items())
    more = len(rows) - LINES_SHOWN
    return f"{text} and {more} more, listed in card.json" if more > 0 else text


def _lengths(title: str, summary: Mapping[str, Any]) -> list[str]:
    if not summary["bins"]:
        return []
    most = max(item["count"] for item in summary["bins"])
    bars = [
        f"| {item['from']}–{item['to']} | {item['count']} | {'█' * -(-30 * item['count'] // most)} |"
        for item in summary["bins"]
    ]
    head = f"Least {summary['min']}, median {summary['median']}, greatest {summary['max']}."
    return ["", f"## {title} length in tokens", head, "", "| tokens | count | |", "|---|---:|---|", *bars]
