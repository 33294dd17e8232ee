"""The parameters of a run: params.yaml with a profile and single values merged in, resolved once per run."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rlhf_core.algorithms.base.config import OptimizerConfig
from rlhf_core.common.device import require_bitsandbytes, require_cuda, require_packages
from rlhf_core.common.errors import UserError
from tasks.common.source import model_source, require_pinned, reward_base
from tasks.data.readers import first_rows, kind_of, pinned
from tasks.files import declared
from tasks.params.load import as_written, load_profile, merged, read_assignment, read_yaml, validate, with_values
from tasks.params.schema import Params
from tasks.params.sections import PrepareParams
from tasks.problems.problem import require_path
from tasks.problems.table import generated_problem, owner_of, problem_of

LEAST_FROM_SCRATCH = 1e-4  # a lower SFT learning rate suits only pretrained models
LONGEST = 48  # characters of a name without its fingerprint
DEFAULT = "default"  # the profile that leaves params.yaml unchanged


@dataclass(frozen=True)
class Resolved:
    """The parameters of a run: validated (`params`), as written to params.yaml (`raw`), and the changes applied."""

    changes: "Changes"
    params: Params
    raw: dict[str, Any]
    is_changed: bool

    def title(self) -> str:
        """Describe the run: `default: ppo, dpo`, that is the profile and its methods, or the single values changed."""
        label = self.changes.label()
        return label if self.changes.overrides else f"{label}: {', '.join(self.params.policy.methods)}"


@dataclass(frozen=True)
class Changes:
    """A profile's name, and single values by dotted key such as `{"sft.learning_rate": 1e-5}`.

    `written` holds the user's text of values from a command line, which messages repeat.
    """

    profile: str = DEFAULT
    overrides: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def from_command_line(cls, profile: str, assignments: list[str]) -> Self:
        """Return the changes of `--profile` and `--set`, whose assignments are `key=value`.

        Raises:
            UserError: an assignment has an unknown key or a value that is not YAML.
        """
        values = [read_assignment(text) for text in assignments]
        written = {key: as_written(text) for (key, _), text in zip(values, assignments, strict=True)}
        return cls(profile, dict(values), written)

    def resolve(self, root: Path) -> Resolved:
        """Return the parameters that these changes make of params.yaml in `root`; the file is not written.

        Raises:
            UserError: unknown profile; unknown key, wrong type or value out of bounds. The message names its source.
        """
        raw = read_yaml(root / "params.yaml")
        before = params = validate(raw, "params.yaml")
        if self.profile != DEFAULT:
            raw = merged(raw, load_profile(self.profile, root))
            params = validate(raw, f"profiles/{self.profile}.yaml")
        if self.overrides:
            raw = with_values(raw, self.overrides)
            params = validate(raw, "changed value", self.written)
        return Resolved(self, params, raw, params != before)

    def label(self) -> str:
        """Return a readable name for a run: `gsm8k-dpo.beta-0.2`, or `default` if nothing is changed.

        A name of more than LONGEST characters ends after a whole change, or after a part of the first one.
        """
        words = [self.profile] if self.profile != DEFAULT else []
        words += [f"{'.'.join(key.split('.')[-2:])}-{value}" for key, value in self.overrides.items()]
        label = ""
        for word in words:
            longer = re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9._]+", "-", f"{label}-{word}")).strip("-.")
            if len(longer) > LONGEST:
                cut = longer[: LONGEST + 1].rpartition("-")[0] or longer[:LONGEST]
                return label or cut.strip("-.") or DEFAULT
            label = longer
        return label or DEFAULT


def require_inputs(params: Params, root: Path) -> None:
    """Check the data and the model that a run of `root` starts from, without loading either.

    Reads the first rows of the data, and of the model config.json, the headers of its weights and its tokenizer. A hub
    id must be pinned; the stages check the rest of it.

    Raises:
        UserError: a path is wrong (see `require_no_output` and `require_data`); rows cannot be read, or methods and
            rewards cannot learn from them; the model path is neither a config nor a valid checkpoint; or learning
            rates do not suit the model (see `require_suited_model`).
    """
    require_no_output(params, root)
    if params.run.device == "cuda":
        require_cuda()
    for entry in params.policy.rewards:
        if entry.path is not None and not (root / entry.path / "config.json").is_file():
            raise UserError(f"policy.rewards: {entry.path} is not a model folder. Copy the reward model there.")
    if params.reward.base is not None and "@" not in params.reward.base:
        reward_base(params.reward.base, root)
    require_packages(params.model.dtype, params.model.attn_implementation)
    if any(optimizer == "adamw_8bit" for optimizer in _optimizers(params)):
        require_bitsandbytes("an optimizer is adamw_8bit", "set it to adamw")
    require_data(params.prepare, root)
    prepare = params.prepare
    if params.model.hub:
        require_pinned(params.model.hub)
        from_scratch = False
    else:
        require_suited_model(params)
        from_scratch = model_source(params.model, root).config is not None
    if prepare.hub:
        pinned(prepare.hub)
    elif generated := generated_problem(prepare.format):
        generated.look(prepare, root)
        generated.check(params, from_scratch=from_scratch)
    else:
        path, base = root / prepare.path, prepare.preference_base
        rows = first_rows(path, prepare.format, prepare.answer_pattern, preference_base=base)
        problem_of(kind_of(rows)).check(params, from_scratch=from_scratch)


def require_no_output(params: Params, root: Path) -> None:
    """Check that the pipeline reads none of its own outputs: DVC would refuse the graph with a message of its own.

    Raises:
        UserError: a path is in an output, or contains one. The message names the key and a command that helps.
    """
    named = {
        "model.path": (params.model.path, "inputs/models"),
        "prepare.path": (params.prepare.path, "inputs/data"),
        "policy.reward_code": (params.policy.reward_code, "inputs"),
    }
    for key, (value, folder) in named.items():
        path = Path(os.path.relpath((root / value).resolve(), root.resolve()))
        if value and (found := declared.output_at(path)):
            stage, output = found
            copy = f"{folder}/{path.name}"
            fix = (
                f"Copy it: mkdir -p {folder} && cp -r {value} {copy}. Then set {key} to {copy}."
                if path.is_relative_to(output)
                else f"Set {key} to a path without outputs, such as one in {folder}."
            )
            where = "is" if path == output else "is in" if path.is_relative_to(output) else "contains"
            raise UserError(
                f"{key} {value} {where} {f'{output}, ' if path != output else ''}an output of stage {stage}, so it "
                f"cannot be an input.\n{fix}"
            )


def _optimizers(params: Params) -> list[str]:
    """The optimiser of every training."""
    policies = [params.policy.section(name) for name in params.policy.methods]
    trained = (params.base, params.sft, params.reward, *policies)
    return [section.optimizer for section in trained if isinstance(section, OptimizerConfig)]


def require_suited_model(params: Params) -> None:
    """Check that learning rates for a pretrained model, which some profiles set, are used with such a model.

    Raises:
        UserError: the user's own data is combined with a generated task's small model, which is trained from scratch.
    """
    rate, path = params.sft.learning_rate, params.model.path
    owner = owner_of(path)
    if owner and generated_problem(params.prepare.format) is None and rate < LEAST_FROM_SCRATCH:
        raise UserError(
            f"sft.learning_rate {rate:g} suits only a pretrained model, but model.path is {owner.title}'s {path}, "
            "a small model trained from scratch. Set model.path or model.hub to a pretrained model, "
            "or raise all learning rates to those of params.yaml."
        )


def require_data(prepare: PrepareParams, root: Path) -> None:
    """Check the path of the data without reading the data.

    Raises:
        UserError: the path does not exist, belongs to a generated task although other data is configured, or cannot be
            the source of the generated task that is configured.
    """
    if prepare.hub:
        return
    if generated := generated_problem(prepare.format):
        generated.check_source(prepare, root)
    elif owner := owner_of(prepare.path):
        raise UserError(
            f"prepare.format is {prepare.format}, but prepare.path is still {owner.title}'s {prepare.path}. "
            "Set prepare.path to your data file or folder, or prepare.hub."
        )
    else:
        require_path(prepare, root)
