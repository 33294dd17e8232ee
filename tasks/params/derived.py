"""The sections with the options of methods (`policy`), of reward losses (`reward`) and of forms (`collect`)."""

import difflib
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from rlhf_core.algorithms.base.algorithm import Algorithm, Method
from rlhf_core.algorithms.base.config import OfflineConfig, OnlineConfig, OptimizerConfig
from rlhf_core.algorithms.base.table import policy_algorithms, reward_losses
from rlhf_core.common.fields import setting
from rlhf_core.feedback.table import forms, make_form
from rlhf_core.scoring.place import FOLDER, require_place
from tasks.params.explain import Where
from tasks.params.options import Member, changed_without_effect, described, make_section, options_of
from tasks.params.reward_terms import RewardTerm
from tasks.params.sections import Section

SFT_CRITIC = "sft"  # the value of policy.critic for a critic that starts from the SFT model
LOOPS: dict[type[OptimizerConfig], str] = {OfflineConfig: "offline_loop", OnlineConfig: "online_loop"}


@dataclass(frozen=True, kw_only=True)
class OfflineLoop(OfflineConfig, Section):
    """The loop on fixed data. Its values apply to each of its methods, unless the method's own section differs."""

    snapshots: int = setting(4, "number of evenly spaced snapshots of the policy", ge=0)


@dataclass(frozen=True, kw_only=True)
class OnlineLoop(OnlineConfig, Section):
    """The loop on sampled data. Its values apply to each of its methods, unless the method's own section differs."""


_BASES: dict[type[OptimizerConfig] | None, type[Section]] = {
    OfflineConfig: OfflineLoop,
    OnlineConfig: OnlineLoop,
    None: Section,
}


def names_of(*, is_rewarded: bool) -> list[str]:
    """The methods of `policy.online`, which learn from policy.rewards, or those of `policy.offline`."""
    return [name for name, kind in policy_algorithms().items() if kind.data.is_rewarded == is_rewarded]


def without_critic() -> list[str]:
    """The methods of `policy.online` that, with their default options, train no critic."""
    kinds = {name: policy_algorithms()[name] for name in names_of(is_rewarded=True)}
    return [name for name, kind in kinds.items() if not (issubclass(kind, Algorithm) and kind().needs.critic)]


def stage_of(method: str) -> str:
    """The stage of dvc.yaml that trains a method, such as `online@ppo` or `offline@dpo`."""
    return f"{'online' if method in names_of(is_rewarded=True) else 'offline'}@{method}"


@dataclass(frozen=True, kw_only=True)
class Policy(Section):
    """The policies to train and their options."""

    online: list[str] = setting(
        MISSING, "methods to train on rewards of sampled responses", title="Methods on sampled responses"
    )
    offline: list[str] = setting(MISSING, "methods to train on the feedback itself", title="Methods on feedback")
    rewards: list[RewardTerm] = setting([], "terms whose weighted sum is the reward of a sampled response")
    critic: str | None = setting(
        None,
        "model that critics start from: a name in reward_models, or sft (with a new head); "
        "null: the reward model, the first one if there are several",
    )
    reward_code: str = setting(
        MISSING, "file with the functions of policy.rewards; an edit of it reruns the methods of policy.online"
    )
    offline_loop: OfflineLoop = field(default_factory=OfflineLoop)
    online_loop: OnlineLoop = field(default_factory=OnlineLoop)

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("the lists online and offline are empty; name at least one method")
        for key, names in (("online", self.online), ("offline", self.offline)):
            if len(set(names)) < len(names):
                raise ValueError(f"{key} has duplicates: {', '.join(names)}; name each method once")
        terms = [term.label for term in self.rewards]
        if len(set(terms)) < len(terms):
            raise ValueError(f"rewards has duplicates: {', '.join(terms)}; name each term once")

    @property
    def methods(self) -> list[str]:
        """Every method to train, in the order of the reports."""
        return [*self.online, *self.offline]

    def section(self, method: str) -> Any:
        """The section of one method: its own options and those of its loop."""
        return getattr(self, method)

    def snapshots(self, method: str) -> int:
        """The number of snapshots of one method's policy; 0 if it trains nothing."""
        return self.section(method).snapshots if policy_algorithms()[method].loop is not None else 0


@dataclass(frozen=True, kw_only=True)
class Collect(Section):
    """Collection of feedback from a panel of simulated annotators."""

    form: str = "side_by_side"
    judgements: int = setting(1, "number of annotators who judge each pair or each group of responses", ge=1)
    development_judgements: int = setting(
        3, "the same for development prompts; answers beyond `judgements` only measure annotator agreement", ge=1
    )
    keep_ties: bool = setting(False, "true: keep a tie as a preference with label 1/2; false: drop it")
    annotators: int = setting(8, "number of annotators in the panel", ge=1)
    if TYPE_CHECKING:
        scale: ClassVar[int]  # an option of form likert, which also bounds the user's ratings

    def __post_init__(self) -> None:
        form = forms()[self.form]
        if unused := changed_without_effect(self, options_of(forms(), "collect"), self.form):
            name, default = unused.item.name, unused.item.default
            others = ", ".join(unused.owners)
            raise ValueError(f"{name} has no effect on form {self.form}; set {name} to {default}, or form to {others}")
        make_form(self)  # the form checks its own options
        if self.keep_ties and not form.has_ties:
            raise ValueError(f"keep_ties has no effect on form {self.form}, which has no ties; set it to false")
        if self.development_judgements < self.judgements:
            raise ValueError("development_judgements is smaller than judgements; raise it to at least judgements")
        if self.development_judgements > self.annotators:
            raise ValueError(
                f"development_judgements is {self.development_judgements}, but the panel has only "
                f"{self.annotators} annotators; lower it, or raise annotators"
            )


