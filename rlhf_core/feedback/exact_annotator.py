"""An annotator without noise, for a task whose code knows the worth of a response."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_core.common.responses import Response
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import Message
from rlhf_core.feedback.opinion import ExactOpinion


@dataclass(frozen=True)
class ExactAnnotator:
    """An annotator who knows the true worth of a response, such as a checker in code.

    worth: of a response to a prompt, in [0, 1].
    """

    id: str
    worth: Callable[[Sequence[Mapping[str, str]], str], float]

    def answers(self, form: Form, prompt: Sequence[Message], shown: Sequence[Response]) -> list[Any]:
        """The answers that the form needs."""
        return form.simulated(ExactOpinion([self.worth(prompt, response.text) for response in shown]))
