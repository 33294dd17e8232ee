"""Records of feedback: what an annotator saw and answered, and the verdicts on pairs that the answer implies."""

from dataclasses import asdict, dataclass
from typing import Any

Message = dict[str, str]
Row = dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """One judgement: the responses shown, exactly as sampled, and the answer.

    `order` is the position in the sequence of all judgements. It replaces a timestamp to keep records reproducible.
    """

    form: str  # the name of a form in rlhf_core/feedback/forms
    prompt: list[Message]
    responses: list[str]
    response_tokens: list[list[int] | None]  # the sampled ids, including the end token; None if not sampled
    choice: Any  # the annotator's answer; the form defines its type
    annotator: str
    checkpoint: str | list[str]  # digest of the model that sampled the responses; a list if they differ
    order: int

    def to_row(self) -> Row:
        """The record as a JSON object."""
        return asdict(self)

    @property
    def tokens(self) -> list[list[int]] | None:
        """The sampled ids of all responses, None unless all were sampled."""
        found = [tokens for tokens in self.response_tokens if tokens is not None]
        return found if len(found) == len(self.responses) else None


@dataclass(frozen=True)
class Verdict:
    """The preference between two responses that a judgement implies."""

    prompt: list[Message]
    responses: tuple[str, str]
    tokens: tuple[list[int] | None, list[int] | None]
    preference: float  # probability that the first is the better one: 1, 0, or ½ for a tie
    annotator: str


PREFERENCES = "preferences"  # the file with the rows of preference_row


def preference_row(verdict: Verdict) -> Row:
    """A verdict as {"prompt", "chosen", "rejected"}.

    If both responses were sampled, the row has `chosen_tokens` and `rejected_tokens`. `label` is the probability that
    chosen is the better one, ½ for a tie; it is omitted if it is 1.
    """
    better, worse = (0, 1) if verdict.preference >= 0.5 else (1, 0)
    row: Row = {"prompt": verdict.prompt, "chosen": verdict.responses[better], "rejected": verdict.responses[worse]}
    # Training must use the sampled ids: the text can encode to other tokens (docs/pitfalls.md, 2).
    if None not in verdict.tokens:
        row |= {"chosen_tokens": verdict.tokens[better], "rejected_tokens": verdict.tokens[worse]}
    label = max(verdict.preference, 1 - verdict.preference)
    return row if label == 1 else {**row, "label": label}


def response_row(judgement: Judgement) -> Row:
    """{"prompt", "response"} of a record with one response, and `response_tokens` if it was sampled."""
    row: Row = {"prompt": judgement.prompt, "response": judgement.responses[0]}
    return row if judgement.tokens is None else {**row, "response_tokens": judgement.tokens[0]}
