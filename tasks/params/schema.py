"""params.yaml as validated dataclasses: one section per stage, every key with its meaning and bounds."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from rlhf_core.algorithms.base.config import OfflineConfig, OnlineConfig, check_loop
from rlhf_core.algorithms.base.table import policy_algorithm, reward_loss
from rlhf_core.algorithms.best_of_n import BestOfN
from rlhf_core.algorithms.best_of_n_distillation import BestOfNDistillation
from rlhf_core.algorithms.cdpo import CDPO
from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ipo import IPO
from rlhf_core.algorithms.kto import KTO
from rlhf_core.algorithms.online_dpo import OnlineDPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.ppo_penalty import PPOPenalty
from rlhf_core.algorithms.reinforce import Reinforce
from rlhf_core.algorithms.rloo import RLOO
from rlhf_core.algorithms.trpo import TRPO
from rlhf_core.common.device import Device, Precision
from rlhf_core.common.errors import UserError
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.feedback.table import forms
from rlhf_core.scoring.answers import answer_pattern, format_pattern
from tasks.params.explain import Where, coerced, dotted, explain, keys_of, nearest_key, shorten, wrong_value
from tasks.params.plain_yaml import load_yaml

ROOT = Path(__file__).resolve().parents[2]

Format = Literal[
    "helpdesk", "auto", "preference", "implicit", "demonstration", "unpaired", "ratings", "rankings", "question_answer",
    "prompts",
]  # fmt: skip
Form = Literal[tuple(forms())]  # type: ignore[valid-type]
RewardLoss = Literal["bradley_terry", "thurstone", "likert", "ranking_pairs", "plackett_luce", "best_of_n"]


class _Section:
    """A section of params.yaml: unknown keys are errors, and so are NaN and infinity."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class RunParams(_Section):
    """What holds for every stage."""

    seed: int = setting(0, "names every random stream", ge=0)
    threads: int = setting(1, "CPU threads of each stage's process; part of what makes a run reproducible", ge=1)
    device: Device = setting("auto", "where models run")
    precision: Precision = setting("fp32", "compute precision; weights are float32 always")
    parallel: int = setting(2, "stages that may run side by side", ge=1)


@dataclass(frozen=True, kw_only=True)
class ModelParams(_Section):
    """Which model everything starts from."""

    path: str = setting("helpdesk/model.json", "a Hugging Face folder, or a config to train from scratch")
    hub: str = setting("", "a model hub id with its revision, org/name@revision; used instead of path")
    vocabulary: int = setting(512, "entries of the tokenizer, where the model is trained from scratch", ge=64)


@dataclass(frozen=True, kw_only=True)
class PrepareParams(_Section):
    """Data preparation."""

    format: Format = setting("helpdesk", "what the rows hold; auto looks at their fields")
    path: str = setting("helpdesk/world.json", "a data file or folder; for helpdesk, the world it describes")
    hub: str = setting("", "a data set hub id with its revision, org/name@revision; used instead of path")
    answer_pattern: str = setting(
        r"####\s*(.+)$",
        "question_answer: where a text states its answer; where it doesn't match, a short text is the answer",
    )
    preference_base: Literal[0, 1] | None = setting(
        None,
        "what a `preference` of 1 means where no row has 2: 1, the first response, and 0 a tie; "
        "0, the second response, and 0 the first",
    )
    demonstrations: int = setting(2000, "helpdesk: demonstrations to write", ge=1)
    prompts: int = setting(3000, "helpdesk: prompts to collect feedback and to sample on", ge=1)
    threads: int = setting(6000, "helpdesk: raw threads to write for the base model", ge=1)
    limit: int | None = setting(None, "use the first so many rows; null for all", ge=1)
    max_prompt_tokens: int = setting(64, "longer prompts are dropped and counted", ge=1)
    max_response_tokens: int = setting(64, "longer responses are dropped and counted", ge=1)
    max_dropped: float = setting(0.05, "a larger share of dropped rows stops the run", ge=0, le=1)
    development_fraction: float = setting(0.1, "share of prompts to tune on", gt=0, lt=1)
    test_fraction: float = setting(0.1, "share of prompts to judge on, seen by nothing else", gt=0, lt=1)
    judge_fraction: float = setting(0.2, "share of preferences only the judging reward model sees", ge=0, lt=1)

    def __post_init__(self) -> None:
        answer_pattern(self.answer_pattern)


