"""The forms of feedback, found by their files: each class in rlhf_core/feedback/forms/NAME.py declares its own name."""

from dataclasses import fields
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from rlhf_core.common.errors import UserError
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import PREFERENCES

PACKAGE = "rlhf_core.feedback.forms"


@cache
def forms() -> dict[str, type[Form]]:
    """Every form by its name."""
    found: dict[str, type[Form]] = {}
    for file in iter_modules(import_module(PACKAGE).__path__):
        module = import_module(f"{PACKAGE}.{file.name}")
        own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
        found |= {kind.name: kind for kind in own if issubclass(kind, Form) and "name" in vars(kind)}
    return found


def form(name: str, where: str = "collect.form") -> type[Form]:
    """The class of the form called `name`.

    Raises:
        UserError: if there is none; `where` it was named, and the names that exist.
    """
    if name not in forms():
        raise UserError(f"{where}: there is no form '{name}'. Choose from: {', '.join(forms())}.")
    return forms()[name]


def make_form(section: Any) -> Form:
    """The form that the parameters of a section name in `form`, with its options from the same section."""
    kind = form(section.form)
    return kind(**{item.name: getattr(section, item.name) for item in fields(kind)})


@cache
def stored_forms() -> tuple[Form, ...]:
    """The forms whose rows data can hold, one for each file; preferences first, since every form implies them."""
    read = [kind() for kind in forms().values() if kind.kind]
    return tuple(sorted(read, key=lambda form: form.file != PREFERENCES))


def form_of_kind(kind: str) -> Form | None:
    """The form that data of this kind holds; None for data without feedback."""
    return next((form for form in stored_forms() if form.kind == kind), None)


def form_feeding(data: str) -> Form:
    """The form whose rows methods that learn from `data` read.

    Raises:
        ValueError: if there is none.
    """
    for form in stored_forms():
        if form.data == data:
            return form
    raise ValueError(f"no form of feedback feeds methods that learn from {data}")
