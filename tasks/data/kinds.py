"""What each kind of data gives the methods and rewards to learn from; asked before a run starts and again by stages."""

from rlhf_core.algorithms.base.algorithm import Algorithm
from rlhf_core.common.errors import UserError
from tasks.params.schema import Params, algorithm_of

FEEDBACK = ("helpdesk", "preference", "unpaired", "ratings", "rankings")  # the others hold none
ANSWERS = "question_answer"
PROMPTS = "prompts"


def check_kind(params: Params, kind: str, *, from_scratch: bool) -> None:
    """See that model, methods and rewards can learn from data of a kind.

    Raises:
        UserError: naming the parameter that asks for what the data does not hold.
    """
    check_model(kind, from_scratch=from_scratch)
    rewarded = []
    for name in params.policy.algorithms:
        algorithm = algorithm_of(params, name)
        if algorithm.data in ("pairs", "unpaired"):
            _need_feedback(kind, f"policy.algorithms names {name}, which learns from feedback")
        else:
            rewarded.append(name)
        if isinstance(algorithm, Algorithm) and algorithm.needs.critic:
            _need_feedback(kind, f"policy.algorithms names {name}, whose critic starts from the reward model")
    if rewarded:
        check_rewards(params, kind)


def check_model(kind: str, *, from_scratch: bool) -> None:
    """See that a model is there to be trained.

    Raises:
        UserError: if one is to be trained from scratch, on prompts alone.
    """
    if kind == PROMPTS and from_scratch:
        raise UserError(
            "model.path names a config to train from scratch, and the data is prompts alone: there is no text to train "
            "on. Set model.path or model.hub to a model that is trained."
        )


def check_rewards(params: Params, kind: str) -> None:
    """See that the terms of policy.rewards can be computed.

    Raises:
        UserError: naming the term that cannot.
    """
    names = [term.name for term in params.policy.rewards]
    if "model" in names:
        _need_feedback(kind, "policy.rewards names model")
    if "exact_answer" in names and kind != ANSWERS:
        raise UserError("policy.rewards names exact_answer, and the data has no answers. Take it off the list.")


def _need_feedback(kind: str, who: str) -> None:
    if kind in FEEDBACK:
        return
    raise UserError(
        f"{who}, and from {kind} data no reward model is trained, as it holds no feedback. "
        + (
            "Reward exact_answer instead, with grpo or rloo."
            if kind == ANSWERS
            else "Reward length, format or a function of yours (python), with grpo or rloo."
        )
    )
