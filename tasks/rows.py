"""Rows on disk as training examples and prompts."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_core.batch import Example, Unit
from rlhf_core.tokens import Prompt, encode_prompt, encode_response
from tasks.jsonl import read_jsonl

Row = dict[str, Any]


def demonstration_units(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Unit]:
    """Rows {"prompt", "response"} as units of one example."""
    return [
        (Example(encode_prompt(tokenizer, row["prompt"]), encode_response(tokenizer, row["response"])),)
        for row in read_jsonl(path)
    ]


def preference_units(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Unit]:
    """Rows {"prompt", "chosen", "rejected"} as units (chosen, rejected); sampled ids are used where they are there."""
    units: list[Unit] = []
    for row in read_jsonl(path):
        prompt = encode_prompt(tokenizer, row["prompt"])
        sides = [row.get(f"{side}_tokens") or encode_response(tokenizer, row[side]) for side in ("chosen", "rejected")]
        units.append((Example(prompt, sides[0]), Example(prompt, sides[1])))
    return units


def as_prompts(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Rows {"prompt"[, "answer"]} as prompts to sample from."""
    return [Prompt(row["prompt"], encode_prompt(tokenizer, row["prompt"]), row.get("answer")) for row in rows]


def prepared_kind() -> str:
    """What the prepared data is: helpdesk, preference, demonstration, unpaired or question_answer."""
    return str(json.loads(Path("data/prepared/card.json").read_text(encoding="utf-8"))["kind"])


def last_user_text(messages: Sequence[dict[str, str]]) -> str:
    """The content of the last message, which is the user's."""
    return messages[-1]["content"]
