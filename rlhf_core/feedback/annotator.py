"""The interface of annotators: people, models and the simulated panel."""

from collections.abc import Sequence
from typing import Any, Protocol

from rlhf_core.common.responses import Response
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import Judgement, Message


class Annotator(Protocol):
    """Answers a form of feedback. `rlhf_core.feedback.panel.Panelist` is an implementation."""

    @property
    def id(self) -> str:
        """The annotator's id in each record. Agreement compares verdicts with different ids."""
        ...

    def answers(self, form: Form, prompt: Sequence[Message], shown: Sequence[Response]) -> list[Any]:
        """The annotator's answers about responses, which are in the order shown.

        One answer, or one answer per response if the form `is_alone`. `form.accepts` must accept each.
        """
        ...


def ask(
    annotator: Annotator, form: Form, prompt: Sequence[Message], shown: Sequence[tuple[Response, str]]
) -> list[Judgement]:
    """An annotator's answers about responses, as records. The caller sets `order`.

    shown: each response with the digest of the model that sampled it; '' if it was not sampled.

    Raises:
        UserError: the form does not accept an answer; states the annotator.
        ValueError: the number of answers is wrong.
    """
    answers = annotator.answers(form, prompt, [response for response, _ in shown])
    groups = [[one] for one in shown] if form.is_alone else [list(shown)]
    records = []
    for group, answer in zip(groups, answers, strict=True):
        form.check(answer, len(group), f"annotator {annotator.id}")
        digests = [digest for _, digest in group]
        records.append(
            Judgement(
                form=form.name,
                prompt=list(prompt),
                responses=[response.text for response, _ in group],
                response_tokens=[response.ids or None for response, _ in group],
                choice=answer,
                annotator=annotator.id,
                checkpoint=digests[0] if len(set(digests)) == 1 else digests,
                order=0,
            )
        )
    return records
