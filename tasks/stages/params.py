"""Stage `params`: every value that a stage can read, in one file, which is what DVC tracks.

params.yaml holds what differs from a default, and what methods share once. Here both are filled in, so that an edit of
either, or of a default in the code, reruns the stages whose values change, and no others.
"""

import os
import sys
from pathlib import Path

import yaml

from rlhf_core.common.errors import UserError
from tasks.files.paths import EFFECTIVE_PARAMS
from tasks.params.load import effective, load_params


def params(root: Path = Path()) -> None:
    """Write `root`/params.effective.yaml from `root`/params.yaml.

    Raises:
        UserError: params.yaml is wrong; the message names file and key.
    """
    text = yaml.safe_dump(effective(load_params(root / "params.yaml")), allow_unicode=True)
    final = root / EFFECTIVE_PARAMS
    partial = final.with_suffix(".partial")
    partial.write_text(f"# Made from params.yaml by the stage params. Edit params.yaml.\n{text}", encoding="utf-8")
    os.replace(partial, final)


if __name__ == "__main__":
    try:
        params()
    except UserError as error:
        sys.exit(f"error: {error}")
