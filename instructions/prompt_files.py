"""Read prompt files in the format of IFEval: JSON Lines with `key`, `prompt`, `instruction_id_list` and `kwargs`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructions.checker import content_words
from instructions.table import make_constraint, values_of
from rlhf_core.common.errors import UserError

Row = dict[str, Any]


def read_prompts(path: Path) -> list[Row]:
    """Return rows as `instructions.generate` makes them; what an answer is about are the words of the prompt.

    `kwargs` may be missing, null or {} for a constraint without values.

    Raises:
        UserError: a line is not JSON or lacks a field, or an id or a value is wrong; the message names file, line and
            id, and lists the known ids.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}). Name a file of prompts in UTF-8.") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_row(line, f"{path}, line {number}"))
    if not rows:
        raise UserError(f"{path} has no rows. Add some.")
    return rows


def _row(line: str, where: str) -> Row:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}). Correct it.") from error
    if not isinstance(raw, Mapping) or not isinstance(raw.get("prompt"), str) or not raw["prompt"].strip():
        raise UserError(f"{where} has no text in 'prompt'. Add it.")
    where = f"{where}, key {raw['key']}" if "key" in raw else where
    ids = raw.get("instruction_id_list")
    if not isinstance(ids, list) or not ids or not all(isinstance(id, str) for id in ids):
        raise UserError(f"{where} has no list of ids in 'instruction_id_list'. Add it.")
    values = raw.get("kwargs") or [None] * len(ids)
    if not isinstance(values, list) or not all(value is None or isinstance(value, Mapping) for value in values):
        raise UserError(f"{where}: kwargs must be a list with an object or null for each id. Correct it.")
    if len(values) != len(ids):
        raise UserError(f"{where} has {len(ids)} ids, but {len(values)} kwargs. Give one for each id.")
    made = [make_constraint(id, given, where) for id, given in zip(ids, values, strict=True)]
    return {
        "prompt": [{"role": "user", "content": raw["prompt"]}],
        "instruction_id_list": ids,
        "kwargs": [values_of(constraint) for constraint in made],
        "about": sorted(content_words([raw["prompt"]])),
        "group": "prompts",
    }