@dataclass(frozen=True, kw_only=True)
class BaseParams(OfflineConfig, _Section):
    """Training a base model from scratch on raw text."""


@dataclass(frozen=True, kw_only=True)
class SFTParams(OfflineConfig, _Section):
    """Supervised fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class SampleParams(_Section):
    """Responses to be judged."""

    prompts: int = setting(600, "training prompts to collect feedback on", ge=1)
    development_prompts: int = setting(100, "further prompts, for held-out preferences", ge=1)
    responses: int = setting(4, "K, responses per prompt and checkpoint", ge=2)
    temperature: float = setting(1.0, "of sampling", gt=0)
    checkpoints: list[str] = setting(
        ["models/sft"], "the models to sample from: models/sft, and folders in inputs/checkpoints"
    )

    def __post_init__(self) -> None:
        if not self.checkpoints or len(set(self.checkpoints)) < len(self.checkpoints):
            raise ValueError("checkpoints is empty or names one twice; name at least one, and each once")
        for path in self.checkpoints:
            if path != "models/sft" and not re.fullmatch(r"inputs/checkpoints/[\w.-]*\w", path):
                raise ValueError(f"checkpoints names {path}; use models/sft, or a folder in inputs/checkpoints")


@dataclass(frozen=True, kw_only=True)
class CollectParams(_Section):
    """Feedback from a panel of simulated annotators on sampled responses."""

    form: Form = setting("side_by_side", "what the annotators are asked for")  # type: ignore[valid-type]
    scale: int = setting(
        5, "likert: the highest score, of the panel or of the user's own ratings; 1 is the lowest", ge=2
    )
    judgements: int = setting(1, "annotators who judge each pair, or each prompt's responses", ge=1)
    development_judgements: int = setting(
        3, "the same for the further prompts; those beyond judgements only measure the annotators' agreement", ge=1
    )
    keep_ties: bool = setting(
        False, "whether a tie of the panel, ratings, ranks or thumbs makes a preference with label 1/2; false drops it"
    )
    annotators: int = setting(8, "size of the panel", ge=1)

    def __post_init__(self) -> None:
        form = forms()[self.form]
        if self.scale != 5 and not form.takes("scale"):
            scored = ", ".join(name for name, kind in forms().items() if kind.takes("scale"))
            raise ValueError(f"scale has no effect on form {self.form}; set it to 5, or the form to {scored}")
        if self.keep_ties and not form.has_ties:
            raise ValueError(f"keep_ties has no effect on form {self.form}, which knows no ties; set it to false")
        if self.development_judgements < self.judgements:
            raise ValueError("development_judgements is below judgements, which count among them; raise it")
        if self.development_judgements > self.annotators:
            raise ValueError(
                f"development_judgements asks for {self.development_judgements} annotators of a panel of "
                f"{self.annotators}; lower it, or raise annotators"
            )


@dataclass(frozen=True, kw_only=True)
class RewardParams(OfflineConfig, _Section):
    """The reward model, and the judge where there is no gold."""

    loss: RewardLoss = setting(
        "bradley_terry",
        "what the reward model is fitted with: the first two learn from preferences, likert from ratings, "
        "the others from rankings",
    )
    margin: float = setting(
        0.0, "bradley_terry: subtracted from the difference of a pair without a margin of its own", ge=0
    )
    label_smoothing: float = setting(0.0, "bradley_terry, thurstone: probability that a label is wrong", ge=0, lt=0.5)
    members: int = setting(1, "M, reward models of an ensemble, each from a seed of its own; 1 for a single one", ge=1)
    aggregate: Literal["mean", "min", "mean_minus_std"] = setting(
        "mean", "what an ensemble's score is; mean_minus_std takes std_coef standard deviations off the mean"
    )
    std_coef: float = setting(1.0, "lambda of mean_minus_std", gt=0)
    centre_prompts: int = setting(256, "prompts on which the mean reward of the SFT policy is made 0", ge=2)
    unit_scale: bool = setting(True, "divide rewards by their standard deviation over the SFT policy's responses")

    def __post_init__(self) -> None:
        taken = {item.name for item in fields(reward_loss(self.loss))}
        for option in ("margin", "label_smoothing"):
            if getattr(self, option) and option not in taken:
                raise ValueError(f"{option} has no effect on loss {self.loss}; set it to 0")
        if self.members == 1 and self.aggregate != "mean":
            raise ValueError("aggregate has no effect on a single model; set it to mean, or raise members")
        if self.std_coef != 1 and self.aggregate != "mean_minus_std":
            raise ValueError(f"std_coef has no effect on aggregate {self.aggregate}; set it to 1")


@dataclass(frozen=True, kw_only=True)
class RewardTerm(_Section):
    """One term of the reward on sampled responses; the terms are summed with their weights and logged apart."""

    name: Literal["model", "exact_answer", "missing_end", "length", "format", "python"] = setting(
        "model",
        "the reward model; 1 for the prompt's answer; -1 without an end token; response tokens; 1 for a matching text; "
        "a function of yours",
    )
    weight: float = setting(1.0, "what the term is multiplied by")
    clamp: float | None = setting(None, "model: scores are held within ± this; null for no limit", gt=0)
    pattern: str | None = setting(None, "format: the regular expression that the whole response has to match")
    function: str | None = setting(None, "python: module:function, called with prompts, responses and answers")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.weight == 0:
            raise ValueError(f"reward {self.name} has weight 0 and so no effect; take it off the list")
        for option, term, needed in (
            ("clamp", "model", False),
            ("pattern", "format", True),
            ("function", "python", True),
        ):
            if getattr(self, option) is not None and self.name != term:
                raise ValueError(f"{option} has no effect on reward {self.name}; leave it out")
            if needed and self.name == term and getattr(self, option) is None:
                raise ValueError(f"reward {term} needs {option}; give it")
        if self.pattern is not None:
            format_pattern(self.pattern)

    @property
    def label(self) -> str:
        """The name that the term is logged under."""
        return self.name if self.function is None else self.function.rpartition(":")[2]


@dataclass(frozen=True, kw_only=True)
class _OnlineParams(OnlineConfig, _Section):
    """A method on sampled data."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # the method's own checks
        check_loop(self, self)  # type: ignore[arg-type]  # it is the loop's configuration and the method's


