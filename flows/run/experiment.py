"""DVC experiments: how a run's clone becomes one of the user's checkout."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_core.common.errors import UserError
from tasks.runtime.git import git


def save_experiment(checkout: Path, name: str, stages: Sequence[str], stored: Sequence[str] = ()) -> None:
    """Save `checkout` as the DVC experiment `name` and push it to the checkout that it was cloned from.

    Only `stages` are recorded, since DVC would otherwise mark stages as up to date that never ran. Of files without a
    commit DVC would store none; `stored` names those that it must.

    Raises:
        UserError: DVC or git failed.
    """
    included = [f"--include-untracked={path}" for path in stored]
    command = [sys.executable, "-m", "dvc", "exp", "save", "--force", "--name", name, *included, *stages]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode:
        raise UserError(f"dvc exp save failed in {checkout}: {done.stderr.strip()}")
    for reference in experiment_refs(checkout, name):
        _drop_ignored(checkout, reference, stored)
        git(checkout, "push", "--quiet", "origin", f"+{reference}:{reference}")


def _drop_ignored(checkout: Path, reference: str, stored: Sequence[str]) -> None:
    """Remove files that git ignores from the commit of an experiment, unless HEAD has them or they are `stored`.

    `dvc exp save` adds a file of its own arguments (.dvc/tmp/repro.dat), and curves, which DVC's cache already has.
    """
    git(checkout, "read-tree", reference)
    ignored = git(checkout, "ls-files", "--cached", "--ignored", "--exclude-standard", "-z")
    kept = {*git(checkout, "ls-tree", "-r", "--name-only", "-z", "HEAD").decode().split("\0"), *stored}
    dropped = [path for path in ignored.decode().split("\0") if path not in kept]
    git(checkout, "update-index", "--force-remove", "-z", "--stdin", stdin="\0".join(dropped).encode())
    tree = git(checkout, "write-tree")
    git(checkout, "read-tree", "HEAD")
    _, _, rest = git(checkout, "cat-file", "commit", reference).partition(b"\n")  # after the tree: parent, author, ...
    commit = git(checkout, "hash-object", "-t", "commit", "-w", "--stdin", stdin=b"tree " + tree + rest)
    git(checkout, "update-ref", reference, commit.decode().strip())


def experiment_refs(folder: Path, name: str) -> list[str]:
    """Return the git references refs/exps/XX/YYYY/NAME of an experiment, one per commit that has it."""
    names = git(folder, "for-each-ref", "--format=%(refname)", "refs/exps").decode().split()
    return [full for full in names if full.split("/")[4:] == [name]]
