"""The interface of annotators: people, models and the simulated panel."""

from collections.abc import Sequence
from typing import Any, Protocol

from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import Candidate, Judgement, Message


class Annotator(Protocol):
    """Answers a form of feedback. `rlhf_core.feedback.panel.Panelist` is an implementation."""

    @property
    def id(self) -> str:
        """The annotator's id in each record. Agreement compares verdicts with different ids."""
        ...

    def answers(self, form: Form, prompt: Sequence[Message], shown: Sequence[Candidate]) -> list[Any]:
        """The annotator's answers about responses, which are in the order shown.

        One answer, or one answer per response if the form `is_alone`. `form.accepts` must accept each.
        """
        ...


def ask(annotator: Annotator, form: Form, prompt: Sequence[Message], shown: Sequence[Candidate]) -> list[Judgement]:
    """An annotator's answers about responses, as records. The caller sets `order`.

    Raises:
        UserError: the form does not accept an answer; states the annotator.
        ValueError: the number of answers is wrong.
    """
    answers = annotator.answers(form, prompt, shown)
    groups = [[response] for response in shown] if form.is_alone else [list(shown)]
    records = []
    for group, answer in zip(groups, answers, strict=True):
        form.check(answer, len(group), f"annotator {annotator.id}")
        checkpoints = [response.checkpoint for response in group]
        records.append(
            Judgement(
                form=form.name,
                prompt=list(prompt),
                responses=[response.text for response in group],
                response_tokens=[response.tokens for response in group],
                choice=answer,
                annotator=annotator.id,
                checkpoint=checkpoints[0] if len(set(checkpoints)) == 1 else checkpoints,
                order=0,
            )
        )
    return records
