"""The interface of forms of feedback. Each form declares its properties in its own file.

Annotators, stages, parameters and reward models do not know which form they have. A form defines how responses are
shown, which answers are valid, how an answer is stored, and which preferences it implies. It overrides only what
differs from the defaults here.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar

from rlhf_core.common.data import Data
from rlhf_core.common.errors import UserError
from rlhf_core.feedback.judgement import Judgement, Row, Verdict
from rlhf_core.feedback.opinion import Opinion


@dataclass(frozen=True)
class Form:
    """A form of feedback. Its fields are its options, each made with `setting`; they are keys of section `collect`."""

    name: ClassVar[str]  # the name in params.yaml and of the file
    needs: ClassVar[str]  # the contents of a valid record, for messages
    file: ClassVar[str]  # NAME in NAME_SPLIT.jsonl, the file with the form's rows
    kind: ClassVar[str] = ""  # the kind of user data with these rows; empty if another form reads the rows
    data: ClassVar[Data]  # what methods learn from the rows
    suggested_loss: ClassVar[str]  # the reward loss that messages suggest for data of this form
    has_ties: ClassVar[bool] = True  # whether two responses can be judged equal
    is_alone: ClassVar[bool] = False  # whether each response gets a separate answer

    def question(self, count: int) -> str:
        """The question about `count` responses, in words."""
        raise NotImplementedError

    def shown(self, count: int) -> int:
        """The number of responses shown together, out of a prompt's `count`."""
        return count

    def accepts(self, answer: Any, count: int) -> bool:
        """Whether `answer` is valid for `count` responses."""
        raise NotImplementedError

    def check(self, answer: Any, count: int, where: str) -> None:
        """Raise UserError with the place `where` unless `answer` is valid for `count` responses."""
        if not self.accepts(answer, count):
            raise UserError(f"{where}: {self.name} needs {self.needs}. Correct the record.")

    def simulated(self, opinion: Opinion) -> list[Any]:
        """The answers of a simulated annotator: one, or one per response if the form `is_alone`."""
        raise NotImplementedError

    def row(self, judgement: Judgement) -> Row:
        """A judgement as a row of `file`, with the token ids of sampled responses."""
        raise NotImplementedError

    def read(self, row: Mapping[str, Any]) -> tuple[list[str], Any]:
        """The responses and the answer in a row of `file` or of a user's data.

        Forms without a `kind` do not read rows, nor does the form of preferences, whose rows are passed on unchanged.
        """
        raise NotImplementedError

    def judgement(self, row: Mapping[str, Any], order: int = 0) -> Judgement:
        """The judgement in a row of a user's data, which names neither the annotator nor sampled ids."""
        responses, answer = self.read(row)
        return Judgement(
            form=self.name,
            prompt=row["prompt"],
            responses=responses,
            response_tokens=[None] * len(responses),
            choice=answer,
            annotator="data",
            checkpoint="",
            order=order,
        )

    def stored(self, given: Mapping[str, Any]) -> Row:
        """A row of a user's data as a row of `file`. `given` has at least the prompt and what `read` reads."""
        return self.row(self.judgement(given))

    def worth(self, answer: Any, count: int) -> Sequence[float]:
        """A number for each response, in the order that the answer implies; higher is better."""
        raise NotImplementedError

    def verdicts(self, judgements: Iterable[Judgement]) -> Iterator[Verdict]:
        """The verdicts on pairs that judgements of this form imply, each with its annotator.

        Separate answers about responses are compared within one annotator and one prompt.
        """
        for judgement, worth in self._compared(judgements):
            for i, j in combinations(range(len(worth)), 2):
                if self.has_ties or worth[i] != worth[j]:
                    yield Verdict(
                        prompt=judgement.prompt,
                        responses=(judgement.responses[i], judgement.responses[j]),
                        tokens=(judgement.response_tokens[i], judgement.response_tokens[j]),
                        preference=0.5 if worth[i] == worth[j] else float(worth[i] > worth[j]),
                        annotator=judgement.annotator,
                    )

    def _compared(self, judgements: Iterable[Judgement]) -> Iterator[tuple[Judgement, Sequence[float]]]:
        """Records with all responses that are compared with each other, and the worth of each response."""
        if not self.is_alone:
            for judgement in judgements:
                yield judgement, self.worth(judgement.choice, len(judgement.responses))
            return
        by_prompt: dict[tuple[str, str], list[Judgement]] = defaultdict(list)
        for judgement in judgements:
            by_prompt[judgement.annotator, repr(judgement.prompt)].append(judgement)
        for same in by_prompt.values():
            responses = [judgement.responses[0] for judgement in same]
            tokens = [judgement.response_tokens[0] for judgement in same]
            worth = [self.worth(judgement.choice, 1)[0] for judgement in same]
            yield replace(same[0], responses=responses, response_tokens=tokens), worth


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a finite number; true and false are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
