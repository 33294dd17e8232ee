"""The interface between tasks and stages: each task declares in its own file what it offers.

A task is the help desk, the user's own feedback, questions with answers, demonstrations, or prompts alone. Stages and
checks get gold, judge and rows from this object and never test the kind of the data.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from rlhf_core.algorithms.base.algorithm import Algorithm
from rlhf_core.common.errors import UserError
from rlhf_core.scoring.term import Need
from tasks.params.derived import SFT_CRITIC, without_critic
from tasks.params.schema import Params, algorithm_of
from tasks.params.sections import PrepareParams

if TYPE_CHECKING:  # tasks are asked before a run starts, without torch
    from rlhf_core.models.tokens import Prompt
    from rlhf_core.scoring.judges import Judge

Messages = Sequence[Mapping[str, str]]


class Gold(Protocol):
    """The true quality of a response, which only judges and simulated annotators know."""

    def score(self, prompt: Messages, response: str) -> float:
        """The quality; higher is better."""
        ...


@dataclass(frozen=True)
class Counts:
    """Number of rows of each kind before any is dropped: an upper bound."""

    threads: int
    demonstrations: int
    prompts: int
    preferences: int
    judge: int
    asked: int  # prompts to sample responses for, to collect feedback


@dataclass(frozen=True)
class Outcome:
    """One figure of responses: Σ met / Σ asked over prompts, which may have no part in it (0 of 0).

    If `asked` is 0 or 1 everywhere, the figure is a mean over prompts and its difference to SFT has an interval.
    """

    met: Sequence[float]
    asked: Sequence[float]

    @property
    def value(self) -> float | None:
        """The figure; None if no prompt has a part in it."""
        return sum(self.met) / sum(self.asked) if sum(self.asked) else None

    @property
    def is_mean(self) -> bool:
        """Whether the figure is a mean over the prompts that have a part in it."""
        return set(self.asked) <= {0, 1}


Outcomes = Mapping[str, Outcome]


class Problem:
    """A task. `kind` is the name of its data in card.json. A task declares only what differs from these defaults."""

    kinds: ClassVar[tuple[str, ...]]
    is_generated: ClassVar[bool] = False  # stage prepare generates the data if prepare.format is its kind
    title: ClassVar[str] = ""  # of a generated task, in messages
    folder: ClassVar[str] = ""  # of a generated task: the top folder with its source and its model config
    has_text: ClassVar[bool] = True  # for training a model from scratch
    has_feedback: ClassVar[bool] = False  # the data's own, or the panel's
    has_answers: ClassVar[bool] = False
    has_outcomes: ClassVar[bool] = False  # figures of its own in the evaluation
    has_constraints: ClassVar[bool] = False  # which code checks
    has_panel: ClassVar[bool] = False  # simulated annotators, who share the task's gold
    has_judge: ClassVar[bool] = False  # a judge that is not trained on feedback
    no_feedback: ClassVar[str] = "the data has none"  # why there are no preferences
    instead: ClassVar[str] = "Use the reward length, format or python (your own function)"  # if there is no feedback

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def gold(self, prepare: PrepareParams) -> Gold | None:
        """The gold reward that a panel of simulated annotators shares; None if there is no panel."""
        return None

    def judge(self, prepare: PrepareParams) -> "Judge | None":
        """The judge of the evaluation; None if it is a second reward model, or if there is none."""
        return None

    def annotators(self, params: Params, rng: Random) -> Sequence[Any]:
        """The simulated annotators (rlhf_core.feedback.annotator) of a task that `has_panel`.

        rng: the source of their noise.
        """
        raise NotImplementedError

    def panel_title(self, params: Params) -> str:
        """Who the simulated annotators are, for the report."""
        raise NotImplementedError

    def outcomes(
        self, prompts: Sequence[Messages], texts: Sequence[str], perplexities: Sequence[float], typical: Sequence[float]
    ) -> Outcomes:
        """The figures of a task that `has_outcomes`, by name.

        perplexities: of each text under the SFT model. typical: those of the SFT model's own responses.
        """
        raise NotImplementedError

    def constraint_score(self, guard: bool) -> Callable[[Messages, str], float]:
        """A function of prompt and response: the share of the constraints met; with `guard`, 0 if it is no answer."""
        raise NotImplementedError

    @property
    def needs_judge_model(self) -> bool:
        """Whether the judge is a second reward model, trained on preferences that nothing else uses."""
        return self.has_feedback and not self.has_judge

    def why_no_judge_model(self) -> str:
        """Why no judge model was trained."""
        if self.has_judge:
            return "evaluation uses gold, so no second reward model"
        return "the data has no feedback to train one on"

    def setting_for(self, form: str, file: str) -> str:
        """Name the setting, and its value, that provides feedback of a form with rows in `file`."""
        return f"prepare.path to {file}"

    def count_rows(self, params: Params, given: int) -> Counts:
        """Count the rows that stages will get from `given` rows of the user's data."""
        prepare = params.prepare
        rows = min(given, prepare.limit or given)
        held_out = prepare.development_fraction + prepare.test_fraction
        judge = prepare.judge_fraction if self.needs_judge_model else 0
        train = int(rows * (1 - held_out - judge))
        return Counts(train, train, train, train if self.has_feedback else 0, int(rows * judge), 0)

    def check_source(self, prepare: PrepareParams, root: Path) -> None:
        """Check that prepare.path can be the source of a generated task, without reading it.

        Raises:
            UserError: the path does not exist, or is of another kind.
        """
        raise NotImplementedError

    def look(self, prepare: PrepareParams, root: Path) -> str:
        """Find the source of a generated task and describe it.

        Raises:
            UserError: the source is missing or broken.
        """
        raise NotImplementedError

    def check(self, params: Params, *, from_scratch: bool) -> None:
        """Check that model, methods and rewards can learn from the data.

        Raises:
            UserError: the data lacks something; the message names the parameter that needs it.
        """
        self.check_model(from_scratch=from_scratch)
        if params.reward_models.names:
            self._need_feedback("reward_models names models")
            if self.has_panel:
                raise UserError(
                    "reward_models.names needs feedback with sources, but that of the simulated annotators has none. "
                    "Set reward_models.names to [], or prepare.path to data of your own."
                )
        is_rewarded = False
        for name in params.policy.methods:
            algorithm = algorithm_of(params, name)
            if algorithm.data.is_rewarded:
                is_rewarded = True
            else:
                self._need_feedback(f"policy.offline names {name}, which learns from feedback")
            has_critic = isinstance(algorithm, Algorithm) and algorithm.needs.critic
            if has_critic and params.policy.critic != SFT_CRITIC:
                self._need_feedback(f"policy.online names {name}, whose critic starts from the reward model")
        if is_rewarded:
            self.check_rewards(params)

    def check_model(self, *, from_scratch: bool) -> None:
        """Check that a model trained from scratch has text to train on.

        Raises:
            UserError: it has none.
        """
        if from_scratch and not self.has_text:
            raise UserError(
                "model.path is a config to train from scratch, but the data has only prompts and no text to train on. "
                "Set model.path or model.hub to a trained model."
            )

    def check_rewards(self, params: Params) -> None:
        """Check that the terms of policy.rewards can be computed.

        Raises:
            UserError: a term cannot be computed; the message names it.
        """
        for entry in params.policy.rewards:
            need = entry.term.needs
            if need is Need.FEEDBACK:
                self._need_feedback(f"policy.rewards names {entry.name}")
            elif need is not None and not self._has(need):
                raise UserError(
                    f"policy.rewards names {entry.name}, but the data has no {need.value}. Remove {entry.name}."
                )
            if wrong := entry.term.unfit(params.prepare.max_response_tokens):
                raise UserError(wrong)

    def _has(self, need: Need) -> bool:
        return {
            Need.FEEDBACK: self.has_feedback,
            Need.ANSWERS: self.has_answers,
            Need.CONSTRAINTS: self.has_constraints,
        }[need]

    def _need_feedback(self, who: str) -> None:
        if not self.has_feedback:
            raise UserError(
                f"{who}, but {self.kind} data has no feedback, so no reward model is trained. "
                f"{self.instead}, with a method that trains no critic: {', '.join(without_critic())}."
            )


def text_judge(name: str, score: Callable[["Prompt", str], float]) -> "Judge":
    """Return a judge that scores the text of each response separately."""
    from rlhf_core.scoring.judges import ScoreJudge

    return ScoreJudge(name, lambda given: [score(*pair) for pair in zip(given.prompts, given.texts, strict=True)])


def require_path(prepare: PrepareParams, root: Path) -> None:
    """Raise UserError if prepare.path does not exist."""
    if not os.path.exists(root / prepare.path):
        raise UserError(f"prepare.path {prepare.path} does not exist. Name an existing data file or folder.")
