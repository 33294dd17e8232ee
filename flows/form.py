"""The parameters of a run as a form: every value of params.yaml, left empty to keep it as it stands.

Built from the dataclasses of `tasks.params`, so that a new parameter appears here by itself, with its
meaning and its bounds. Prefect draws a field for each.
"""

from dataclasses import Field as DataclassField
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from flows.changes import DEFAULT
from tasks.params import ROOT, Params

BOUNDS = ("gt", "ge", "lt", "le")


def make_form(section: type, title: str) -> type[BaseModel]:
    """Return a pydantic model with the fields of a dataclass, nested ones nested, all optional."""
    hints = get_type_hints(section)
    members: dict[str, Any] = {}
    for item in fields(section):
        kind = hints[item.name]
        if is_dataclass(kind) and isinstance(kind, type):
            form = make_form(kind, item.name)
            members[item.name] = (form, Field(default_factory=form, description=_meaning(kind)))
        else:
            members[item.name] = (kind | None, _field(item, kind))
    return create_model(title, __config__=ConfigDict(extra="forbid"), **members)


def chosen(form: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Return what a person filled in, by dotted key; empty fields are left out."""
    values: dict[str, Any] = {}
    for name in type(form).model_fields:
        value = getattr(form, name)
        if isinstance(value, BaseModel):
            values |= chosen(value, f"{prefix}{name}.")
        elif value is not None:
            values[prefix + name] = value
    return values


def _field(item: DataclassField[Any], kind: Any) -> Any:
    """An optional field; its schema is that of the value alone, so that it is drawn as one plain input."""
    bounds = {key: item.metadata[key] for key in BOUNDS if key in item.metadata}
    return Field(default=None, description=item.metadata.get("description"), json_schema_extra=_plain, **bounds)


def _plain(schema: dict[str, Any]) -> None:
    """Make `anyOf: [X, null]` simply X without a default."""
    schema.pop("default", None)
    for option in schema.pop("anyOf", []):
        if option != {"type": "null"}:
            schema.update(option)


def _meaning(section: type) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


_PROFILES = (DEFAULT, *sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml") if path.stem != DEFAULT))
Profile = Literal[_PROFILES]  # type: ignore[valid-type]  # a drop-down of what profiles/ holds
Form: Any = make_form(Params, "Parameters")
