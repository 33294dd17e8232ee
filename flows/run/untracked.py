"""Files that no commit has yet: a run's clone gets them, and its experiment stores them."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path

from tasks.runtime.git import git

COPY_BELOW = 1 << 20  # bytes; larger files are linked, and not stored
LOCK = "dvc.lock"  # a result, which DVC itself stores
CODE = ".py"
SHOWN = 5  # files named in a message


@dataclass(frozen=True)
class Untracked:
    """Paths of a checkout: added to git's index (`added`), not tracked but small (`copied`), and not stored."""

    added: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def stored(self) -> tuple[str, ...]:
        """What the experiment stores."""
        return (*self.added, *self.copied)

    def messages(self) -> list[str]:
        """Say what the experiment stores and what it leaves out."""
        messages = []
        if self.copied:
            messages.append(f"Untracked files stored in the experiment: {_listed(self.copied)}")
        if self.left_out:
            listed = _listed(self.left_out)
            messages.append(f"Not stored (untracked data, links, 1 MiB or more): {listed}. To store one: git add FILE")
        return messages


def find_untracked(root: Path, data: Sequence[str]) -> Untracked:
    """Return the files that HEAD does not have and git does not ignore. `data` are paths of the user's data."""
    added = _names(root, "diff", "HEAD", "--name-only", "--no-renames", "--diff-filter=A", "-z")
    others = _names(root, "ls-files", "--others", "--exclude-standard", "-z")
    is_copied = {name: _is_small(root / name) and not _is_in(name, data) for name in others}
    copied = tuple(name for name in others if is_copied[name])
    return Untracked(tuple(added), copied, tuple(name for name in others if not is_copied[name]))


def digest(root: Path, found: Untracked) -> bytes:
    """Return a hash of the code among the files that will be copied. Others, such as a log, may change during a run."""
    each = hashlib.sha256()
    for name in found.copied:
        if name.endswith(CODE):
            each.update(f"{name}\0".encode() + hashlib.sha256((root / name).read_bytes()).digest())
    return each.digest()


def to_store(root: Path, checkout: Path, stored: Sequence[str]) -> list[str]:
    """Return the files of a finished run that its experiment must store.

    Files other than code that have grown or changed in `root` since, such as a log of the run, are left out: to apply
    the experiment would undo the change.
    """
    return [
        name
        for name in stored
        if (checkout / name).exists()
        and (name.endswith(CODE) or not (root / name).is_file() or cmp(root / name, checkout / name, shallow=False))
    ]


def lend_untracked(root: Path, checkout: Path, found: Untracked) -> None:
    """Copy the small files, which stages may rewrite, and link the others."""
    has_lock = (root / LOCK).is_file() and not (checkout / LOCK).exists()
    for name in (*found.copied, *found.left_out, *([LOCK] if has_lock else [])):
        source, target = root / name, checkout / name
        if target.exists():
            continue  # already linked as data
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in found.left_out:
            target.symlink_to(source)
        else:
            shutil.copy2(source, target)


def _names(root: Path, *command: str) -> list[str]:
    """Return the paths that a git command lists, without DVC's lock file."""
    return [name for name in git(root, *command).decode().split("\0") if name not in ("", LOCK)]


def _is_small(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size < COPY_BELOW


def _is_in(name: str, folders: Sequence[str]) -> bool:
    return any(Path(name).is_relative_to(folder) for folder in folders)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
