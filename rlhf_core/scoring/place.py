"""Where models are that rewards take as they are."""

import re

FOLDER = "inputs/rewards"  # an input of the stages that train reward models or score responses


def require_place(path: str | None, hub: str | None, what: str) -> None:
    """Check the place of a model that a run takes as it is, `what` in messages.

    Raises:
        ValueError: the path is not a folder in FOLDER, or the hub id is not pinned.
    """
    if path is not None and not re.fullmatch(rf"{FOLDER}/[\w.-]*\w", path):
        raise ValueError(f"path of {what} is {path}; copy the model to a folder in {FOLDER}")
    if hub is not None and not re.fullmatch(r"[^@]+@[^@]+", hub):
        raise ValueError(f"hub of {what} is {hub}, which is not pinned; write org/name@revision")
