"""Where the stages of one run work: the user's checkout, or one of the run's own where parameters differ.

A run with changed parameters never edits the user's params.yaml. It works in `runs/NAME/checkout`, a local
clone that shares DVC's cache, and ends as the DVC experiment NAME of the user's checkout:

    clone + the user's edits + the changed params.yaml -> stages -> `dvc exp save` -> push one ref -> delete

A failed run keeps its clone, so that the same run started again resumes where it stopped.
"""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.run.changes import Resolved
from flows.run.locks import CHECKOUT, FAILED, IN_PLACE, RUNS, only_one, require_idle, require_no_dvc
from flows.run.yaml_edit import update_yaml
from rlhf_core.common.errors import UserError
from tasks.files import paths
from tasks.runtime.finished import require_resume_folder, sweep_checkout
from tasks.runtime.git import git, head

FINGERPRINT = "fingerprint"  # file of a run of its own that is not finished: what it was started with
COPY_BELOW = 1 << 20  # bytes; a larger untracked file is linked
DATA_KEYS = (("prepare", "path"), ("model", "path"))  # parameters that may name files of the user's own


@dataclass(frozen=True)
class Workspace:
    """Where stages run (`checkout`), whose it is (`root`), and the experiment it ends as (None: in place)."""

    root: Path
    checkout: Path
    name: str | None = None

    def finish(self, stages: Sequence[str]) -> Path:
        """Keep what the stages have made and return the folder that holds the rendered report.

        An isolated run becomes an experiment of the user's checkout, and its clone is deleted.
        """
        if self.name is None:
            return self.checkout / paths.REPORTS
        folder = self.checkout.parent
        save_experiment(self.checkout, self.name, stages)
        for page in ("report.html", "report.md", "report.json"):
            if (self.checkout / paths.REPORTS / page).is_file():
                shutil.copyfile(self.checkout / paths.REPORTS / page, folder / page)
        shutil.rmtree(self.checkout)
        return folder


@dataclass(frozen=True)
class Plan:
    """Where a run will work: in place where `name` is None, else in `folder`/checkout."""

    wanted: Resolved
    folder: Path  # what the run holds while it is under way
    name: str | None = None
    fingerprint: str = ""
    edits: bytes = b""

    @property
    def title(self) -> str:
        """The run in a message."""
        return f"The run {self.name}" if self.name else f"A run in {self.folder.parent.parent}"


def plan(root: Path, wanted: Resolved, name: str | None = None) -> Plan:
    """Return where a run with the parameters `wanted` will work, before anything is made.

    Raises:
        UserError: a bad name, a name that is taken, nothing committed yet, or the same run or a `dvc`
            command is at work there.
    """
    if name is not None:
        require_free_name(root, name)
    if not wanted.is_changed and name is None:
        chosen = Plan(wanted, root / IN_PLACE)
        require_resume_folder(root)
    else:
        commit = head(root)
        edits = git(root, "diff", "HEAD", "--binary")
        fingerprint = hashlib.sha256(b"\0".join([commit.encode(), edits, repr(wanted.params).encode()])).hexdigest()
        experiment = name or f"{wanted.changes.label()}_{fingerprint[:6]}"
        chosen = Plan(wanted, root / RUNS / experiment, experiment, fingerprint, edits)
    require_idle(chosen.folder, chosen.title)
    require_no_dvc(chosen.folder / CHECKOUT if chosen.name else root)
    return chosen


@contextmanager
def open_workspace(root: Path, wanted: Resolved, name: str | None = None) -> Iterator[Workspace]:
    """Yield the workspace of a run: `root` itself where its parameters are unchanged, else a clone of its own.

    Raises:
        UserError: as `plan` says, or the folder holds another run.
    """
    chosen = plan(root, wanted, name)
    with only_one(chosen.folder, chosen.title):
        if chosen.name is None:
            sweep_checkout(root)
            yield Workspace(root, root)
            sweep_checkout(root)
            return
        folder, checkout = chosen.folder, chosen.folder / CHECKOUT
        _refuse_other(folder, chosen.fingerprint)
        (folder / FAILED).unlink(missing_ok=True)
        if not (folder / FINGERPRINT).is_file():
            shutil.rmtree(checkout, ignore_errors=True)  # the remains of a clone that was not finished
            make_clone(root, checkout, chosen.edits)
            _link_data(root, checkout, chosen.wanted.raw)
            _lend_untracked(root, checkout)
            update_yaml(checkout / "params.yaml", chosen.wanted.raw)
            (folder / FINGERPRINT).write_text(chosen.fingerprint)
        try:
            yield Workspace(root, checkout, chosen.name)
        except Exception as error:
            (folder / FAILED).write_text(f"{error}\n", encoding="utf-8")
            raise
        (folder / FINGERPRINT).unlink()


