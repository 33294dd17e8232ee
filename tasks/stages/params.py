"""Stage `params`: write every value that a stage can read into one file, which DVC tracks.

params.yaml holds only values that differ from a default, and writes what methods share once. This stage fills in both.
An edit of params.yaml, or of a default in the code, therefore reruns only the stages whose values change.
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
        UserError: params.yaml is wrong; the message names the file and the key.
    """
    text = yaml.safe_dump(effective(load_params(root / "params.yaml")), allow_unicode=True)
    final = root / EFFECTIVE_PARAMS
    partial = final.with_suffix(".partial")
    partial.write_text(f"# Made from params.yaml by stage params. Edit params.yaml instead.\n{text}", encoding="utf-8")
    os.replace(partial, final)


if __name__ == "__main__":
    try:
        params()
    except UserError as error:
        sys.exit(f"error: {error}")
