"""Where a run lives, and the quiet, offline environment of everything it starts."""

import os
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path

from rlhf_core.common.errors import UserError

HOST = "127.0.0.1"
USER = "rlhf"  # of the login of both servers

# No analytics, no version checks: what runs here stays here.
QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    # Pages of other origins may not talk to a server; `rlhf up` adds the addresses of its own.
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:0",
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
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
    # In the environment, never in arguments, which every user of the machine can list.
    os.environ["PREFECT_SERVER_API_AUTH_STRING"] = login(root)
    if "PREFECT_API_URL" not in os.environ:  # else a server of the user's own, which has its own login
        os.environ["PREFECT_API_AUTH_STRING"] = login(root)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    # dvc.yaml says `python`: that has to be the interpreter that runs this.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # Stages run as `python -m tasks.NAME` in their checkout; a safe path would hide that checkout's code.
    os.environ.pop("PYTHONSAFEPATH", None)


def login(root: Path) -> str:
    """Return `user:password` of the checkout's servers; the password is made on first use and kept.

    Raises:
        UserError: the file that keeps it is empty.
    """
    path = root / ".rlhf" / "password"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(f"password.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
        with suppress(FileExistsError):  # another process was first: its password holds
            os.link(new, path)
        new.unlink()
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o600)
    password = path.read_text().strip()
    if not password:
        raise UserError(f"{path} is empty. Delete it, and a new password is made.")
    return f"{USER}:{password}"
