"""The seam between forms of feedback and everything else: what a form declares, in its own file.

Annotators, stages, parameters and reward models never ask which form they have. A form says how responses are shown,
what an answer is, how it is stored, and which preferences it implies; a form states only what differs from here.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any, ClassVar

from rlhf_core.common.errors import UserError
from rlhf_core.feedback.judgement import Judgement, Row, Verdict
from rlhf_core.feedback.member import Opinion


@dataclass(frozen=True)
class Form:
    """A form of feedback. Its fields are its options, keys of the section `collect`."""

    name: ClassVar[str]  # in params.yaml; also its file's
    needs: ClassVar[str]  # what a record holds, for messages
    file: ClassVar[str]  # NAME_SPLIT.jsonl, the file of its own rows
    kind: ClassVar[str] = ""  # of a user's data that holds these rows; none where another form reads them
    data: ClassVar[str]  # what its rows are to methods, one of rlhf_core.algorithms.base.algorithm.Data
    loss: ClassVar[str]  # the reward loss to use where none is chosen
    has_ties: ClassVar[bool] = True  # whether two responses can be judged equal
    is_alone: ClassVar[bool] = False  # whether each response shown is answered for on its own

    @classmethod
    def takes(cls, option: str) -> bool:
        """Whether an option of the section `collect` has an effect on this form."""
        return option in {item.name for item in fields(cls)}

    def question(self, count: int) -> str:
        """What is asked about `count` responses, in words."""
        raise NotImplementedError

    def shown(self, count: int) -> int:
        """How many of a prompt's `count` responses are shown together."""
        return count

    def accepts(self, answer: Any, count: int) -> bool:
        """Whether `answer` is one to `count` responses."""
        raise NotImplementedError

    def check(self, answer: Any, count: int, where: str) -> None:
        """Raise UserError, naming `where`, unless `answer` is one to `count` responses."""
        if not self.accepts(answer, count):
            raise UserError(f"{where}: {self.name} needs {self.needs}. Correct the record.")

    def simulated(self, opinion: Opinion) -> list[Any]:
        """The answers of a simulated annotator: one, or one for each response of a form that `is_alone`."""
        raise NotImplementedError

    def row(self, judgement: Judgement) -> Row:
        """A judgement as a row of `file`; sampled ids are stored beside the texts where there are any."""
        raise NotImplementedError

    def read(self, row: Mapping[str, Any]) -> tuple[list[str], Any]:
        """The responses and the answer of a row of `file`. Forms without a `kind` do not read rows."""
        raise NotImplementedError

    def worth(self, answer: Any, count: int) -> Sequence[float]:
        """A number for each response that orders them as the answer does; higher is better."""
        raise NotImplementedError

    def verdicts(self, judgements: Iterable[Judgement]) -> Iterator[Verdict]:
        """The verdicts on pairs that judgements of this form imply, each in the name of its annotator.

        Responses that were answered for on their own are compared among one annotator's for one prompt.
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
        """What is compared, all responses in one record, with their worth."""
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
    """Whether a value from JSON is a finite number, true and false excluded."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
