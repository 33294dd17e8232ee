"""params.yaml as validated dataclasses: one section per stage, every key with its meaning and bounds."""

import contextlib
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.device import Device, Precision
from rlhf_core.errors import UserError
from rlhf_core.fields import setting
from rlhf_core.loops.offline import OfflineConfig
from rlhf_core.loops.online import OnlineConfig

ROOT = Path(__file__).resolve().parent.parent

Format = Literal[
    "helpdesk", "auto", "preference", "implicit", "demonstration", "unpaired", "question_answer"
]  # fmt: skip


class _Section:
    """A section of params.yaml: unknown keys are errors."""

    __pydantic_config__ = {"extra": "forbid"}


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

    path: str = setting("rlhf_core/helpdesk/model.json", "a Hugging Face folder, or a config to train from scratch")
    hub: str = setting("", "a model hub id with its revision, org/name@revision; used instead of path")
    vocabulary: int = setting(512, "entries of the tokenizer, where the model is trained from scratch", ge=64)


@dataclass(frozen=True, kw_only=True)
class PrepareParams(_Section):
    """Data preparation."""

    format: Format = setting("helpdesk", "what the rows hold; auto looks at their fields")
    path: str = setting("rlhf_core/helpdesk/world.json", "a data file or folder; for helpdesk, the world it describes")
    hub: str = setting("", "a data set hub id with its revision, org/name@revision; used instead of path")
    answer_pattern: str = setting(r"####\s*(.+)$", "question_answer: where an answer stands in a response")
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


@dataclass(frozen=True, kw_only=True)
class BaseParams(OfflineConfig, _Section):
    """Training a base model from scratch on raw text."""


@dataclass(frozen=True, kw_only=True)
class SFTParams(OfflineConfig, _Section):
    """Supervised fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class CollectParams(_Section):
    """Feedback from a panel of simulated annotators on responses of the SFT model."""

    prompts: int = setting(600, "training prompts to collect feedback on", ge=1)
    development_prompts: int = setting(100, "further prompts, for held-out preferences", ge=1)
    responses: int = setting(4, "K, responses per prompt", ge=2)
    judgements: int = setting(1, "annotators who judge each pair", ge=1)
    annotators: int = setting(8, "size of the panel", ge=1)
    temperature: float = setting(1.0, "of sampling", gt=0)


@dataclass(frozen=True, kw_only=True)
class RewardParams(OfflineConfig, _Section):
    """The reward model, and the judge where there is no gold."""

    centre_prompts: int = setting(256, "prompts on which the mean reward of the SFT policy is made 0", ge=2)
    unit_scale: bool = setting(True, "divide rewards by their standard deviation over the SFT policy's responses")


@dataclass(frozen=True, kw_only=True)
class PPOParams(OnlineConfig, PPO, _Section):
    """PPO."""


@dataclass(frozen=True, kw_only=True)
class GRPOParams(OnlineConfig, GRPO, _Section):
    """GRPO."""


@dataclass(frozen=True, kw_only=True)
class DPOParams(OfflineConfig, DPO, _Section):
    """DPO."""

    snapshots: int = setting(4, "evenly spaced snapshots of the policy", ge=0)


@dataclass(frozen=True, kw_only=True)
class PolicyParams(_Section):
    """Which policies to train, and how."""

    algorithms: list[Literal["ppo", "grpo", "dpo"]]
    ppo: PPOParams
    grpo: GRPOParams
    dpo: DPOParams


@dataclass(frozen=True, kw_only=True)
class EvaluateParams(_Section):
    """Judging the policies."""

    prompts: int = setting(300, "held-out prompts to judge on", ge=2)
    development_prompts: int = setting(100, "prompts to judge snapshots on", ge=2)
    temperature: float = setting(1.0, "of sampling; 0 takes the most likely token", ge=0)
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
    collect: CollectParams
    reward: RewardParams
    policy: PolicyParams
    evaluate: EvaluateParams


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        UserError: if the file is missing or is not a mapping.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist. Restore it with: git checkout {path.name}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}. Mend that line.") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no sections. Restore it with: git checkout {path.name}")
    return raw


def load_params(path: Path | None = None) -> Params:
    """The validated params.yaml."""
    path = path or Path("params.yaml")
    return validate(read_yaml(path), str(path))


def validate(raw: Mapping[str, Any], source: str = "params.yaml") -> Params:
    """Raw sections as Params.

    Raises:
        UserError: naming the first wrong key with its mend, and how many more there are.
    """
    try:
        return TypeAdapter(Params).validate_python(raw)
    except ValidationError as error:
        problems = error.errors()
        more = f" ({len(problems) - 1} more after it)" if len(problems) > 1 else ""
        raise UserError(f"{source}: {_explain(problems[0])}{more}") from error


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        return f"unknown key '{key}'. {_nearest(key)}"
    if problem["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return f"the key '{key}' is missing. Add it, or restore the file with: git checkout params.yaml"
    return f"'{key}' is {problem['input']!r}. {problem['msg'].removeprefix('Value error, ').rstrip('.')}."


def _nearest(key: str) -> str:
    section, _, name = key.rpartition(".")
    beside = [other.rpartition(".")[2] for other in all_keys() if other.rpartition(".")[0] == section]
    if close := difflib.get_close_matches(name, beside, n=1):
        return f"Did you mean '{section}.{close[0]}'?" if section else f"Did you mean '{close[0]}'?"
    if section and beside:
        return f"Choose from: {', '.join(beside)}."
    close = difflib.get_close_matches(key, all_keys(), n=1)
    return f"Did you mean '{close[0]}'?" if close else "See params.yaml for the keys there are."


def all_keys(section: Any = Params, prefix: str = "") -> list[str]:
    """Every dotted key of params.yaml."""
    keys = []
    for item in fields(section):
        keys.append(prefix + item.name)
        if is_dataclass(item.type):
            keys += all_keys(item.type, f"{prefix}{item.name}.")
    return keys


def parse_override(text: str) -> tuple[str, Any]:
    """`key=value` from a command line, the value read as YAML.

    Raises:
        UserError: if there is no `=`, or the key is unknown; the nearest right one is named.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"--set {text}: write it as key=value, such as sft.learning_rate=1e-3.")
    if key not in all_keys():
        raise UserError(f"--set {text}: unknown key '{key}'. {_nearest(key)}")
    parsed = yaml.safe_load(value)
    if isinstance(parsed, str):  # YAML 1.1 reads 1e-5 as text
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    return key, parsed


def apply_overrides(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of raw sections with dotted keys replaced."""
    changed = _copy(raw)
    for key, value in overrides.items():
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
