"""Read params.yaml, merge a profile and single values into it (OmegaConf), and validate the result."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omegaconf import OmegaConf
from pydantic import TypeAdapter, ValidationError

from rlhf_core.algorithms.base.check import check_loop
from rlhf_core.algorithms.base.config import OnlineConfig
from rlhf_core.algorithms.base.table import policy_algorithms
from rlhf_core.common.errors import UserError
from tasks.files.paths import EFFECTIVE_PARAMS
from tasks.params.derived import LOOPS, hint_on_method
from tasks.params.explain import (
    Where,
    coerced,
    dotted,
    explain,
    is_optional,
    nearest_key,
    shorten,
    without_options,
    wrong_value,
)
from tasks.params.plain_yaml import load_yaml, require_plain
from tasks.params.schema import Params, all_keys

ROOT = Path(__file__).resolve().parents[2]
PARAMS = "params.yaml"
EXTENDS = "extends"  # key of a profile: the profile that it starts from


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: the file is missing, or is not a mapping of plain values with unique keys.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist. {_restore(path)}")
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Save it as UTF-8 text and check its permissions.") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} has no sections. {_restore(path)}")
    return raw


def _restore(path: Path) -> str:
    made = path.name == EFFECTIVE_PARAMS.name
    return "Make it with: dvc repro params" if made else f"Restore it with: git checkout {path.name}"


def load_params(path: Path | None = None) -> Params:
    """Return the validated parameters of a file: params.yaml, or params.effective.yaml, which stages read (default)."""
    path = path or EFFECTIVE_PARAMS
    return validate(read_yaml(path), str(path))


def load_profile(name: str, root: Path = ROOT, within: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the values that profiles/NAME.yaml changes, merged into those of the profile that it `extends`, if any.

    within: the profiles that led to this one.

    Raises:
        UserError: the profile does not exist (the message lists those that do), or it extends itself.
    """
    folder = root / "profiles"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        where = f"profiles/{within[-1]}.yaml: extends: " if within else ""
        raise UserError(f"{where}The profile '{name}' does not exist. Choose from: {', '.join(known)}.")
    if name in within:
        raise UserError(f"profiles/{name}.yaml extends itself: {' -> '.join((*within, name))}. Remove one `extends`.")
    own = read_yaml(folder / f"{name}.yaml")
    if EXTENDS not in own:
        return own
    return merged(load_profile(str(own.pop(EXTENDS)), root, (*within, name)), own)


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge raw sections key by key, the later ones taking precedence. Lists are replaced."""
    return _plain(OmegaConf.merge(*(OmegaConf.create(dict(layer)) for layer in layers)))


def with_values(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return raw sections with single values replaced, by dotted key.

    Raises:
        UserError: a key is unknown or names a whole section, or a value is not plain.
    """
    config = OmegaConf.create(dict(raw))
    for key, value in values.items():
        require_key(key)
        require_plain(value, "changed value", key)
        OmegaConf.update(config, key, value, merge=False)
    return _plain(config)


def _plain(config: Any) -> dict[str, Any]:
    content: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]  # of a mapping
    return content


