"""The parameters of a run as a form. An empty field keeps its current value.

The form begins with what people change most: data, model and methods, then a few fields per stage (FIELDS). For a
method it has the options whose setting has a title. Types, bounds, meanings and current values come from the
dataclasses of `tasks.params` and from params.yaml. The flow's `overrides` reach every other parameter. Prefect draws
one input per field.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import Field as DataclassField
from dataclasses import fields
from pathlib import Path
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
from rlhf_core.common.errors import UserError
from tasks.params.load import load_params
from tasks.params.schema import Params
from tasks.reporting.findings import label

BOUNDS = ("gt", "ge", "lt", "le")
FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {  # section: its title and fields, in the form's order
    "prepare": ("Data", ("format", "path", "hub", "limit")),
    "model": ("Model", ("path", "hub")),
    "policy": ("Methods", ("online", "offline")),
    "sft": ("Supervised fine-tuning", ("epochs", "learning_rate")),
    "sample": ("Responses", ("prompts",)),
    "collect": ("Feedback", ("form",)),
    "reward": ("Reward model", ("loss", "epochs")),
    "evaluate": ("Evaluation", ("prompts",)),
    "run": ("Run", ("seed", "device")),
}


class Section(BaseModel):
    """One part of the form."""

    model_config = ConfigDict(extra="forbid")

    @model_serializer(mode="wrap")
    def _without_empty_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return what was filled in. Prefect would otherwise offer every empty field as null, which is not a number."""
        return {name: value for name, value in serialize(self).items() if value not in (None, {})}


def make_form(present: Params | None) -> type[Section]:
    """Return the form, with all fields optional, the values of `present`, and the methods that it names.

    Without `present`, fields show no values and methods have no fields.
    """
    members: dict[str, Any] = {}
    kinds = get_type_hints(Params)
    for name, (title, names) in FIELDS.items():
        section = kinds[name]
        inputs = _inputs(section, names, getattr(present, name, None))
        if present is not None and name == "policy":
            inputs |= {method: _method(present.policy.section(method), method) for method in present.policy.methods}
        form = create_model(name, __base__=Section, **inputs)
        members[name] = _nested(form, title, (section.__doc__ or "").strip().splitlines()[0])
    return create_model("Parameters", __base__=Section, **members)


def _method(section: Any, name: str) -> Any:
    """Return the options of a method that have a title: its own, then those of its loop."""
    titled = [item.name for item in fields(section) if "title" in item.metadata]
    form = create_model(name, __base__=Section, **_inputs(type(section), titled, section))
    return _nested(form, label(name), f"How {label(name)} is trained.")


def _nested(form: type[Section], title: str, meaning: str) -> Any:
    return form, Field(default_factory=form, title=title, description=meaning)


def _inputs(section: Any, names: Iterable[str], present: Any) -> dict[str, Any]:
    """Return the named fields of a dataclass as optional inputs that show the values of `present`, if given."""
    kinds, known = get_type_hints(section), {item.name: item for item in fields(section)}
    return {name: _input(known[name], kinds[name], getattr(present, name, None)) for name in names}


def chosen(form: Section, prefix: str = "") -> dict[str, Any]:
    """Return what the user filled in, by dotted key. Empty fields are omitted."""
    values: dict[str, Any] = {}
    for name in type(form).model_fields:
        value = getattr(form, name)
        if isinstance(value, Section):
            values |= chosen(value, f"{prefix}{name}.")
        elif value is not None:
            values[prefix + name] = value
    return values


def _input(item: DataclassField[Any], kind: Any, value: Any) -> Any:
    """Return an optional field. Its schema is that of the value alone, so that Prefect draws one plain input."""
    bounds = {key: item.metadata[key] for key in BOUNDS if key in item.metadata}
    meaning = item.metadata.get("description", item.name)
    description = meaning if value in (None, "") else f"{meaning} [{_text(value)}]"
    title = item.metadata.get("title", item.name.replace("_", " ").capitalize())
    return kind | None, Field(default=None, title=title, description=description, json_schema_extra=_plain, **bounds)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(schema: dict[str, Any]) -> None:
    """Replace `anyOf: [X, null]` by X without a default."""
    schema.pop("default", None)
    for option in schema.pop("anyOf", []):
        if option != {"type": "null"}:
            schema.update(option)


def _present(root: Path) -> Params | None:
    """Return the content of params.yaml; None if it is wrong, which a run then reports."""
    with suppress(UserError):
        return load_params(root / "params.yaml")
    return None


_ROOT = find_root()
_PROFILES = (DEFAULT, *sorted(path.stem for path in (_ROOT / "profiles").glob("*.yaml") if path.stem != DEFAULT))
Profile = Literal[_PROFILES]  # type: ignore[valid-type]  # a drop-down of what profiles/ holds
Form: Any = make_form(_present(_ROOT))