def require_free_name(root: Path, name: str) -> None:
    """Raise UserError where `name` cannot name an experiment or names one already."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or ".." in name or name.endswith(".lock"):
        raise UserError(f"{name!r} cannot name an experiment. Use letters, digits, '.', '_' and '-'.")
    if _experiment_refs(root, name):
        raise UserError(
            f"There already is an experiment {name}. Choose another --name, or delete it: `dvc exp remove {name}`."
        )


def make_clone(root: Path, checkout: Path, edits: bytes) -> None:
    """Clone `root` with its uncommitted `edits`, using its DVC cache and its own DVC settings.

    Both are links: .dvc/config.local may hold credentials, which no clone may keep a copy of.
    """
    from dvc.repo import Repo

    git(root, "clone", "--local", "--quiet", str(root), str(checkout))
    if edits:
        git(checkout, "apply", "--whitespace=nowarn", stdin=edits)
    local = root / ".dvc" / "config.local"
    if local.is_file():
        (checkout / ".dvc" / "config.local").symlink_to(local)
    with Repo(str(root)) as repo, Repo(str(checkout)) as clone:
        cache, linked = Path(repo.cache.local_cache_dir), Path(clone.cache.local_cache_dir)
    if linked.resolve() != cache.resolve():  # a relative path, as the default is, leads elsewhere from the clone
        _link_cache(cache, linked)


def _link_cache(cache: Path, linked: Path) -> None:
    """Make `linked`, where the clone's cache would be, a link to `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    linked.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        linked.rmdir()  # an empty one, made by DVC
    try:
        linked.symlink_to(cache)
    except FileExistsError:
        raise UserError(
            f"From a checkout of its own, DVC's cache.dir leads to {linked}, which is something else.\n"
            f"Give the full path: dvc cache dir --local {cache}"
        ) from None


def save_experiment(checkout: Path, name: str, stages: Sequence[str]) -> None:
    """Save `checkout` as the DVC experiment `name` and push it to where the checkout was cloned from.

    Only `stages` are recorded: without them DVC would also mark stages as up to date that never ran.

    Raises:
        UserError: DVC or git failed.
    """
    command = [sys.executable, "-m", "dvc", "exp", "save", "--force", "--name", name, *stages]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode:
        raise UserError(f"dvc exp save failed in {checkout}: {done.stderr.strip()}")
    for reference in _experiment_refs(checkout, name):
        git(checkout, "push", "--quiet", "origin", f"+{reference}:{reference}")


def _experiment_refs(folder: Path, name: str) -> list[str]:
    """Full names of DVC's references refs/exps/XX/YYYY/NAME, one for each commit that has such an experiment."""
    names = git(folder, "for-each-ref", "--format=%(refname)", "refs/exps").decode().split()
    return [full for full in names if full.split("/")[4:] == [name]]


def _refuse_other(folder: Path, fingerprint: str) -> None:
    """Keep an unfinished run from being taken up with other code or parameters."""
    known = folder / FINGERPRINT
    if known.is_file() and known.read_text() != fingerprint:
        raise UserError(
            f"{folder} holds an unfinished run with other code or parameters. "
            f"Choose another --name, or delete that folder."
        )


def _lend_untracked(root: Path, checkout: Path) -> None:
    """Make untracked files of the user's available; small ones as copies, since stages may rewrite them (dvc.lock)."""
    for path in filter(None, git(root, "ls-files", "--others", "--exclude-standard", "-z").decode().split("\0")):
        source, target = root / path, checkout / path
        if target.exists():
            continue  # data, linked already
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file() and source.stat().st_size < COPY_BELOW:
            shutil.copy2(source, target)
        else:
            target.symlink_to(source)


def _link_data(root: Path, checkout: Path, parameters: dict[str, Any]) -> None:
    """Link local data that parameters name: inside `root` at the same place, outside by full path.

    Linked, not copied: a failed run that is started again has to see what the user mended in its data.
    """
    for section, key in DATA_KEYS:
        value = (parameters.get(section) or {}).get(key)
        if not isinstance(value, str) or not value or not (root / value).exists():
            continue  # nothing of the user's own, or an identifier on a hub; the stage says what is missing
        source = (root / value).resolve()
        if not source.is_relative_to(root.resolve()):
            parameters[section][key] = str(source)
        elif not (checkout / value).exists():
            (checkout / value).parent.mkdir(parents=True, exist_ok=True)
            (checkout / value).symlink_to(source)
