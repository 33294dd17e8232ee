"""Options that classes declare in their own files, as keys of a section of params.yaml."""

from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, make_dataclass, replace
from typing import Any, get_type_hints

Member = tuple[str, Any, Any]  # name, type and field


@dataclass(frozen=True)
class Option:
    """An option: its type, its field, and the names of the classes that have it."""

    kind: Any
    item: Field[Any]
    owners: tuple[str, ...]

    @property
    def member(self) -> Member:
        """The option as a key; its description begins with the names of the classes."""
        description = f"{', '.join(self.owners)}: {self.item.metadata['description']}"
        return self.item.name, self.kind, described(self.item, description)


def options_of(classes: Mapping[str, Any], section: str) -> dict[str, Option]:
    """The options of dataclasses, by name.

    Raises:
        TypeError: two classes declare an option of one name differently.
    """
    found: dict[str, Option] = {}
    for name, kind in classes.items():
        for item in fields(kind):
            new = Option(get_type_hints(kind)[item.name], item, (name,))
            old = found.get(item.name)
            if old is None:
                found[item.name] = new
                continue
            if (old.kind, old.item.default, old.item.metadata) != (new.kind, item.default, item.metadata):
                raise TypeError(f"{section}.{item.name} differs between {old.owners[0]} and {name}")
            found[item.name] = replace(old, owners=(*old.owners, name))
    return found


def changed_without_effect(section: Any, options: Mapping[str, Option], chosen: str) -> Option | None:
    """The first option that differs from its default although the class `chosen` does not have it; else None."""
    for name, option in options.items():
        if chosen not in option.owners and getattr(section, name) != option.item.default:
            return option
    return None


def described(item: Field[Any], description: str) -> Any:
    """A copy of a field with another description."""
    return field(default=item.default, metadata={**item.metadata, "description": description})


def make_section(name: str, members: Iterable[Member], bases: tuple[type, ...], doc: str | None) -> Any:
    """A section with these keys and those of `bases`."""
    namespace = {"__doc__": doc, "__module__": __name__}
    return make_dataclass(name, members, bases=bases, frozen=True, kw_only=True, namespace=namespace)
