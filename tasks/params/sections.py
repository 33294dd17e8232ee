"""The sections of params.yaml, one per stage, with the meaning and bounds of every key."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import Literal

from rlhf_core.algorithms.base.config import OfflineConfig
from rlhf_core.common.device import AttentionName, Device, Precision, Weights
from rlhf_core.common.fields import setting
from rlhf_core.common.lora import Lora
from rlhf_core.scoring.answers import ANSWER_PATTERN, answer_pattern
from tasks.files.formats import AUTO, GENERATED, ROWS
from tasks.files.paths import SFT

RESERVED = ("model", "reward", "judge", "sft")  # names of other models of a run
Format = Literal[(*GENERATED, AUTO, *ROWS)]  # type: ignore[valid-type]


class Section:
    """A section of params.yaml. Unknown keys, NaN and infinity are errors.

    A setting with the default MISSING must be in params.yaml, because dvc.yaml reads it from there.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class RunParams(Section):
    """Parameters of every stage."""

    seed: int = setting(0, "seed of every random stream", ge=0)
    threads: int = setting(1, "CPU threads of each stage; results are reproducible only for the same number", ge=1)
    device: Device = setting("auto", "where models run")
    precision: Precision = setting("fp32", "compute precision; weights that are trained are always float32")
    parallel: int = setting(2, "largest number of stages that run at the same time; does not change results", ge=1)


@dataclass(frozen=True, kw_only=True)
class LoraParams(Lora, Section):
    """A LoRA adapter, with peft's names."""


@dataclass(frozen=True, kw_only=True)
class ModelParams(Section):
    """The model that training starts from."""

    path: str = setting(MISSING, "a Hugging Face model folder, or a config file to train a model from scratch")
    hub: str = setting("", "a Hub model id with its revision, org/name@revision; replaces path", title="Hub id")
    vocabulary: int = setting(512, "size of the tokenizer's vocabulary; only for a model trained from scratch", ge=64)
    dtype: Weights = setting("fp32", "type of frozen weights; bf16 and 4bit need run.precision bf16, 4bit needs lora")
    lora: LoraParams | None = setting(
        None, "adapter that every stage but base trains instead of the whole model; null trains all weights"
    )
    gradient_checkpointing: bool = setting(
        False, "compute each layer again in the backward pass: less memory, a third more arithmetic"
    )
    attn_implementation: AttentionName = setting("sdpa", "attention of transformers; only sdpa has the fast paths")
    fast: bool = setting(True, "false: use transformers' own forward pass and generate everywhere")

    def __post_init__(self) -> None:
        if self.dtype == "4bit" and self.lora is None:
            raise ValueError("dtype 4bit cannot be trained; set lora, or dtype to bf16")


@dataclass(frozen=True, kw_only=True)
class PrepareParams(Section):
    """Data preparation."""

    format: Format = setting("helpdesk", "the kind of the rows; auto detects it from their fields")
    path: str = setting(
        MISSING,
        "a data file or folder; helpdesk: its world file; instructions: its topics, or prompts in IFEval's format",
    )
    hub: str = setting("", "a Hub data set id with its revision, org/name@revision; replaces path", title="Hub id")
    answer_pattern: str = setting(
        ANSWER_PATTERN,
        "question_answer: regular expression of the answer in a text; without a match, a short text is the answer",
    )
    preference_base: Literal[0, 1] | None = setting(
        None,
        "meaning of 0 and 1 in `preference` if no row has 2. 0: 0 is the first response, 1 the second; "
        "1: 0 is a tie, 1 the first response",
    )
    file_sources: bool = setting(
        False,
        "true: a row without `source` gets the name of its file, or of its folder in prepare.path, as its source",
    )
    demonstrations: int = setting(2000, "helpdesk: number of demonstrations to generate", ge=1)
    prompts: int = setting(
        3000,
        "helpdesk, instructions: number of training prompts to generate, for feedback and on-policy training",
        ge=1,
    )
    threads: int = setting(6000, "helpdesk: number of threads to generate as raw text for the base model", ge=1)
    limit: int | None = setting(
        None, "number of rows to use, from the first on; null for all", title="Number of rows", ge=1
    )
    max_prompt_tokens: int = setting(64, "longer prompts are dropped and counted", ge=1)
    max_response_tokens: int = setting(64, "longer responses are dropped and counted", ge=1)
    max_dropped: float = setting(0.05, "largest allowed share of dropped rows; the run stops above it", ge=0, le=1)
    development_fraction: float = setting(0.1, "share of prompts for validation during training", gt=0, lt=1)
    test_fraction: float = setting(0.1, "share of prompts for the final evaluation, used for nothing else", gt=0, lt=1)
    judge_fraction: float = setting(0.2, "share of prompts whose preferences train only the judge model", ge=0, lt=1)

    def __post_init__(self) -> None:
        answer_pattern(self.answer_pattern)


