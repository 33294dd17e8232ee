"""Where a run lives, and the quiet, offline environment of everything it starts."""

import os
import sys
from pathlib import Path

from rlhf_core.errors import UserError

# No analytics, no version checks: what runs here stays here.
QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    # The temporary server makes its database on the first run, which a busy laptop needs time for.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # DVC starts each stage through the user's shell; one shell for all makes runs alike.
    "SHELL": "/bin/sh",
    "PYTHONUNBUFFERED": "1",
}


def find_root() -> Path:
    """Return the checkout to work in: `RLHF_ROOT`, else the nearest folder upwards that holds dvc.yaml.

    Raises:
        UserError: there is no dvc.yaml there.
    """
    if given := os.environ.get("RLHF_ROOT"):
        root = Path(given).resolve()
        if not (root / "dvc.yaml").is_file():
            raise UserError(
                f"RLHF_ROOT={given} holds no dvc.yaml. Point it at a checkout of the pipeline, or unset it."
            )
        return root
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise UserError(
        f"{here} is not inside a checkout of the pipeline (no dvc.yaml). Change into one, or set RLHF_ROOT."
    )


def set_environment(root: Path) -> None:
    """Set the environment of this process and its children; call it before prefect or mlflow are imported.

    Values that the user has set stay as they are, except where a run would break.
    """
    for name, value in QUIET.items():
        os.environ[name] = value
    os.environ["RLHF_ROOT"] = str(root)
    # A home of its own: nothing of the user's Prefect profiles is read or touched.
    home = root / ".rlhf" / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    # dvc.yaml says `python`: that has to be the interpreter that runs this.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # Stages run as `python -m tasks.NAME` in their checkout; a safe path would hide that checkout's code.
    os.environ.pop("PYTHONSAFEPATH", None)
