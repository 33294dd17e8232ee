"""Edit values of a YAML file in place: every line without a changed value keeps its bytes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Edit = tuple[int, int, str]  # start, end, replacement


def update_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Set the values of `content` in the YAML file at `path`. Missing keys are added, other keys are kept.

    Comments, order and the spelling of unchanged values (3.0e-3, quotes, lists) are kept.
    """
    with path.open(encoding="utf-8", newline="") as file:  # keep line endings
        text = file.read()
    wanted = _merged(yaml.safe_load(text) or {}, content)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    edits = list(_edits(text, root, content)) if isinstance(root, yaml.MappingNode) else []
    changed = text
    for start, end, new in sorted(edits, reverse=True):
        changed = changed[:start] + new + changed[end:]
    if not _says(changed, wanted):  # with anchors and merge keys, one text sets several values
        changed = yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(changed)


def _says(text: str, wanted: Any) -> bool:
    try:
        return bool(yaml.safe_load(text) == wanted)
    except yaml.YAMLError:
        return False


def _merged(old: Any, new: Any) -> Any:
    """Merge `new` into `old` recursively."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _edits(text: str, node: yaml.MappingNode, content: Mapping[str, Any]) -> Iterator[Edit]:
    """Yield the edits that set the values of `content` in a mapping."""
    known = {_value(key): (key, value) for key, value in node.value}
    for name, wanted in content.items():
        if name not in known:
            yield _added(text, node, name, wanted)
            continue
        key, value = known[name]
        if isinstance(wanted, Mapping) and isinstance(value, yaml.MappingNode) and value.value:
            yield from _edits(text, value, wanted)
        elif not _is_same(_value(value), wanted):
            start, end = _span(text, value)
            if start == end or (start > key.end_mark.index and _is_block(value)):
                # The value is empty, or a block that begins on the next line.
                colon = text.index(":", key.end_mark.index) + 1
                yield colon, max(end, colon), f" {_flow(wanted)}"
            else:
                yield start, end, _flow(wanted)


def _added(text: str, node: yaml.MappingNode, name: str, wanted: Any) -> Edit:
    """Return the edit that adds a key after the last value of a mapping."""
    _, end = _span(text, node)
    if node.flow_style:
        return end - 1, end - 1, f"{', ' if node.value else ''}{_flow({name: wanted})[1:-1]}"
    line_end = end + len(text[end:].partition("\n")[0].rstrip("\r"))  # after a comment
    return line_end, line_end, f"\n{' ' * node.start_mark.column}{name}: {_flow(wanted)}"


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and not node.flow_style


def _span(text: str, node: yaml.Node) -> tuple[int, int]:
    """Return start and end of a value in the text. A block ends with its last value, without trailing comments."""
    if _is_block(node) and node.value:
        last = node.value[-1]
        return node.start_mark.index, _span(text, last[1] if isinstance(last, tuple) else last)[1]
    start, end = node.start_mark.index, node.end_mark.index
    return start, start + len(text[start:end].rstrip())


def _is_same(old: Any, new: Any) -> bool:
    """Return whether two values are equal and have the same YAML form: 1, 1.0 and true all differ."""
    return bool(old == new) and _flow(old) == _flow(new)


def _value(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_document(node)


def _flow(value: Any) -> str:
    """Return a value as one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