@dataclass(frozen=True, kw_only=True)
class Reward(OfflineConfig, Section):
    """Training of the reward model, and of the judge model if there is no gold."""

    loss: str = "bradley_terry"
    members: int = setting(1, "M, number of models in the ensemble, each with its own seed; 1 for one model", ge=1)
    aggregate: Literal["mean", "min", "mean_minus_std"] = setting(
        "mean", "how the members' scores are combined; mean_minus_std subtracts std_coef times their standard deviation"
    )
    std_coef: float = setting(1.0, "λ of mean_minus_std", gt=0)
    base: str | None = setting(
        None,
        f"model to start from: a folder in {FOLDER}, or a Hub id with its revision, org/name@revision; "
        "null: the SFT model",
    )
    centre_prompts: int = setting(256, "number of prompts on which the SFT policy's mean reward is set to 0", ge=2)
    unit_scale: bool = setting(True, "divide rewards by their standard deviation over the SFT policy's responses")

    def __post_init__(self) -> None:
        if unused := changed_without_effect(self, options_of(reward_losses(), "reward"), self.loss):
            raise ValueError(f"{unused.item.name} has no effect on loss {self.loss}; leave it out")
        if self.base is not None:
            require_place(self.base if "@" not in self.base else None, self.base if "@" in self.base else None, "base")
        if self.members == 1 and self.aggregate != "mean":
            raise ValueError("aggregate has no effect on a single model; set it to mean, or raise members")
        if self.std_coef != 1 and self.aggregate != "mean_minus_std":
            raise ValueError(f"std_coef has no effect on aggregate {self.aggregate}; set it to 1")


def _reward_section() -> type[Reward]:
    names: Any = tuple(reward_losses())
    meaning = "loss of the reward model"
    members: list[Member] = [("loss", Literal[names], setting(Reward.loss, meaning))]
    members += [option.member for option in options_of(reward_losses(), "reward").values()]
    section: type[Reward] = make_section("RewardParams", members, (Reward,), Reward.__doc__)
    return section


def _collect_section() -> type[Collect]:
    names: Any = tuple(forms())
    meaning = "feedback form: what the annotators are asked"
    members: list[Member] = [("form", Literal[names], setting(Collect.form, meaning))]
    members += [option.member for option in options_of(forms(), "collect").values()]
    section: type[Collect] = make_section("CollectParams", members, (Collect,), Collect.__doc__)
    return section


def _method_section(kind: type[Method]) -> type[Section]:
    """The section of one method: the options of its loop, its own options, and its notes on the loop's options."""
    loop: Any = _BASES[kind.loop]
    bases: tuple[type, ...] = (kind, loop) if kind.loop is None else (loop, kind)
    noted: list[Member] = []
    if kind.notes:  # on options of the loop
        options, hints = {item.name: item for item in fields(loop)}, get_type_hints(loop)
        noted = [(name, hints[name], described(options[name], note)) for name, note in kind.notes.items()]
    section: type[Section] = make_section(f"{kind.__name__}Params", noted, bases, f"{kind.title}.")
    return section


def _policy_section() -> type[Policy]:
    members: list[Member] = []
    for item in fields(Policy)[:2]:
        names: Any = tuple(names_of(is_rewarded=item.name == "online"))
        members.append((item.name, list[Literal[names]], field(metadata=item.metadata)))  # type: ignore[valid-type]
    for name, kind in policy_algorithms().items():
        section = _method_section(kind)
        members.append((name, section, field(default_factory=section)))
    whole: type[Policy] = make_section("PolicyParams", members, (Policy,), Policy.__doc__)
    return whole


if TYPE_CHECKING:
    CollectParams = Collect
    PolicyParams = Policy
    RewardParams = Reward
else:
    CollectParams = _collect_section()
    PolicyParams = _policy_section()
    RewardParams = _reward_section()


def hint_on_method(where: Where, value: Any) -> str:
    """Return the list that a wrong entry of `policy.online` or `policy.offline` belongs to, or a method like it."""
    if len(where) != 3 or where[:2] not in (("policy", "online"), ("policy", "offline")) or not isinstance(value, str):
        return ""
    if value in policy_algorithms():
        return f" {value} belongs to policy.{stage_of(value).split('@')[0]}."
    close = difflib.get_close_matches(value, names_of(is_rewarded=where[1] == "online"), n=1)
    return f" Did you mean {close[0]}?" if close else ""
