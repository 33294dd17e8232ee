"""What a run changes about params.yaml: a profile laid over it, then single values."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError
from tasks.params import ModelParams, Params, PrepareParams, apply_overrides, load_profile, overlay, read_yaml, validate
from tasks.source import model_source

LEAST_FROM_SCRATCH = 1e-4  # a learning rate of SFT below it suits pretrained models only
DEFAULT = "default"  # the profile that is params.yaml as it stands


@dataclass(frozen=True)
class Resolved:
    """Parameters of a run, validated (`params`) and as they stand in YAML (`raw`), and whether they are changed."""

    params: Params
    raw: dict[str, Any]
    is_changed: bool


@dataclass(frozen=True)
class Changes:
    """A profile's name and single values by dotted key, e.g. `{"sft.learning_rate": 1e-5}`."""

    profile: str = DEFAULT
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def resolve(self, root: Path) -> Resolved:
        """Return what params.yaml of `root` becomes under these changes; the file stays as it is.

        Raises:
            UserError: unknown profile; unknown, ill-typed or out-of-range value, naming where it stands.
        """
        raw = read_yaml(root / "params.yaml")
        before = params = validate(raw, "params.yaml")
        if self.profile != DEFAULT:
            raw = overlay(raw, load_profile(self.profile, root))
            params = validate(raw, f"profiles/{self.profile}.yaml")
        if self.overrides:
            raw = apply_overrides(raw, self.overrides)
            params = validate(raw, "changed value")
        return Resolved(params, raw, params != before)

    def label(self) -> str:
        """A readable name for a run with these changes: `gsm8k-dpo.beta-0.2`."""
        words = [self.profile] if self.profile != DEFAULT else []
        words += [f"{'.'.join(key.split('.')[-2:])}-{value}" for key, value in self.overrides.items()]
        label = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(words))
        return re.sub(r"\.\.+", ".", label)[:48].strip("-.") or "unchanged"


def require_inputs(params: Params, root: Path) -> None:
    """Look for the data and the model that a run of `root` starts from; what is on a hub is left to the stages.

    Raises:
        UserError: a data path as `require_data` says, a model path that is neither a checkpoint nor a config, or
            learning rates as `require_suited_model` says.
    """
    require_data(params.prepare, root)
    if not params.model.hub:
        require_suited_model(params)
        model_source(params.model, root)


def require_suited_model(params: Params) -> None:
    """Look whether learning rates for a pretrained model, as some profiles set them, come with such a model.

    Raises:
        UserError: the user's own data, but the help desk's small model, which is trained from scratch.
    """
    rate, default = params.sft.learning_rate, ModelParams().path
    if params.prepare.format != "helpdesk" and params.model.path == default and rate < LEAST_FROM_SCRATCH:
        raise UserError(
            f"sft.learning_rate {rate:g} is for a pretrained model, but model.path is the help desk's {default}, which "
            "is trained from scratch: nothing would be learned. Set model.path or model.hub to a pretrained model, or "
            "raise the learning rates to those of params.yaml."
        )


def require_data(prepare: PrepareParams, root: Path) -> None:
    """Look for the data alone; its rows are read by stage prepare.

    Raises:
        UserError: a path that does not exist, or still names the help desk where other data is asked for.
    """
    if prepare.hub:
        return
    if prepare.format != "helpdesk" and prepare.path == PrepareParams().path:
        raise UserError(
            f"prepare.format is {prepare.format}, but prepare.path is still the help desk's {prepare.path}. "
            f"Set prepare.path to your data file or folder, or prepare.hub."
        )
    if not (root / prepare.path).exists():
        raise UserError(f"prepare.path {prepare.path} does not exist. Name a data file or folder that does.")


def update_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Give the YAML file at `path` the values of `content`, keeping its comments and order."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        """Writes null as null, where ruamel would leave the value out."""

    Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml = YAML()
    yaml.Representer = Representer
    yaml.width = 4096
    document = yaml.load(path)
    _update(document, content)
    text = StringIO()
    yaml.dump(document, text)
    path.write_text(text.getvalue(), encoding="utf-8")


def _update(document: Any, content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), Mapping):
            _update(document[key], value)
        elif key not in document or document[key] != value:
            document[key] = value
