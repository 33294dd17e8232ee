"""The table of reward terms, built from their files: the term NAME is the class in rlhf_core/scoring/terms/NAME.py."""

from functools import cache
from typing import Any

from rlhf_core.common.classes import classes_in
from rlhf_core.scoring.term import Term


@cache
def terms() -> dict[str, type[Any]]:
    """Every term by its name.

    Raises:
        ValueError: a file does not contain exactly one term with the name of the file; states the file.
    """
    found: dict[str, type[Any]] = {}
    for file, kinds in classes_in("rlhf_core.scoring.terms", Term, "name").items():
        if [kind.name for kind in kinds] != [file]:
            raise ValueError(f"rlhf_core/scoring/terms/{file}.py must contain one term with name = {file!r}.")
        found[file] = kinds[0]
    return found