@dataclass(frozen=True, kw_only=True)
class _OfflineParams(OfflineConfig, _Section):
    """A method on fixed data."""

    snapshots: int = setting(4, "evenly spaced snapshots of the policy", ge=0)


@dataclass(frozen=True, kw_only=True)
class ReinforceParams(_OnlineParams, Reinforce):
    """REINFORCE."""


@dataclass(frozen=True, kw_only=True)
class RLOOParams(_OnlineParams, RLOO):
    """RLOO."""


@dataclass(frozen=True, kw_only=True)
class TRPOParams(_OnlineParams, TRPO):
    """TRPO."""

    learning_rate: float = setting(1e-5, "peak learning rate of the critic; max_kl sets the policy's step", gt=0)


@dataclass(frozen=True, kw_only=True)
class PPOParams(_OnlineParams, PPO):
    """PPO."""


@dataclass(frozen=True, kw_only=True)
class PPOPenaltyParams(_OnlineParams, PPOPenalty):
    """PPO-penalty."""


@dataclass(frozen=True, kw_only=True)
class GRPOParams(_OnlineParams, GRPO):
    """GRPO."""


@dataclass(frozen=True, kw_only=True)
class DPOParams(_OfflineParams, DPO):
    """DPO."""


@dataclass(frozen=True, kw_only=True)
class CDPOParams(_OfflineParams, CDPO):
    """cDPO."""


