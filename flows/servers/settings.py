"""The checkout that commands work in, and the offline environment of every process they start."""

import os
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path

from rlhf_core.common.errors import UserError

HOST = "127.0.0.1"
USER = "rlhf"  # user name for both servers

# No analytics and no version checks: nothing leaves this machine.
QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    # Pages from other origins must not talk to the server; `rlhf up` adds its own addresses.
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:0",
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    # The temporary server creates its database on the first run, which takes a busy laptop some time.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # DVC starts each stage through the user's shell; a fixed shell makes runs reproducible.
    "SHELL": "/bin/sh",
    "PYTHONUNBUFFERED": "1",
}


def find_root() -> Path:
    """Return the checkout to work in: `RLHF_ROOT`, else the nearest parent folder that contains dvc.yaml.

    Raises:
        UserError: no dvc.yaml was found.
    """
    if given := os.environ.get("RLHF_ROOT"):
        root = Path(given).resolve()
        if not (root / "dvc.yaml").is_file():
            raise UserError(
                f"RLHF_ROOT={given} contains no dvc.yaml.\nSet it to a checkout of the pipeline, or unset it."
            )
        return root
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise UserError(
        f"{here} is not inside a checkout of the pipeline (no dvc.yaml).\n"
        "Change to the checkout's folder, or set RLHF_ROOT."
    )


def set_environment(root: Path) -> None:
    """Set the environment of this process and its children. Call it before prefect or mlflow is imported.

    The user's MLFLOW_TRACKING_URI and PREFECT_API_URL are kept; other values are overwritten.
    """
    for name, value in QUIET.items():
        os.environ[name] = value
    os.environ["RLHF_ROOT"] = str(root)
    # A separate home, so that the user's Prefect profiles are neither read nor changed.
    home = root / ".rlhf" / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home)
    # In the environment and never in arguments, which every user of the machine can list.
    os.environ["PREFECT_SERVER_API_AUTH_STRING"] = login(root)
    if "PREFECT_API_URL" not in os.environ:  # otherwise the user's own server, with its own login
        os.environ["PREFECT_API_AUTH_STRING"] = login(root)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    # The `python` of dvc.yaml must be the interpreter that runs this process.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # Stages run as `python -m` modules of their checkout; a safe path would hide the checkout's code.
    os.environ.pop("PYTHONSAFEPATH", None)


def login(root: Path) -> str:
    """Return `user:password` for the checkout's servers. The password is created on first use and stored.

    Raises:
        UserError: the password file is empty.
    """
    path = root / ".rlhf" / "password"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(f"password.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
        with suppress(FileExistsError):  # another process was first; use its password
            os.link(new, path)
        new.unlink()
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o600)
    password = path.read_text().strip()
    if not password:
        raise UserError(f"{path} is empty.\nDelete the file; the next command creates a new password.")
    return f"{USER}:{password}"
