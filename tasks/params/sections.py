"""The sections of params.yaml, one per stage: every key with its meaning and bounds."""

import re
from dataclasses import MISSING, dataclass
from typing import Literal

from rlhf_core.algorithms.base.config import OfflineConfig
from rlhf_core.common.device import Device, Precision
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.feedback.table import forms
from rlhf_core.scoring.answers import answer_pattern, format_pattern
from tasks.files.paths import SFT

Format = Literal[
    "helpdesk", "auto", "preference", "implicit", "demonstration", "unpaired", "ratings", "rankings", "question_answer",
    "prompts",
]  # fmt: skip

Form = Literal[tuple(forms())]  # type: ignore[valid-type]


class Section:
    """A section of params.yaml: unknown keys are errors, and so are NaN and infinity.

    A setting whose default is MISSING has to be in params.yaml, because dvc.yaml reads it from there.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class RunParams(Section):
    """What holds for every stage."""

    seed: int = setting(0, "names every random stream", ge=0)
    threads: int = setting(1, "CPU threads of each stage's process; part of what makes a run reproducible", ge=1)
    device: Device = setting("auto", "where models run")
    precision: Precision = setting("fp32", "compute precision; weights are float32 always")
    parallel: int = setting(2, "stages that may run side by side", ge=1)


@dataclass(frozen=True, kw_only=True)
class ModelParams(Section):
    """Which model everything starts from."""

    path: str = setting(MISSING, "a Hugging Face folder, or a config to train from scratch")
    hub: str = setting("", "a model hub id with its revision, org/name@revision; used instead of path", title="Hub id")
    vocabulary: int = setting(512, "entries of the tokenizer, where the model is trained from scratch", ge=64)


@dataclass(frozen=True, kw_only=True)
class PrepareParams(Section):
    """Data preparation."""

    format: Format = setting("helpdesk", "what the rows hold; auto looks at their fields")
    path: str = setting(MISSING, "a data file or folder; for helpdesk, the world it describes")
    hub: str = setting(
        "", "a data set hub id with its revision, org/name@revision; used instead of path", title="Hub id"
    )
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
    limit: int | None = setting(None, "use the first so many rows; null for all", title="Number of rows", ge=1)
    max_prompt_tokens: int = setting(64, "longer prompts are dropped and counted", ge=1)
    max_response_tokens: int = setting(64, "longer responses are dropped and counted", ge=1)
    max_dropped: float = setting(0.05, "a larger share of dropped rows stops the run", ge=0, le=1)
    development_fraction: float = setting(0.1, "share of prompts to tune on", gt=0, lt=1)
    test_fraction: float = setting(0.1, "share of prompts to judge on, seen by nothing else", gt=0, lt=1)
    judge_fraction: float = setting(0.2, "share of preferences only the judging reward model sees", ge=0, lt=1)

    def __post_init__(self) -> None:
        answer_pattern(self.answer_pattern)


@dataclass(frozen=True, kw_only=True)
class BaseParams(OfflineConfig, Section):
    """Training a base model from scratch on raw text."""


@dataclass(frozen=True, kw_only=True)
class SFTParams(OfflineConfig, Section):
    """Supervised fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class SampleParams(Section):
    """Responses to be judged."""

    prompts: int = setting(600, "training prompts to collect feedback on", ge=1)
    development_prompts: int = setting(100, "further prompts, for held-out preferences", ge=1)
    responses: int = setting(4, "K, responses per prompt and checkpoint", ge=2)
    temperature: float = setting(1.0, "of sampling", gt=0)
    checkpoints: list[str] = setting(
        [str(SFT)], "the models to sample from: models/sft, and folders in inputs/checkpoints"
    )

    def __post_init__(self) -> None:
        if not self.checkpoints or len(set(self.checkpoints)) < len(self.checkpoints):
            raise ValueError("checkpoints is empty or names one twice; name at least one, and each once")
        for path in self.checkpoints:
            if path != str(SFT) and not re.fullmatch(r"inputs/checkpoints/[\w.-]*\w", path):
                raise ValueError(f"checkpoints names {path}; use models/sft, or a folder in inputs/checkpoints")


@dataclass(frozen=True, kw_only=True)
class CollectParams(Section):
    """Feedback from a panel of simulated annotators."""

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
class RewardTerm(Section):
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
class EvaluateParams(Section):
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
