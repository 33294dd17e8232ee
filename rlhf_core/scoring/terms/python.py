"""A function of the user."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlhf_core.common.errors import UserError
from rlhf_core.common.fields import setting
from rlhf_core.common.lazy import torch
from rlhf_core.scoring.term import Offer, Term, require

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_core.models.responses import Responses
    from rlhf_core.scoring.rewards import Reward


@dataclass(frozen=True)
class Python(Term):
    """The value of a function of the user; policy.reward_code names its file."""

    function: str | None = setting(None, "module:function, called with prompts, responses and answers")

    name = "python"
    meaning = "value of your own function"

    def __post_init__(self) -> None:
        require(self.name, "function", self.function)

    @property
    def label(self) -> str:
        """The name of the function."""
        return (self.function or "").rpartition(":")[2]

    def make(self, offer: Offer) -> "Reward":
        """Import the function."""
        path = self.function or ""
        return PythonReward(path, import_function(path))


@dataclass(frozen=True)
class PythonReward:
    """A function of the user: function(prompts, responses, answers) -> one number per response.

    prompts: lists of chat messages. responses: texts. answers: the correct answers, None for a prompt without one.
    """

    name: str
    function: Callable[[list[Any], list[str], list[str | None]], Sequence[float]]

    def __call__(self, responses: "Responses") -> "Tensor":
        """The values of the function, (B,).

        Raises:
            UserError: the function raises an exception, or does not return one number per response.
        """
        prompts = [list(prompt.messages) for prompt in responses.prompts]
        answers = [prompt.answer for prompt in responses.prompts]
        try:
            values = list(self.function(prompts, responses.texts, answers))
        except Exception as error:
            raise UserError(
                f"reward {self.name} raised {type(error).__name__}: {error}. Correct the function."
            ) from error
        if len(values) != len(responses):
            raise UserError(
                f"reward {self.name} returned {len(values)} values for {len(responses)} responses. "
                "Return one number per response."
            )
        for row, value in enumerate(values):
            if not isinstance(value, int | float):
                raise UserError(f"reward {self.name} returned {value!r} for response {row}. Return a number.")
        return torch.tensor([float(value) for value in values], device=responses.device)


def import_function(path: str) -> Any:
    """Import the function that `module:function` names.

    Raises:
        UserError: the module or function does not exist.
    """
    module, _, name = path.partition(":")
    try:
        function = getattr(import_module(module), name) if name else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"policy.rewards: {path} cannot be imported ({error}). Fix the name or the file.") from error
    if not callable(function):
        raise UserError(
            f"policy.rewards: '{path}' is not a function. Write it as module:function, such as rewards:brevity."
        )
    return function