@dataclass(frozen=True, kw_only=True)
class IPOParams(_OfflineParams, IPO):
    """IPO."""


@dataclass(frozen=True, kw_only=True)
class KTOParams(_OfflineParams, KTO):
    """KTO."""


@dataclass(frozen=True, kw_only=True)
class OnlineDPOParams(_OnlineParams, OnlineDPO):
    """Online DPO."""


@dataclass(frozen=True, kw_only=True)
class BestOfNParams(BestOfN, _Section):
    """Best-of-N sampling."""


@dataclass(frozen=True, kw_only=True)
class BestOfNDistillationParams(_OfflineParams, BestOfNDistillation):
    """Best-of-N distillation."""


Algorithm = Literal[
    "reinforce", "rloo", "trpo", "ppo", "ppo_penalty", "grpo", "dpo", "cdpo", "ipo", "kto", "online_dpo", "best_of_n",
    "best_of_n_distillation",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PolicyParams(_Section):
    """Which policies to train, and how."""

    algorithms: list[Algorithm] = setting([], "which policies to train, in this order")
    rewards: list[RewardTerm] = setting([], "what sampled responses are rewarded for; a list of terms")
    reward_code: str = setting(
        "rlhf_core/scoring/rewards.py",
        "the file with the functions of policy.rewards: its edits rerun the policies",
    )
    reinforce: ReinforceParams = field(default_factory=ReinforceParams)
    rloo: RLOOParams = field(default_factory=RLOOParams)
    trpo: TRPOParams = field(default_factory=TRPOParams)
    ppo: PPOParams = field(default_factory=PPOParams)
    ppo_penalty: PPOPenaltyParams = field(default_factory=PPOPenaltyParams)
    grpo: GRPOParams = field(default_factory=GRPOParams)
    dpo: DPOParams = field(default_factory=DPOParams)
    cdpo: CDPOParams = field(default_factory=CDPOParams)
    ipo: IPOParams = field(default_factory=IPOParams)
    kto: KTOParams = field(default_factory=KTOParams)
    online_dpo: OnlineDPOParams = field(default_factory=OnlineDPOParams)
    best_of_n: BestOfNParams = field(default_factory=BestOfNParams)
    best_of_n_distillation: BestOfNDistillationParams = field(default_factory=BestOfNDistillationParams)

    def __post_init__(self) -> None:
        if not self.algorithms:
            raise ValueError("the list algorithms is empty; name at least one")
        if len(set(self.algorithms)) < len(self.algorithms):
            raise ValueError(f"algorithms names one twice: {', '.join(self.algorithms)}; name each once")
        terms = [term.label for term in self.rewards]
        if len(set(terms)) < len(terms):
            raise ValueError(f"rewards names a term twice: {', '.join(terms)}; name each once")


@dataclass(frozen=True, kw_only=True)
class EvaluateParams(_Section):
    """Judging the policies."""

    prompts: int = setting(300, "held-out prompts to judge on", ge=2)
    development_prompts: int = setting(100, "prompts to judge snapshots on", ge=2)
    temperature: float | None = setting(
        None,
        "at which the judged responses are sampled; 0 takes the most likely token; null is each policy's own: that of "
        "its training for on-policy methods, 1 for the others and SFT",
        ge=0,
    )
    resamples: int = setting(2000, "bootstrap resamples of the prompts for an interval", ge=100)
    samples: int = setting(12, "prompts shown side by side in the report", ge=1)


@dataclass(frozen=True, kw_only=True)
class Params(_Section):
    """All of params.yaml."""

    run: RunParams
    model: ModelParams
    prepare: PrepareParams
    base: BaseParams
    sft: SFTParams
    sample: SampleParams
    collect: CollectParams
    reward: RewardParams
    policy: PolicyParams
    evaluate: EvaluateParams


def algorithm_of(params: Params, name: str) -> Any:
    """The policy algorithm called `name` with its hyperparameters.

    Raises:
        UserError: if there is none; the names that exist are listed.
    """
    kind, section = policy_algorithm(name), getattr(params.policy, name)
    return kind(**{item.name: getattr(section, item.name) for item in fields(kind)})


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        UserError: if the file is missing or is not a mapping of plain values, each key once.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist. Restore it with: git checkout {path.name}")
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Save it as UTF-8 text, readable by you.") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no sections. Restore it with: git checkout {path.name}")
    return raw


