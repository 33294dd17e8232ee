"""The data card: the source, the number of rows read, kept and dropped, and the lengths of the texts."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median_low
from typing import Any

from tasks.data.clean import Cleaned, Row, prompt_key

SHORTEST_BIN = 8  # tokens
LINES_SHOWN = 20
FEW = 5  # files or reasons in a log line


def data_card(source: str, kind: str, cleaned: Cleaned, files: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Return the data card as plain values. The same data gives the same card.

    Args:
        source: Description of the data source.
        kind: preference, demonstration, unpaired, ratings, rankings, question_answer or prompts.
        cleaned: The rows kept and dropped.
        files: The prepared files by name without `.jsonl`; the last part of a name is its split.

    Raises:
        ValueError: a prompt is in two splits, which `split_by_prompt` prevents.
    """
    overlap = _overlap(files)
    if any(overlap.values()):
        raise ValueError(f"prompts are in two splits: {overlap}")
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
    """Return the number of shared prompts for each pair of splits."""
    prompts: dict[str, set[str]] = defaultdict(set)
    for name, rows in files.items():
        stem, _, split = name.rpartition("_")
        if stem:
            prompts[split].update(prompt_key(row["prompt"]) for row in rows)
    return {f"{a}/{b}": len(prompts[a] & prompts[b]) for a, b in combinations(prompts, 2)}


def _unused(cleaned: Cleaned, files: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Return kept rows that have responses but none of them in a file.

    These are bad responses, and additional rows for prompts of the split `test`.
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
    """Return minimum, lower median and maximum of token counts, and a histogram whose bins double in width."""
    if not lengths:
        return {"bins": []}
    bins = []
    low, high = 0, SHORTEST_BIN
    while low <= max(lengths):
        bins.append({"from": low, "to": high, "count": sum(low <= length <= high for length in lengths)})
        low, high = high + 1, 2 * high
    return {"min": min(lengths), "median": median_low(lengths), "max": max(lengths), "bins": bins}


def card_markdown(card: Mapping[str, Any]) -> str:
    """Return the card as a Markdown page."""
    lines = [
        "# Data card",
        f"{card['source']} (kind: {card['kind']}): {card['read']} rows read, {card['kept']} kept.",
        "",
        "## Files",
        "| file | rows |",
        "|---|---:|",
        *(f"| {name}.jsonl | {count} |" for name, count in card["files"].items()),
        "",
        "Prompts shared by two splits: "
        + (", ".join(f"{pair} {count}" for pair, count in card["overlap"].items()) or "only one split")
        + ".",
        "",
        "## Dropped",
        *_dropped(card),
        "",
        f"Kept, but not used by any stage: {_where(card['unused_rows']) or 'none'}.",
        *_lengths("Prompt", card["prompt_tokens"]),
        *_lengths("Response", card["response_tokens"]),
    ]
    return "\n".join(lines) + "\n"


def dropped_text(card: Mapping[str, Any]) -> str:
    """Say how many rows were dropped, from which file and for which reasons, the most frequent first; '' if none."""
    if not card["dropped"]:
        return ""
    files = Counter(row["file"] for row in card["dropped_rows"])
    where = next(iter(files)) if len(files) == 1 else f"{card['source']} ({_counted(files)})"
    return f"{files.total():,} of {card['read']:,} rows dropped from {where}: {_counted(Counter(card['dropped']))}"


def _counted(counts: Counter[str]) -> str:
    """`a 3, b 2`, the most frequent first; after FEW of them how many more there are."""
    more = f" and {len(counts) - FEW} more" if len(counts) > FEW else ""
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(FEW)) + more


def _dropped(card: Mapping[str, Any]) -> list[str]:
    if not card["dropped"]:
        return ["Nothing."]
    table = ["| reason | rows | where |", "|---|---:|---|"]
    for reason, count in card["dropped"].items():
        where = _where([row for row in card["dropped_rows"] if row["reason"] == reason])
        table.append(f"| {reason} | {count} | {where} |")
    return table


def _where(rows: Sequence[Row]) -> str:
    """Return the first LINES_SHOWN line numbers by file; card.json lists all."""
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
    head = f"Minimum {summary['min']}, median {summary['median']}, maximum {summary['max']}."
    return ["", f"## {title} length in tokens", head, "", "| tokens | count | |", "|---|---:|---|", *bars]
