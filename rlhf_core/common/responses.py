"""The type of a response: samplers return it, annotators are shown it, rewards and judges read it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Response:
    """One response.

    ids: the sampled tokens, including the end token; empty if the text was not sampled. text: only for people and for
    judges that read text. ended: False if the response was cut off at the length limit. logprobs: of `ids`, under the
    policy at the temperature of sampling; None if the text was not sampled, or sampled at temperature 0.
    """

    ids: list[int]
    text: str
    ended: bool
    logprobs: Sequence[float] | None = None
