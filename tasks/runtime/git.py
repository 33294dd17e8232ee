"""Git: the commit that a run starts from, and whether tracked files have been edited."""

import subprocess
from pathlib import Path

from rlhf_core.common.errors import UserError


def git(folder: Path, *arguments: str, stdin: bytes | None = None) -> bytes:
    """Run git in `folder` and return what it prints.

    Raises:
        UserError: git failed; the message contains its last line.
    """
    # In its own session: Ctrl-C at the terminal must stop the run, not interrupt a git command.
    done = subprocess.run(
        ["git", *arguments], cwd=folder, input=stdin, capture_output=True, check=False, start_new_session=True
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise UserError(f"git {arguments[0]} failed in {folder}: {said[-1]}")
    return done.stdout


def head(root: Path) -> str:
    """Return the commit checked out in `root`.

    Raises:
        UserError: there is no commit yet.
    """
    try:
        return git(root, "rev-parse", "--verify", "HEAD").decode().strip()
    except UserError as error:
        raise UserError(f"{root} has no commit to start from. Run `git add -A && git commit` first.") from error


def code_tags(root: Path) -> dict[str, str]:
    """Return MLflow's tags for the code of a checkout: its commit, and whether tracked files differ from it.

    Raises:
        UserError: there is no commit yet.
    """
    edited = git(root, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": head(root), "git_dirty": str(bool(edited.strip())).lower()}