@dataclass(frozen=True, kw_only=True)
class BaseParams(OfflineConfig, Section):
    """Training of a base model from scratch on raw text."""


@dataclass(frozen=True, kw_only=True)
class SFTParams(OfflineConfig, Section):
    """Supervised fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class SampleParams(Section):
    """Sampling of the responses that are judged."""

    prompts: int = setting(600, "number of training prompts to collect feedback on", ge=1)
    development_prompts: int = setting(100, "number of development prompts, for held-out preferences", ge=1)
    responses: int = setting(4, "K, number of responses per prompt and checkpoint", ge=2)
    temperature: float = setting(1.0, "sampling temperature", gt=0)
    checkpoints: list[str] = setting([str(SFT)], "models to sample from: models/sft, or folders in inputs/checkpoints")

    def __post_init__(self) -> None:
        if not self.checkpoints or len(set(self.checkpoints)) < len(self.checkpoints):
            raise ValueError("checkpoints is empty or has duplicates; name at least one, and each only once")
        for path in self.checkpoints:
            if path != str(SFT) and not re.fullmatch(r"inputs/checkpoints/[\w.-]*\w", path):
                raise ValueError(f"checkpoints contains {path}; use models/sft or a folder in inputs/checkpoints")


@dataclass(frozen=True, kw_only=True)
class RewardModelsParams(Section):
    """Several reward models, each trained on some sources of the feedback with the options of section `reward`."""

    names: list[str] = setting(
        MISSING, "names of the models, for policy.rewards; [] trains one model on all feedback", title="Reward models"
    )
    sources: dict[str, list[str]] = setting(
        {}, "for each name the sources (`source` of the rows) that it learns from; by default the source of that name"
    )

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names has duplicates: {', '.join(self.names)}; name each model once")
        for name in self.names:
            if not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII) or name in RESERVED:
                raise ValueError(f"names contains {name}; use letters, digits, - and _, but not {', '.join(RESERVED)}")
        for name, sources in self.sources.items():
            if name not in self.names:
                raise ValueError(f"sources has {name}, which is not in names; {nearest(name, self.names)}")
            if not sources:
                raise ValueError(f"sources of {name} is empty; name at least one source")

    def of(self, name: str) -> list[str]:
        """The sources that a model learns from."""
        return self.sources.get(name, [name])


def nearest(name: str, known: Sequence[str]) -> str:
    """Suggest the most similar of the known names, or list them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose from: {', '.join(known) or 'none'}"


@dataclass(frozen=True, kw_only=True)
class EvaluateParams(Section):
    """Evaluation of the policies."""

    prompts: int = setting(300, "number of test prompts for the final policies", ge=2)
    development_prompts: int = setting(100, "number of development prompts for the snapshots", ge=2)
    temperature: float | None = setting(
        None,
        "sampling temperature of the judged responses; 0 takes the most likely token; null uses each policy's own: "
        "its training temperature for on-policy methods, 1 for the others and SFT",
        ge=0,
    )
    top_k: int = setting(0, "judged responses are drawn from the k most likely tokens; 0 for all", ge=0)
    top_p: float = setting(1.0, "judged responses are drawn from the most likely tokens with this mass", gt=0, le=1)
    stop_strings: list[str] = setting([], "a judged response ends before the first of these")
    resamples: int = setting(2000, "number of bootstrap resamples of the prompts for an interval", ge=100)
    samples: int = setting(12, "number of prompts shown side by side in the report", ge=1)
