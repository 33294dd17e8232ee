"""Load the subset of YAML that parameter files use: plain values, no tags, no repeated keys."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from rlhf_core.common.errors import UserError


class _NotPlainError(yaml.MarkedYAMLError):  # type: ignore[misc]  # untyped
    """Valid YAML that parameter files must not use."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # untyped
    """Reads 1e-5 as a number, as YAML 1.2 does, and dates as text. Rejects tags and repeated keys."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if tag := getattr(event, "tag", None):
            raise _NotPlainError(
                problem=f"the tag {tag} is not allowed; write a plain value", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _NotPlainError(problem="a key must be a plain word", problem_mark=key.start_mark)
            if key.value in seen:
                raise _NotPlainError(
                    problem=f"the key '{key.value}' appears twice; delete one", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def load_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        UserError: the text is not YAML, has a tag or a key twice (the message begins with `where` and names the line),
            or contains a value that `require_plain` rejects.
    """
    try:
        value = yaml.load(text, _Loader)
        require_plain(value, where)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None and "\n" in text.strip() else ""
        fault = ":" if isinstance(error, _NotPlainError) else " is not YAML:"
        raise UserError(f"{where}{line}{fault} {error.problem}. Correct it.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}. Correct it.") from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply. Write plain values.") from error
    return value


def require_plain(value: Any, where: str, key: str = "") -> None:
    """Check that OmegaConf reads every text in `value` as itself. `key` is the dotted key of `value`.

    Raises:
        UserError: a text contains an interpolation, or is OmegaConf's mark of a missing value; or a key is not a word.
    """
    name = f"'{key}'" if key else "the value"
    if isinstance(value, Mapping):
        for part, inner in value.items():
            if not isinstance(part, str):
                raise UserError(f"{where}: the key {part!r} is not a word. Correct it.")
            require_plain(inner, where, f"{key}.{part}" if key else part)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            require_plain(inner, where, f"{key}.{place}" if key else str(place))
    elif isinstance(value, str) and ("${" in value or value == "???"):
        fault = "contains ${, but interpolations are not resolved" if "${" in value else "is ???, which means missing"
        raise UserError(f"{where}: {name} {fault}. Write the value itself.")
