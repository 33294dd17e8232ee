"""Who gives feedback: one interface for people, models and the simulated panel."""

from collections.abc import Sequence
from typing import Any, Protocol

from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import Candidate, Judgement, Message


class Annotator(Protocol):
    """Anything that answers a form of feedback. `rlhf_core.feedback.panel.Panelist` is one."""

    @property
    def id(self) -> str:
        """Stands in each record; verdicts of different ids are compared with each other."""
        ...

    def answers(self, form: Form, prompt: Sequence[Message], shown: Sequence[Candidate]) -> list[Any]:
        """What the annotator says about responses, in the order shown.

        One answer, or one for each response where the form `is_alone`; each as `form.accepts` it.
        """
        ...


def ask(annotator: Annotator, form: Form, prompt: Sequence[Message], shown: Sequence[Candidate]) -> list[Judgement]:
    """An annotator's answers about some responses as records; whoever collects them sets their `order`.

    Raises:
        UserError: an answer that the form does not accept, naming the annotator.
        ValueError: too many or too few answers.
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
