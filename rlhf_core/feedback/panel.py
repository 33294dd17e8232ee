"""The simulated panel: annotators with a common hidden gold reward and different tastes, for any form of feedback."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_core.common.errors import UserError
from rlhf_core.common.responses import Response
from rlhf_core.common.seeding import stream_seed
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import Message
from rlhf_core.feedback.member import Member, MemberOpinion


def panel(
    gold_weights: Mapping[str, float],
    size: int,
    seed: int,
    *,
    taste: float = 0.3,
    length_liking: float = 0.1,
    position_bias: float = 0.1,
    max_flip_probability: float = 0.1,
    scale: float = 1.1,
    tie_band: float = 0.2,
    strictness: float = 0.3,
) -> list[Member]:
    """`size` members with weights drawn around the gold weights. A member depends only on the seed and its number.

    Each weight is the gold weight times exp(taste × normal). `length_liking`, `position_bias` and `strictness` are
    standard deviations around 0. Flip probabilities are uniform in [0, max_flip_probability].

    Raises:
        UserError: `size` is less than 1.
    """
    if size < 1:
        raise UserError(f"The panel has {size} annotators. Set at least 1.")
    members = []
    for number in range(size):
        rng = random.Random(stream_seed(seed, "panel", number))
        members.append(
            Member(
                id=f"annotator-{number:02d}",
                weights={key: gold_weights[key] * math.exp(rng.gauss(0, taste)) for key in sorted(gold_weights)},
                length_liking=rng.gauss(0, length_liking),
                position_bias=rng.gauss(0, position_bias),
                flip_probability=rng.uniform(0, max_flip_probability),
                scale=scale,
                tie_band=tie_band,
                strictness=rng.gauss(0, strictness),
            )
        )
    return members


@dataclass(frozen=True)
class Panelist:
    """A member of the panel as an Annotator.

    features: computes the features that the gold reward uses, from a prompt and a response. rng: the source of noise.
    """

    member: Member
    features: Callable[[Sequence[Mapping[str, str]], str], Mapping[str, float]]
    rng: random.Random

    @property
    def id(self) -> str:
        """The member's id."""
        return self.member.id

    def answers(self, form: Form, prompt: Sequence[Message], shown: Sequence[Response]) -> list[Any]:
        """Draw the answers that the form needs from the utilities of the responses."""
        features = [self.features(prompt, response.text) for response in shown]
        lengths = [len(response.ids or response.text.split()) for response in shown]
        return form.simulated(MemberOpinion(self.member, features, lengths, self.rng))
