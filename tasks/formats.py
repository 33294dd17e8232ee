"""Rows in the field's formats, read as chat messages and what was said about them.

| format | a row holds |
|---|---|
| preference | a prompt, `chosen` and `rejected`, each as text or messages; or the two as whole conversations |
| implicit | `chosen` and `rejected` as transcripts, Human: ... Assistant: ...; the last turn is the response |
| demonstration | a prompt and `response`, `completion` or `output`; or one conversation that ends with the response |
| unpaired | as a demonstration, and a `label`: true for a good response, false for a bad one |
| ratings | as a demonstration, and a `score` (or `rating`), higher is better |
| rankings | a prompt, `responses` (a list of texts) and `ranks` (a number for each, lower is better, equal for ties) |
| question_answer | `question` and `answer`, where a pattern finds the exact answer |

A prompt is `prompt` (text or messages), `conversations` or `messages` (either naming of roles), or `instruction` with
`input` and `history`; `system` adds a system turn. Text is kept as it is; only the turns of a transcript are stripped.
A pair's `margin` is by how much the chosen response is better, for the Bradley-Terry loss to subtract.
A text in `source` names the data set that a row came from: a reward model is measured on each apart.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlhf_core.errors import UserError

Message = dict[str, str]

PROMPT_FIELDS = ("prompt", "conversations", "messages", "instruction")
CONVERSATION_FIELDS = ("conversations", "messages")
RESPONSE_FIELDS = ("response", "completion", "output")
SCORE_FIELDS = ("score", "rating")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    "system": "system",
}
TRANSCRIPT_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


@dataclass(frozen=True)
class RawRow:
    """One row of the source: a prompt, and either a response (with a label, a score or an answer), a pair or a ranking.

    `line` counts from 1; where a source has no lines it is the number of the row. `same_prompt` is False where chosen
    and rejected go back to differing prompts; `prompt` is then the chosen one's. `score`, `ranks` and `margin` are as
    they stood in the row: whether they are numbers is looked at when rows are cleaned.
    """

    file: str
    line: int
    prompt: list[Message]
    response: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    margin: Any = None
    label: bool | None = None
    answer: str | None = None
    score: Any = None
    ranked: tuple[str, ...] | None = None
    ranks: tuple[Any, ...] = ()
    same_prompt: bool = True
    source: str | None = None

    @property
    def kind(self) -> str:
        """What the row is: preference, ratings, rankings, question_answer, unpaired or demonstration."""
        if self.chosen is not None:
            return "preference"
        if self.ranked is not None:
            return "rankings"
        if self.score is not None:
            return "ratings"
        if self.answer is not None:
            return "question_answer"
        return "demonstration" if self.label is None else "unpaired"

    @property
    def responses(self) -> list[str]:
        """The one response, chosen and rejected, or all that were ranked."""
        return [text for text in (self.response, self.chosen, self.rejected, *(self.ranked or ())) if text is not None]


@dataclass(frozen=True)
class Fields:
    """A row as it stands in the source, and where that is. A field that is null counts as missing."""

    file: str
    line: int
    values: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether the field is there."""
        return self.values.get(name) is not None

    def first(self, *names: str) -> str | None:
        """The first of these fields that is there."""
        return next((name for name in names if self.has(name)), None)

    def need(self, *names: str) -> str:
        """The first of these fields that is there.

        Raises:
            UserError: if none is; it lists the fields that are.
        """
        name = self.first(*names)
        if name is None:
            there = ", ".join(sorted(key for key in self.values if self.has(key))) or "none"
            wanted = " or ".join(f"'{name}'" for name in names)
            raise self.error(f"the field {wanted} is missing; fields there: {there}. Add it, or set prepare.format.")
        return name

    def text(self, name: str) -> str:
        """A field that must be text."""
        value = self.values[self.need(name)]
        if not isinstance(value, str):
            raise self.error(f"the field '{name}' must be text, not {type(value).__name__}. Mend the row.")
        return value

    def turns(self, name: str) -> list[Message]:
        """A field that holds a message or a list of messages, with `role` and `content` or `from` and `value`."""
        value = self.values[self.need(name)]
        messages = value if isinstance(value, list) else [value]
        return [self._message(name, message) for message in messages]

    def _message(self, name: str, message: Any) -> Message:
        if not isinstance(message, Mapping):
            raise self.error(f"the field '{name}' must be text or chat messages. Mend the row.")
        role = message.get("role") or message.get("from")
        content = message.get("content") if message.get("content") is not None else message.get("value")
        if role not in ROLES:
            raise self.error(f"a message of '{name}' has the role {role!r}. Known are: {', '.join(ROLES)}.")
        if not isinstance(content, str):
            raise self.error(f"a message of '{name}' has no text as its content. Only text can be trained on.")
        return {"role": ROLES[role], "content": content}

    def error(self, what: str) -> UserError:
        """An error that says where the row stands."""
        return UserError(f"{self.file}, line {self.line}: {what}")


