"""Parse rows of the common data formats into chat messages and feedback.

| format | fields of a row |
|---|---|
| preference | a prompt, `chosen` and `rejected`, each as text or messages; or both as whole conversations |
| preference | a prompt, `response_1`, `response_2` and `preference`: 1 or 2 for the better one, 0 for a tie |
| implicit | `chosen` and `rejected` as transcripts, Human: ... Assistant: ...; the last turn is the response |
| demonstration | a prompt and `response`, `completion` or `output`; or one conversation that ends with the response |
| unpaired | as a demonstration, and a `label`: true for a good response, false for a bad one |
| ratings | as a demonstration, and a `score` (or `rating`), higher is better |
| rankings | a prompt, `responses` (a list of texts) and `ranks` (a number for each, lower is better, equal for ties) |
| question_answer | `question` and `answer`; the exact answer is the match of a pattern, or the whole text |
| prompts | a prompt without a response |

A prompt is `prompt` (text or messages), `conversations` or `messages` (either naming of roles), or `instruction` with
`input` and `history`; `system` adds a system turn. Text is kept unchanged, except that turns of a transcript are
stripped. A preference's `label` is the probability that chosen is better: 1 by default, 0.5 for a tie. If it is below
0.5 the sides are swapped, so that chosen is never the worse response. `margin` says how much better chosen is; the
Bradley-Terry loss subtracts it. `source` names the data set of a row; a reward model is evaluated on each separately.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rlhf_core.scoring.answers import read_answer
from tasks.data.fields import ROLES, Fields, Message, MissingFieldError, RowError

PROMPT_FIELDS = ("prompt", "conversations", "messages", "instruction")
CONVERSATION_FIELDS = ("conversations", "messages")
RESPONSE_FIELDS = ("response", "completion", "output")
SCORE_FIELDS = ("score", "rating")
PAIR_FIELDS = ("response_1", "response_2", "preference")
TRANSCRIPT_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


@dataclass(frozen=True)
class RawRow:
    """One row of the source: a prompt, and either a response (with a label, a score or an answer), a pair or a ranking.

    `line` is the line number from 1, or the row number if the source has no lines. An unreadable row has only a
    `fault`, the reason. `same_prompt` is False if chosen and rejected have different prompts; `prompt` is then the
    prompt of chosen. `label` is true or false for a response; for a pair it is the probability that chosen is better,
    0.5 to 1 (None: 1). `score`, `ranks` and `margin` are the values of the row; `tasks.data.clean` checks that they
    are numbers.
    """

    file: str
    line: int
    prompt: list[Message]
    response: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    margin: Any = None
    label: float | None = None
    answer: str | None = None
    score: Any = None
    ranked: tuple[str, ...] | None = None
    ranks: tuple[Any, ...] = ()
    same_prompt: bool = True
    source: str | None = None
    fault: str = ""

    @property
    def kind(self) -> str:
        """The row's kind: preference, ratings, rankings, question_answer, unpaired, demonstration or prompts."""
        if self.chosen is not None:
            return "preference"
        if self.ranked is not None:
            return "rankings"
        if self.response is None:
            return "prompts"
        if self.score is not None:
            return "ratings"
        if self.answer is not None:
            return "question_answer"
        return "demonstration" if self.label is None else "unpaired"

    @property
    def responses(self) -> list[str]:
        """The responses: a single one, chosen and rejected, or all ranked responses."""
        return [text for text in (self.response, self.chosen, self.rejected, *(self.ranked or ())) if text is not None]

    @property
    def texts(self) -> list[str]:
        """The texts of the prompt's messages and of the responses."""
        return [*(message["content"] for message in self.prompt), *self.responses]


def parse_row(fields: Fields, form: str, answer_pattern: str, preference_base: int = 1) -> RawRow:
    """Parse a row of a known format. An unreadable row is returned with its `fault`.

    Args:
        fields: The fields of the row.
        form: The format of the row.
        answer_pattern: A pattern that finds the answer in a text; its one group is the answer.
        preference_base: 1 if `preference` is 1 or 2, or 0 for a tie; 0 if it is 0 or 1.

    Raises:
        MissingFieldError: the row lacks a field of its format.
    """
    parsers: dict[str, Callable[[Fields], RawRow]] = {
        "preference": lambda row: _preference(row, preference_base),
        "implicit": _implicit,
        "question_answer": lambda row: _question_answer(row, answer_pattern),
        "rankings": _ranking,
        "ratings": lambda row: replace(_single(row), score=row.values[row.need(*SCORE_FIELDS)]),
        "unpaired": lambda row: replace(_single(row), label=_good_or_bad(row)),
        "demonstration": _single,
        "prompts": _prompt_alone,
    }
    if fields.fault:
        return faulty(fields, fields.fault)
    try:
        row = parsers[form](fields)
    except MissingFieldError:
        raise
    except RowError as error:
        return faulty(fields, str(error))
    source = fields.values.get("source")
    margin = None if row.chosen is None else fields.values.get("margin")
    return replace(row, margin=margin, source=source if isinstance(source, str) else None)


def faulty(fields: Fields, fault: str) -> RawRow:
    """Return a row that is unusable because of `fault`."""
    return RawRow(fields.file, fields.line, [], fault=fault)


def _single(fields: Fields) -> RawRow:
    prompt, response = _demonstration(fields)
    return RawRow(fields.file, fields.line, prompt, response=response)


def _prompt_alone(fields: Fields) -> RawRow:
    prompt = _prompt(fields)
    if prompt and prompt[-1]["role"] != "user":
        raise RowError(f"prompt ends with the {prompt[-1]['role']}'s turn")
    return RawRow(fields.file, fields.line, prompt)


