"""The table of forms of feedback, built from their files: rlhf_core/feedback/forms/NAME.py contains form NAME."""

from functools import cache
from typing import Any

from rlhf_core.common.classes import classes_in
from rlhf_core.common.data import Data
from rlhf_core.common.errors import UserError
from rlhf_core.common.fields import from_section
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import PREFERENCES

PACKAGE = "rlhf_core.feedback.forms"


@cache
def forms() -> dict[str, type[Form]]:
    """All forms by name."""
    return {kind.name: kind for kinds in classes_in(PACKAGE, Form, "name").values() for kind in kinds}


def form(name: str, where: str = "collect.form") -> type[Form]:
    """The class of the form `name`.

    Raises:
        UserError: the form does not exist; states `where` it was requested, and lists the names.
    """
    if name not in forms():
        raise UserError(f"{where}: the form '{name}' does not exist. Choose from: {', '.join(forms())}.")
    return forms()[name]


def make_form(section: Any) -> Form:
    """The form that a section of the parameters selects with `form`, with its options from the same section."""
    return from_section(form(section.form), section)


@cache
def stored_forms() -> tuple[Form, ...]:
    """The forms that user data can have, one per file; preferences first, since every form implies them."""
    read = [kind() for kind in forms().values() if kind.kind]
    return tuple(sorted(read, key=lambda form: form.file != PREFERENCES))


def form_of_kind(kind: str) -> Form | None:
    """The form of user data of this kind; None for data without feedback."""
    return next((form for form in stored_forms() if form.kind == kind), None)


def form_feeding(data: Data) -> Form:
    """The form that gives the rows for methods that learn from `data`.

    Raises:
        ValueError: no form gives such rows.
    """
    for form in stored_forms():
        if form.data == data:
            return form
    raise ValueError(f"no form of feedback gives rows for methods that learn from {data}")
