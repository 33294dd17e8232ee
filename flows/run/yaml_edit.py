"""Changing values of a YAML file in place: every line without a changed value keeps its bytes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Edit = tuple[int, int, str]  # from, to, what stands there instead


def update_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Give the YAML file at `path` the values of `content`; keys that it lacks are added, others stay.

    Comments, order and the spelling of values that are equal (3.0e-3, quotes, lists) stay as they are.
    """
    with path.open(encoding="utf-8", newline="") as file:  # line ends as they are
        text = file.read()
    wanted = _merged(yaml.safe_load(text) or {}, content)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    edits = list(_edits(text, root, content)) if isinstance(root, yaml.MappingNode) else []
    changed = text
    for start, end, new in sorted(edits, reverse=True):
        changed = changed[:start] + new + changed[end:]
    if not _says(changed, wanted):  # anchors and merge keys: one text, several values
        changed = yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(changed)


def _says(text: str, wanted: Any) -> bool:
    try:
        return bool(yaml.safe_load(text) == wanted)
    except yaml.YAMLError:
        return False


def _merged(old: Any, new: Any) -> Any:
    """`new` over `old`, mapping by mapping."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _edits(text: str, node: yaml.MappingNode, content: Mapping[str, Any]) -> Iterator[Edit]:
    """Replacements that give a mapping the values of `content`."""
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
                # After "key:" alone, or instead of a block that begins on the next line.
                colon = text.index(":", key.end_mark.index) + 1
                yield colon, max(end, colon), f" {_flow(wanted)}"
            else:
                yield start, end, _flow(wanted)


def _added(text: str, node: yaml.MappingNode, name: str, wanted: Any) -> Edit:
    """A key that the mapping lacks, behind its last value."""
    _, end = _span(text, node)
    if node.flow_style:
        return end - 1, end - 1, f"{', ' if node.value else ''}{_flow({name: wanted})[1:-1]}"
    line_end = end + len(text[end:].partition("\n")[0].rstrip("\r"))  # behind a comment
    return line_end, line_end, f"\n{' ' * node.start_mark.column}{name}: {_flow(wanted)}"


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and not node.flow_style


def _span(text: str, node: yaml.Node) -> tuple[int, int]:
    """Where a value begins and ends in the text; a block ends with its last value, before comments that follow."""
    if _is_block(node) and node.value:
        last = node.value[-1]
        return node.start_mark.index, _span(text, last[1] if isinstance(last, tuple) else last)[1]
    start, end = node.start_mark.index, node.end_mark.index
    return start, start + len(text[start:end].rstrip())


def _is_same(old: Any, new: Any) -> bool:
    """Equal, and alike as YAML: 1, 1.0 and true are three values."""
    return bool(old == new) and _flow(old) == _flow(new)


def _value(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_document(node)


def _flow(value: Any) -> str:
    """A value on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
