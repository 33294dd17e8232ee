"""The parameters of a run as a form, each field left empty to keep its value.

It begins with what people change: data, model and methods, then a few fields per stage (FIELDS). Types, bounds,
meanings and present values come from the dataclasses of `tasks.params` and from params.yaml. Whatever is not in the
form is reached by the flow's `overrides`. Prefect draws a field for each.
"""

from collections.abc import Iterable, Mapping
from dataclasses import Field as DataclassField
from dataclasses import fields
from typing import Any, Literal, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
)

from flows.run.changes import DEFAULT
from flows.servers.settings import find_root
from tasks.params.schema import Params, read_yaml
from tasks.reporting.findings import label

BOUNDS = ("gt", "ge", "lt", "le")
FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {  # section: its title and fields, in the form's order
    "prepare": ("Data", ("format", "path", "hub", "limit")),
    "model": ("Model", ("path", "hub")),
    "policy": ("Methods", ("algorithms",)),
    "sft": ("Supervised fine-tuning", ("epochs", "learning_rate")),
    "sample": ("Samples", ("prompts",)),
    "collect": ("Feedback", ("form",)),
    "reward": ("Reward model", ("loss", "epochs")),
    "evaluate": ("Evaluation", ("prompts",)),
    "run": ("Run", ("seed", "device")),
}
METHOD_FIELDS = ("beta", "kl_coef", "max_kl", "best_of", "learning_rate")  # those that a method has
TITLES = {
    "algorithms": "Methods to train",
    "hub": "Hub id",
    "limit": "Number of rows",
    "kl_coef": "KL weight",
    "max_kl": "Largest KL of a step",
    "best_of": "N",
}


class Section(BaseModel):
    """A part of the form."""

    model_config = ConfigDict(extra="forbid")

    @model_serializer(mode="wrap")
    def _without_empty_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was filled in: Prefect would otherwise offer every empty field as null, which is no number."""
        return {name: value for name, value in serialize(self).items() if value not in (None, {})}


def make_form(present: Mapping[str, Any]) -> type[Section]:
    """Return the form for params.yaml's `present` values, all fields optional; methods are those that run now."""
    members: dict[str, Any] = {}
    kinds = get_type_hints(Params)
    for name, (title, names) in FIELDS.items():
        section, values = kinds[name], present.get(name) or {}
        inputs = _inputs(section, names, values)
        for method in values.get("algorithms", ()):
            kind, own = get_type_hints(section)[method], values.get(method) or {}
            form = create_model(method, __base__=Section, **_inputs(kind, METHOD_FIELDS, own))
            inputs[method] = _nested(form, label(method), f"How {label(method)} is trained.")
        form = create_model(name, __base__=Section, **inputs)
        members[name] = _nested(form, title, (section.__doc__ or "").strip().splitlines()[0])
    return create_model("Parameters", __base__=Section, **members)


def _nested(form: type[Section], title: str, meaning: str) -> Any:
    return form, Field(default_factory=form, title=title, description=meaning)


def _inputs(section: type, names: Iterable[str], present: Mapping[str, Any]) -> dict[str, Any]:
    """The named fields of a dataclass as optional inputs, those that it lacks left out."""
    kinds, known = get_type_hints(section), {item.name: item for item in fields(section)}
    return {name: _input(known[name], kinds[name], present.get(name)) for name in names if name in known}


def chosen(form: Section, prefix: str = "") -> dict[str, Any]:
    """Return what a person filled in, by dotted key; empty fields are left out."""
    values: dict[str, Any] = {}
    for name in type(form).model_fields:
        value = getattr(form, name)
        if isinstance(value, Section):
            values |= chosen(value, f"{prefix}{name}.")
        elif value is not None:
            values[prefix + name] = value
    return values


def _input(item: DataclassField[Any], kind: Any, value: Any) -> Any:
    """An optional field; its schema is that of the value alone, so that it is drawn as one plain input."""
    bounds = {key: item.metadata[key] for key in BOUNDS if key in item.metadata}
    meaning = item.metadata.get("description", item.name)
    description = meaning if value in (None, "") else f"{meaning} [{_text(value)}]"
    title = TITLES.get(item.name, item.name.replace("_", " ").capitalize())
    return kind | None, Field(default=None, title=title, description=description, json_schema_extra=_plain, **bounds)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(schema: dict[str, Any]) -> None:
    """Make `anyOf: [X, null]` simply X without a default."""
    schema.pop("default", None)
    for option in schema.pop("anyOf", []):
        if option != {"type": "null"}:
            schema.update(option)


_ROOT = find_root()
_PROFILES = (DEFAULT, *sorted(path.stem for path in (_ROOT / "profiles").glob("*.yaml") if path.stem != DEFAULT))
Profile = Literal[_PROFILES]  # type: ignore[valid-type]  # a drop-down of what profiles/ holds
Form: Any = make_form(read_yaml(_ROOT / "params.yaml"))