def detect_format(fields: Fields) -> str:
    """The format that a row's fields show."""
    chosen, rejected = fields.values.get("chosen"), fields.values.get("rejected")
    if chosen is not None or rejected is not None:
        bare = fields.first(*PROMPT_FIELDS) is None and isinstance(chosen, str) and isinstance(rejected, str)
        return "implicit" if bare else "preference"
    if fields.has("question") and fields.has("answer"):
        return "question_answer"
    if fields.first(*PROMPT_FIELDS) is not None:
        if fields.has("responses") and fields.has("ranks"):
            return "rankings"
        if fields.has("label"):
            return "unpaired"
        return "demonstration" if fields.first(*SCORE_FIELDS) is None else "ratings"
    fields.need("prompt", "messages", "conversations", "instruction", "question", "chosen")
    raise fields.error("the format cannot be told from the fields. Set prepare.format.")


def parse_row(fields: Fields, form: str, answer_pattern: re.Pattern[str]) -> RawRow:
    """A row of a known format.

    Raises:
        UserError: naming file, line and field where something needed is missing or of the wrong type.
    """
    parsers: dict[str, Callable[[Fields], RawRow]] = {
        "preference": _preference,
        "implicit": _implicit,
        "question_answer": lambda row: _question_answer(row, answer_pattern),
        "rankings": _ranking,
        "ratings": lambda row: replace(_single(row), score=row.values[row.need(*SCORE_FIELDS)]),
        "unpaired": lambda row: replace(_single(row), label=_label(row)),
        "demonstration": _single,
    }
    row, source = parsers[form](fields), fields.values.get("source")
    margin = None if row.chosen is None else fields.values.get("margin")
    return replace(row, margin=margin, source=source if isinstance(source, str) else None)


def _single(fields: Fields) -> RawRow:
    prompt, response = _demonstration(fields)
    return RawRow(fields.file, fields.line, prompt, response=response)


def _ranking(fields: Fields) -> RawRow:
    lists: list[Any] = [fields.values[fields.need(name)] for name in ("responses", "ranks")]
    for name, value in zip(("responses", "ranks"), lists, strict=True):
        if not isinstance(value, list):
            raise fields.error(f"the field '{name}' must be a list, not {type(value).__name__}. Mend the row.")
    responses, ranks = lists
    if not all(isinstance(response, str) for response in responses):
        raise fields.error("the field 'responses' must be a list of texts. Mend the row.")
    return RawRow(fields.file, fields.line, _prompt(fields), ranked=tuple(responses), ranks=tuple(ranks))


def _preference(fields: Fields) -> RawRow:
    for name in ("chosen", "rejected"):
        fields.need(name)
    whole = not isinstance(fields.values["chosen"], str) and fields.first(*PROMPT_FIELDS) is None
    given = [] if whole else _prompt(fields)
    chosen_prompt, chosen = _side(fields, "chosen", given)
    rejected_prompt, rejected = _side(fields, "rejected", given)
    same = chosen_prompt is not None and chosen_prompt == rejected_prompt
    prompt = given if chosen_prompt is None else chosen_prompt
    return RawRow(fields.file, fields.line, prompt, chosen=chosen, rejected=rejected, same_prompt=same)


def _side(fields: Fields, name: str, given: list[Message]) -> tuple[list[Message] | None, str]:
    """One side's prompt and response; the prompt is None where the side's messages belong to another one.

    Messages may be the response alone, the turns that follow the given prompt, or the whole conversation.
    """
    if isinstance(fields.values[name], str):
        return given, fields.values[name]
    earlier, response = _split_last(fields.turns(name))
    count = len(given)
    if not earlier:
        return given, response
    if given in (earlier[:count], earlier[-count:]):
        return earlier, response
    return (given + earlier if earlier[0]["role"] == "assistant" else None), response