def read_assignment(text: str) -> tuple[str, Any]:
    """Parse `key=value` from a command line; the value is YAML.

    Raises:
        UserError: `=` is missing, the key is unknown (the message names a similar one), or the value is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"{as_written(text)}: write it as key=value, such as sft.learning_rate=1e-3.")
    require_key(key, f"{as_written(text)}: ")
    return key, load_yaml(value, as_written(text))


def as_written(assignment: str) -> str:
    """An assignment as the user wrote it on the command line, shortened for a message."""
    return f"--set {shorten(assignment)}"


def require_key(key: str, where: str = "") -> None:
    """Raise UserError unless `key` names a single value; the message begins with `where`."""
    if key not in all_keys():
        raise UserError(f"{where}unknown key '{shorten(key)}'. {nearest_key(tuple(key.split('.')), Params)}")
    inside = [other for other in all_keys() if other.startswith(f"{key}.")]
    if inside and not is_optional(tuple(key.split(".")), Params):
        raise UserError(f"{where}'{key}' is a section. Set a key of it, such as {inside[0]}.")


def validate(raw: Mapping[str, Any], source: str = PARAMS, written: Mapping[str, str] = MappingProxyType({})) -> Params:
    """Validate raw sections. `written` holds the user's text of single values, by dotted key; others are in `source`.

    Raises:
        UserError: a key is wrong; the message names the first one, its allowed values, and how many more there are.
    """
    problems: list[tuple[Where, str]]
    complete = _with_shared(raw)
    try:
        params = TypeAdapter(Params).validate_python(complete)
        problems = [(where, wrong_value(where, value, Params)) for where, value in coerced(complete, asdict(params))]
    except ValidationError as error:
        problems = [
            (
                without_options(problem["loc"], Params),
                explain(problem, Params) + hint_on_method(problem["loc"], problem["input"]),
            )
            for problem in error.errors()
        ]
        problems = list(dict.fromkeys(problems))
    problems = [(where, text) for where, text in problems if not _is_inherited(where, raw)] or _loop_problems(params)
    if not problems:
        return params
    where, found = problems[0]
    culprits = [text for name, text in written.items() if any(_touch(name, key) for key in _keys_behind(where))]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise UserError(f"{' '.join(culprits) or source}: {found}{more}")


def _loop_problems(params: Params) -> list[tuple[Where, str]]:
    """Return the problems of listed methods whose options do not fit their loop. Other methods are not checked."""
    problems: list[tuple[Where, str]] = []
    for name in params.policy.methods:
        section = params.policy.section(name)
        if isinstance(section, OnlineConfig):
            try:
                check_loop(section, section)  # type: ignore[arg-type]  # it holds the options of the loop and those of the method
            except ValueError as error:
                problems.append((("policy", name), f"in 'policy.{name}', {str(error).rstrip('.')}."))
    return problems


def _with_shared(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return raw sections in which each method has the values of its loop, overridden by its own section."""
    policy = raw.get("policy")
    if not isinstance(policy, Mapping):
        return dict(raw)
    complete = dict(policy)
    for name, kind in policy_algorithms().items():
        shared, own = policy.get(LOOPS.get(kind.loop, ""), {}), policy.get(name, {})
        if isinstance(shared, Mapping) and isinstance(own, Mapping):
            complete[name] = {**shared, **own}
    return {**raw, "policy": complete}


def _is_inherited(where: Where, raw: Mapping[str, Any]) -> bool:
    """Return whether a wrong value of a method comes from its loop, whose own error is reported instead."""
    if len(where) < 3 or where[0] != "policy" or where[1] not in policy_algorithms():
        return False
    return where[2] not in raw["policy"].get(where[1], {})


def _keys_behind(where: Where) -> list[str]:
    """The dotted keys that determine a value: its own key and, for a method, those of its loop."""
    if where[:1] == ("policy",) and len(where) == 2 and where[1] in policy_algorithms():
        loop = LOOPS.get(policy_algorithms()[str(where[1])].loop)
        return [dotted(where), *([f"policy.{loop}"] if loop else [])]
    return [dotted(where)]


def _touch(first: str, second: str) -> bool:
    """Return whether one of two dotted keys equals the other or contains it."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def effective(params: Params) -> dict[str, Any]:
    """Return every value that a stage can read, for params.effective.yaml.

    Two parts are omitted: run.parallel, which changes no result, and the loops, whose values each method's section has.
    Each reward model has its sources, so that its stage can depend on them alone.
    """
    values = asdict(params)
    del values["run"]["parallel"]
    values["reward_models"]["sources"] = {name: params.reward_models.of(name) for name in params.reward_models.names}
    for loop in LOOPS.values():
        del values["policy"][loop]
    return values
