"""The seam between tasks and stages: what a task offers, declared in its own file.

A task is the help desk, feedback of the user's own, questions with answers, demonstrations, or prompts alone. Stages
and checks ask the object here for its gold, judge and rows, and never for the kind of the data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from rlhf_core.algorithms.base.algorithm import Algorithm
from rlhf_core.common.errors import UserError
from tasks.params.schema import Params, algorithm_of
from tasks.params.sections import PrepareParams

if TYPE_CHECKING:  # tasks are asked before a run starts, without torch
    from rlhf_core.models.tokens import Prompt
    from rlhf_core.scoring.judges import ScoreJudge

Messages = Sequence[Mapping[str, str]]


class Gold(Protocol):
    """The true worth of a response: a weighted sum of features, known to judges and the panel alone."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Of each feature."""
        ...

    def features(self, prompt: Messages, response: str) -> Mapping[str, float]:
        """What the score adds up, by name."""
        ...

    def score(self, prompt: Messages, response: str) -> float:
        """The sum of the weighted features."""
        ...


@dataclass(frozen=True)
class Counts:
    """How many rows there will be of each sort, before any is dropped: an upper bound."""

    threads: int
    demonstrations: int
    prompts: int
    preferences: int
    judge: int
    asked: int  # prompts to sample responses to, for feedback


class Problem:
    """A task. `kind` is what its data is called in card.json; a task states only what differs from here."""

    kinds: ClassVar[tuple[str, ...]]
    is_generated: ClassVar[bool] = False  # by stage prepare, where prepare.format is its kind
    has_text: ClassVar[bool] = True  # that a model can be trained on from scratch
    has_feedback: ClassVar[bool] = False  # given, or from the panel
    has_answers: ClassVar[bool] = False
    has_panel: ClassVar[bool] = False  # of simulated annotators, who share its gold
    has_judge: ClassVar[bool] = False  # one that is not fitted to feedback
    no_feedback: ClassVar[str] = "the data holds none"  # why there are no preferences
    instead: ClassVar[str] = "Reward length, format or a function of yours (python), with grpo or rloo."

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def gold(self, prepare: PrepareParams) -> Gold | None:
        """The gold reward that a panel of simulated annotators shares; None where there can be no panel."""
        return None

    def judge(self, prepare: PrepareParams) -> "ScoreJudge | None":
        """The judge of the evaluation; None where it is a second reward model, or nothing."""
        return None

    @property
    def needs_judge_model(self) -> bool:
        """Whether a second reward model is fitted as the judge, to preferences that nothing else sees."""
        return self.has_feedback and not self.has_judge

    def why_no_judge_model(self) -> str:
        """Why there is none, where none was fitted."""
        if self.has_judge:
            return "evaluation has gold, so no second reward model"
        return "the data holds no feedback to fit one to"

    def setting_for(self, form: str, file: str) -> str:
        """What to set so that feedback of a form is there, the rows of `file`."""
        return f"prepare.path to {file}"

    def count_rows(self, params: Params, given: int) -> Counts:
        """Rows that stages will see, of `given` rows in the user's data."""
        prepare = params.prepare
        rows = min(given, prepare.limit or given)
        held_out = prepare.development_fraction + prepare.test_fraction
        judge = prepare.judge_fraction if self.needs_judge_model else 0
        train = int(rows * (1 - held_out - judge))
        return Counts(train, train, train, train if self.has_feedback else 0, int(rows * judge), 0)

    def look(self, prepare: PrepareParams, root: Path) -> str:
        """Look for what a generated task is made from, and name it.

        Raises:
            UserError: it is missing or broken.
        """
        raise NotImplementedError

    def check(self, params: Params, *, from_scratch: bool) -> None:
        """See that model, methods and rewards can learn from the data.

        Raises:
            UserError: naming the parameter that asks for what the data does not hold.
        """
        self.check_model(from_scratch=from_scratch)
        is_rewarded = False
        for name in params.policy.methods:
            algorithm = algorithm_of(params, name)
            if algorithm.data.is_rewarded:
                is_rewarded = True
            else:
                self._need_feedback(f"policy.offline names {name}, which learns from feedback")
            if isinstance(algorithm, Algorithm) and algorithm.needs.critic:
                self._need_feedback(f"policy.online names {name}, whose critic starts from the reward model")
        if is_rewarded:
            self.check_rewards(params)

    def check_model(self, *, from_scratch: bool) -> None:
        """See that a model trained from scratch has text to train on.

        Raises:
            UserError: if it has none.
        """
        if from_scratch and not self.has_text:
            raise UserError(
                "model.path names a config to train from scratch, and the data is prompts alone: there is no text to "
                "train on. Set model.path or model.hub to a trained model."
            )

    def check_rewards(self, params: Params) -> None:
        """See that the terms of policy.rewards can be computed.

        Raises:
            UserError: naming the term that cannot.
        """
        names = [term.name for term in params.policy.rewards]
        if "model" in names:
            self._need_feedback("policy.rewards names model")
        if "exact_answer" in names and not self.has_answers:
            raise UserError("policy.rewards names exact_answer, and the data has no answers. Remove it from the list.")

    def _need_feedback(self, who: str) -> None:
        if not self.has_feedback:
            raise UserError(
                f"{who}, and from {self.kind} data no reward model is trained, as it holds no feedback. {self.instead}"
            )


def text_judge(name: str, score: Callable[["Prompt", str], float]) -> "ScoreJudge":
    """A judge that scores the text of each response on its own."""
    from rlhf_core.scoring.judges import ScoreJudge

    return ScoreJudge(name, lambda given: [score(*pair) for pair in zip(given.prompts, given.texts, strict=True)])