def _implicit(fields: Fields) -> RawRow:
    (prompt, chosen), (other, rejected) = (_transcript(fields, name) for name in ("chosen", "rejected"))
    return RawRow(fields.file, fields.line, prompt, chosen=chosen, rejected=rejected, same_prompt=prompt == other)


def _transcript(fields: Fields, name: str) -> tuple[list[Message], str]:
    """A transcript's turns before the last assistant's, and that one's text."""
    before, *parts = TRANSCRIPT_TURN.split(fields.text(name))
    if before.strip():
        raise fields.error(
            f"the field '{name}' is not a transcript that begins with Human: or Assistant:. "
            "Add a 'prompt', or set prepare.format."
        )
    turns = [
        {"role": ROLES[role.lower()], "content": text.strip()}
        for role, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    prompt, response = _split_last(turns)
    return _alternating(prompt), response


def _alternating(turns: list[Message]) -> list[Message]:
    """Turns of one speaker in a row as one: several chat templates refuse them otherwise."""
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            merged[-1] = {**turn, "content": f"{merged[-1]['content']}\n\n{turn['content']}"}
        else:
            merged.append(turn)
    return merged


def _demonstration(fields: Fields) -> tuple[list[Message], str]:
    conversation = fields.first(*CONVERSATION_FIELDS)
    if not fields.has("prompt") and conversation is not None:
        return _split_last(_with_system(fields, fields.turns(conversation)))
    prompt = _prompt(fields)
    side, response = _side(fields, fields.need(*RESPONSE_FIELDS), prompt)
    if side is None:
        raise fields.error("the response's messages begin with another prompt than the row's. Mend the row.")
    return side, response


def _question_answer(fields: Fields, pattern: re.Pattern[str]) -> RawRow:
    question = {"role": "user", "content": fields.text("question")}
    response = str(fields.values[fields.need("answer")])
    match = pattern.search(response)
    answer = match[1].replace(",", "").strip() if match else ""
    if response.strip() and not answer:
        raise fields.error(f"prepare.answer_pattern {pattern.pattern!r} finds nothing in 'answer'. Mend either.")
    return RawRow(fields.file, fields.line, _with_system(fields, [question]), response=response, answer=answer)


def _prompt(fields: Fields) -> list[Message]:
    name = fields.need(*PROMPT_FIELDS)
    if name == "instruction":
        turns = _instruction(fields)
    elif isinstance(fields.values[name], str):
        turns = [{"role": "user", "content": fields.values[name]}]
    else:
        turns = fields.turns(name)
    return _with_system(fields, turns)


def _instruction(fields: Fields) -> list[Message]:
    """`history` as earlier turns, then the instruction, its input on the next line."""
    turns: list[Message] = []
    for past in fields.values.get("history") or []:
        if not (isinstance(past, list) and len(past) == 2 and all(isinstance(text, str) for text in past)):
            raise fields.error("the field 'history' must hold pairs of texts, [question, reply]. Mend the row.")
        turns += [{"role": "user", "content": past[0]}, {"role": "assistant", "content": past[1]}]
    text = fields.text("instruction")
    extra = fields.text("input") if fields.has("input") else ""
    return [*turns, {"role": "user", "content": f"{text}\n{extra}" if extra.strip() else text}]


def _with_system(fields: Fields, turns: list[Message]) -> list[Message]:
    system = fields.text("system") if fields.has("system") else ""
    if not system.strip() or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": system}, *turns]


def _split_last(turns: list[Message]) -> tuple[list[Message], str]:
    """The turns before the last, and its text if it is the assistant's; otherwise there is no response."""
    if turns and turns[-1]["role"] == "assistant":
        return turns[:-1], turns[-1]["content"]
    return turns, ""


def _label(fields: Fields) -> bool:
    value = fields.values[fields.need("label")]
    if value not in (0, 1):  # true and false are 1 and 0
        raise fields.error(f"the field 'label' is {value!r}. Write true for a good response, false for a bad one.")
    return bool(value)