def load_params(path: Path | None = None) -> Params:
    """The validated params.yaml."""
    path = path or Path("params.yaml")
    return validate(read_yaml(path), str(path))


def validate(
    raw: Mapping[str, Any], source: str = "params.yaml", written: Mapping[str, str] = MappingProxyType({})
) -> Params:
    """Raw sections as Params. `written`: how the user wrote single values, by dotted key; else they are in `source`.

    Raises:
        UserError: naming the first wrong key, what it may be, and how many more there are.
    """
    problems: list[tuple[Where, str]]
    try:
        params = TypeAdapter(Params).validate_python(raw)
        problems = [(where, wrong_value(where, value, Params)) for where, value in coerced(raw, asdict(params))]
    except ValidationError as error:
        problems = [(problem["loc"], explain(problem, Params)) for problem in error.errors()]
    if not problems:
        return params
    key, found = dotted(problems[0][0]), problems[0][1]
    culprits = [
        text for name, text in written.items() if f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}.")
    ]
    more = f" ({len(problems) - 1} more after it)" if len(problems) > 1 else ""
    raise UserError(f"{' '.join(culprits) or source}: {found}{more}")


def _is_within(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def all_keys() -> list[str]:
    """Every dotted key of params.yaml."""
    return keys_of(Params)


def parse_override(text: str) -> tuple[str, Any]:
    """`key=value` from a command line, the value read as YAML.

    Raises:
        UserError: if there is no `=`, the key is unknown (the nearest right one is named), or the value is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"{as_written(text)}: write it as key=value, such as sft.learning_rate=1e-3.")
    _require_key(key, f"{as_written(text)}: ")
    return key, load_yaml(value, as_written(text))


def as_written(assignment: str) -> str:
    """An assignment as it stood on the command line, cut off where it is too long for a message."""
    return f"--set {shorten(assignment)}"


def _require_key(key: str, where: str = "") -> None:
    if key not in all_keys():
        raise UserError(f"{where}unknown key '{shorten(key)}'. {nearest_key(tuple(key.split('.')), Params)}")
    if inside := [other for other in all_keys() if other.startswith(f"{key}.")]:
        raise UserError(f"{where}'{key}' is a section. Set a key of it, such as {inside[0]}.")


def apply_overrides(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of raw sections with dotted keys replaced.

    Raises:
        UserError: if a key is unknown, or names a whole section.
    """
    changed = _copy(raw)
    for key, value in overrides.items():
        _require_key(key)
        *parents, last = key.split(".")
        section = changed
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return changed


def overlay(raw: Mapping[str, Any], profile: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of raw sections with a profile's keys laid over them, section by section."""
    merged = _copy(raw)
    for key, value in profile.items():
        inner = merged.get(key)
        merged[key] = overlay(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return merged


def load_profile(name: str, root: Path = ROOT) -> dict[str, Any]:
    """The overlay profiles/NAME.yaml.

    Raises:
        UserError: if there is none; the profiles that exist are listed.
    """
    folder = root / "profiles"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise UserError(f"there is no profile '{name}'. Choose from: {', '.join(known)}.")
    return read_yaml(folder / f"{name}.yaml")


def _copy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in raw.items()}
