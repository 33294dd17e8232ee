"""Records of feedback: what an annotator was shown and answered, and what that says about two responses."""

from dataclasses import asdict, dataclass
from typing import Any

Message = dict[str, str]
Row = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A response that is put before an annotator.

    tokens: the sampled ids, end token included; None where the text was not sampled.
    """

    text: str
    tokens: list[int] | None = None
    checkpoint: str = ""  # digest of the model that sampled it


@dataclass(frozen=True)
class Judgement:
    """One judgement: what was shown, exactly as it was sampled, and the answer.

    `order` is the position in the sequence of all judgements. It replaces a time, so that a record reproduces.
    """

    form: str  # the name of one of rlhf_core/feedback/forms
    prompt: list[Message]
    responses: list[str]
    response_tokens: list[list[int] | None]  # the sampled ids, end token included; None where text was not sampled
    choice: Any  # the annotator's answer, as the form defines it
    annotator: str
    checkpoint: str | list[str]  # digest of the model that sampled the responses; a list where they differ
    order: int

    def to_row(self) -> Row:
        """The record as a JSON object."""
        return asdict(self)

    @property
    def tokens(self) -> list[list[int]] | None:
        """The sampled ids of all responses; None unless all were sampled."""
        found = [tokens for tokens in self.response_tokens if tokens is not None]
        return found if len(found) == len(self.responses) else None


@dataclass(frozen=True)
class Verdict:
    """What a judgement implies about two responses."""

    prompt: list[Message]
    responses: tuple[str, str]
    tokens: tuple[list[int] | None, list[int] | None]
    preference: float  # probability that the first is the better one: 1, 0, or ½ for a tie
    annotator: str


PREFERENCES = "preferences"  # the file of preference_row's rows


def preference_row(verdict: Verdict) -> Row:
    """A verdict as {"prompt", "chosen", "rejected"}.

    `chosen_tokens` and `rejected_tokens` are there where both responses were sampled. `label`, the probability that
    chosen is the better one, is left out where it is 1; of a tie it is ½.
    """
    better, worse = (0, 1) if verdict.preference >= 0.5 else (1, 0)
    row: Row = {"prompt": verdict.prompt, "chosen": verdict.responses[better], "rejected": verdict.responses[worse]}
    # What was sampled is trained on as it was sampled: its text might encode to other tokens (docs/pitfalls.md, 2).
    if None not in verdict.tokens:
        row |= {"chosen_tokens": verdict.tokens[better], "rejected_tokens": verdict.tokens[worse]}
    label = max(verdict.preference, 1 - verdict.preference)
    return row if label == 1 else {**row, "label": label}


def response_row(judgement: Judgement) -> Row:
    """{"prompt", "response"} of a record that holds one response, with `response_tokens` where it was sampled."""
    row: Row = {"prompt": judgement.prompt, "response": judgement.responses[0]}
    return row if judgement.tokens is None else {**row, "response_tokens": judgement.tokens[0]}