def _ranking(fields: Fields) -> RawRow:
    responses, ranks = fields.items("responses"), fields.items("ranks")
    if not all(isinstance(response, str) for response in responses):
        raise RowError("'responses' is not a list of texts")
    return RawRow(fields.file, fields.line, _prompt(fields), ranked=tuple(responses), ranks=tuple(ranks))


def _preference(fields: Fields, base: int) -> RawRow:
    named, numbers = ("chosen", "rejected"), PAIR_FIELDS[:2]
    if not any(name in fields.values for name in (*named, *numbers)):
        raise MissingFieldError(("chosen", "response_1"))
    numbered = not fields.first(*named) and any(name in fields.values for name in numbers)
    names = numbers if numbered else named
    label = _choice(fields, base) if numbered else _probability(fields)
    for name in names:
        fields.need(name)
    whole = not isinstance(fields.values[names[0]], str) and fields.first(*PROMPT_FIELDS) is None
    given = [] if whole else _prompt(fields)
    sides = [_side(fields, name, given) for name in names]
    (chosen_prompt, chosen), (rejected_prompt, rejected) = sides if label >= 0.5 else sides[::-1]
    same = chosen_prompt is not None and chosen_prompt == rejected_prompt
    prompt = given if chosen_prompt is None else chosen_prompt
    row = RawRow(fields.file, fields.line, prompt, chosen=chosen, rejected=rejected, same_prompt=same)
    better = max(label, 1 - label)
    return row if better == 1 else replace(row, label=better)


def _probability(fields: Fields) -> float:
    """Return the probability that chosen is better; true is 1, false is 0."""
    if not fields.has("label"):
        if "label" in fields.values and fields.values["label"] is not None:
            raise RowError("NaN in 'label'")
        return 1.0
    value = fields.values["label"]
    if not isinstance(value, int | float):
        raise RowError("label not a number")
    if not 0 <= value <= 1:
        raise RowError("label outside 0 to 1")
    return float(value)


def _choice(fields: Fields, base: int) -> float:
    """Return the probability that response_1 is better, read from `preference`."""
    value = fields.values[fields.need("preference")]
    chances: dict[Any, float] = {1: 1.0, 2: 0.0, 0: 0.5} if base else {0: 1.0, 1: 0.0}
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in chances:
        raise RowError("preference not 1, 2 or 0 (tie)" if base else "preference not 0 or 1")
    return chances[value]


def _side(fields: Fields, name: str, given: list[Message]) -> tuple[list[Message] | None, str]:
    """Return the prompt and response of one side. The prompt is None if the side's messages have a different prompt.

    The messages may be only the response, the turns after the given prompt, or the whole conversation.
    """
    if isinstance(fields.values[name], str):
        return given, fields.values[name]
    earlier, response = split_last(fields.turns(name))
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
    """Return the turns of a transcript before the last, and the last turn's text if it is the assistant's."""
    before, *parts = TRANSCRIPT_TURN.split(fields.text(name))
    if before.strip():
        raise RowError(f"no 'prompt', and '{name}' is not a transcript that begins with Human: or Assistant:")
    turns = [
        {"role": ROLES[role.lower()], "content": text.strip()}
        for role, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    prompt, response = split_last(turns)
    return _alternating(prompt), response


def _alternating(turns: list[Message]) -> list[Message]:
    """Merge consecutive turns of the same speaker, which several chat templates reject."""
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
        return split_last(_with_system(fields, fields.turns(conversation)))
    prompt = _prompt(fields)
    side, response = _side(fields, fields.need(*RESPONSE_FIELDS), prompt)
    if side is None:
        raise RowError("messages of the response begin with a different prompt")
    return side, response


def _question_answer(fields: Fields, pattern: str) -> RawRow:
    question = {"role": "user", "content": fields.text("question")}
    value = fields.values[fields.need("answer")]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"{type(value).__name__} instead of text or a number in 'answer'")
    response = str(value)
    answer = read_answer(pattern, response)
    if response.strip() and answer is None:
        raise RowError("prepare.answer_pattern finds no answer in a long or multi-line text")
    return RawRow(fields.file, fields.line, _with_system(fields, [question]), response=response, answer=answer or "")


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
    """Return `history` as earlier turns, then the instruction with its input on the next line."""
    turns: list[Message] = []
    for past in fields.items("history") if fields.has("history") else []:
        if not (isinstance(past, list) and len(past) == 2 and all(isinstance(text, str) for text in past)):
            raise RowError("'history' is not a list of pairs [question, reply]")
        turns += [{"role": "user", "content": past[0]}, {"role": "assistant", "content": past[1]}]
    text = fields.text("instruction")
    extra = fields.text("input") if fields.has("input") else ""
    return [*turns, {"role": "user", "content": f"{text}\n{extra}" if extra.strip() else text}]


def _with_system(fields: Fields, turns: list[Message]) -> list[Message]:
    system = fields.text("system") if fields.has("system") else ""
    if not system.strip() or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": system}, *turns]


def split_last(turns: list[Message]) -> tuple[list[Message], str]:
    """Return the turns before the last and its text if it is the assistant's, else all turns and an empty text."""
    if turns and turns[-1]["role"] == "assistant":
        return turns[:-1], turns[-1]["content"]
    return turns, ""


def _good_or_bad(fields: Fields) -> bool:
    value = fields.values[fields.need("label")]
    if value not in (0, 1):  # true and false are 1 and 0
        raise RowError("label not true or false")
    return bool(value)
