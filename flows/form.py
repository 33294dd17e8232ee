"""The parameters of a run as a form, each field left empty to keep its value.

Built from the dataclasses of `tasks.params`, so that a new parameter appears by itself, with its meaning, its
bounds and its present value. Prefect draws a field for each.
"""

from collections.abc import Mapping
from dataclasses import Field as DataclassField
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
)

from flows.changes import DEFAULT
from flows.settings import find_root
from rlhf_core.algorithms.table import POLICY_ALGORITHMS
from tasks.params import Params, read_yaml

BOUNDS = ("gt", "ge", "lt", "le")
# Seldom changed and repeated for every training; a form without them can be taken in. `overrides` reaches them.
LEFT_OUT = frozenset(
    {
        "adam_eps",
        "evaluations",
        "rewards",
        "max_grad_norm",
        "micro_batch_size",
        "resume_every",
        "warmup_steps",
        "weight_decay",
    }
)


class Section(BaseModel):
    """A part of the form."""

    model_config = ConfigDict(extra="forbid")

    @model_serializer(mode="wrap")
    def _without_empty_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was filled in: Prefect would otherwise offer every empty field as null, which is no number."""
        return {name: value for name, value in serialize(self).items() if value not in (None, {})}


def make_form(section: type, title: str, present: Mapping[str, Any]) -> type[Section]:
    """Return a model with the fields of a dataclass, nested ones nested, all optional; `present`: their values now."""
    kinds = get_type_hints(section)
    members: dict[str, Any] = {}
    for item in fields(section):
        kind, value = kinds[item.name], present.get(item.name)
        if item.name in POLICY_ALGORITHMS and item.name not in present.get("algorithms", ()):
            continue  # a form with every method is too long to read; `overrides` reaches those that don't run now
        if is_dataclass(kind) and isinstance(kind, type):
            form = make_form(kind, item.name, value if isinstance(value, Mapping) else {})
            meaning = (kind.__doc__ or "").strip().splitlines()[0]
            members[item.name] = (form, Field(default_factory=form, description=meaning))
        elif item.name not in LEFT_OUT:
            # Prefect draws a bool as a switch that is off and sends it as such, though nobody touched it.
            choice = Literal["true", "false"] if kind is bool else kind
            members[item.name] = (choice | None, _field(item, value))
    return create_model(title, __base__=Section, **members)


def chosen(form: Section, prefix: str = "") -> dict[str, Any]:
    """Return what a person filled in, by dotted key; empty fields are left out."""
    values: dict[str, Any] = {}
    for name in type(form).model_fields:
        value = getattr(form, name)
        if isinstance(value, Section):
            values |= chosen(value, f"{prefix}{name}.")
        elif value is not None:
            values[prefix + name] = value == "true" if value in ("true", "false") else value
    return values


def _field(item: DataclassField[Any], value: Any) -> Any:
    """An optional field; its schema is that of the value alone, so that it is drawn as one plain input."""
    bounds = {key: item.metadata[key] for key in BOUNDS if key in item.metadata}
    meaning = item.metadata.get("description", item.name)
    description = meaning if value is None else f"{meaning} [{value}]"
    return Field(default=None, description=description, json_schema_extra=_plain, **bounds)


def _plain(schema: dict[str, Any]) -> None:
    """Make `anyOf: [X, null]` simply X without a default."""
    schema.pop("default", None)
    for option in schema.pop("anyOf", []):
        if option != {"type": "null"}:
            schema.update(option)


_ROOT = find_root()
_PROFILES = (DEFAULT, *sorted(path.stem for path in (_ROOT / "profiles").glob("*.yaml") if path.stem != DEFAULT))
Profile = Literal[_PROFILES]  # type: ignore[valid-type]  # a drop-down of what profiles/ holds
Form: Any = make_form(Params, "Parameters", read_yaml(_ROOT / "params.yaml"))
