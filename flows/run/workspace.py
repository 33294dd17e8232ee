"""The checkout in which the stages of a run work: the user's own, or a clone if parameters are changed.

A run with changed parameters never edits the user's params.yaml. It works in `runs/NAME/checkout`, a local clone that
shares DVC's cache, and becomes the DVC experiment NAME of the user's checkout:

    clone + the user's edits + the changed params.yaml -> stages -> `dvc exp save` -> push one ref -> delete

A failed run keeps its clone, so that the same command resumes it.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.run.changes import Resolved
from flows.run.experiment import experiment_refs, save_experiment
from flows.run.locks import CHECKOUT, FAILED, IN_PLACE, RUNS, only_one, require_idle, require_no_dvc
from flows.run.untracked import Untracked, digest, find_untracked, lend_untracked, to_store
from flows.run.yaml_edit import update_yaml
from rlhf_core.common.errors import UserError
from rlhf_core.scoring.place import FOLDER
from tasks.files import paths
from tasks.params.load import effective, validate
from tasks.params.plain_yaml import load_yaml
from tasks.runtime.finished import require_resume_folder, sweep_checkout
from tasks.runtime.git import git, head

FINGERPRINT = "fingerprint"  # file of an unfinished run: hash of the code and parameters that it started with
STORED = "stored.json"  # beside it: the files without a commit that the experiment stores
DATA_KEYS = (("prepare", "path"), ("model", "path"))  # parameters that may name the user's own files


@dataclass(frozen=True)
class Workspace:
    """The folder in which stages run (`checkout`), the user's checkout (`root`) and the experiment (None: in place).

    `stored` lists the files without a commit that the experiment stores; `messages` are for the user.
    """

    root: Path
    checkout: Path
    name: str | None = None
    stored: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()

    def finish(self, stages: Sequence[str]) -> Path:
        """Store the results of the stages and return the folder of the rendered report.

        A run in a clone becomes an experiment of the user's checkout, and the clone is deleted.
        """
        if self.name is None:
            return self.checkout / paths.REPORTS
        folder = self.checkout.parent
        save_experiment(self.checkout, self.name, stages, to_store(self.root, self.checkout, self.stored))
        for page in (paths.PAGE, paths.MARKDOWN_PAGE, paths.REPORT):
            if (self.checkout / page).is_file():
                shutil.copyfile(self.checkout / page, folder / page.name)
        shutil.rmtree(self.checkout)
        return folder


@dataclass(frozen=True)
class Plan:
    """Where a run will work: in place if `name` is None, else in `folder`/checkout."""

    wanted: Resolved
    folder: Path  # locked while the run is running
    name: str | None = None
    fingerprint: str = ""
    edits: bytes = b""
    untracked: Untracked = field(default_factory=Untracked)

    @property
    def title(self) -> str:
        """The name of the run in messages."""
        return f"The run {self.name}" if self.name else f"A run in {self.folder.parent.parent}"


def plan(root: Path, wanted: Resolved, name: str | None = None) -> Plan:
    """Return where a run with the parameters `wanted` will work, before anything is made.

    Raises:
        UserError: a bad name, a name that is taken, nothing committed yet, the folder contains another run, or the same
            run or a `dvc` command is at work there.
    """
    if name is not None:
        require_free_name(root, name)
    if not wanted.is_changed and name is None:
        chosen = Plan(wanted, root / IN_PLACE)
        require_resume_folder(root)
    else:
        fingerprint, edits, untracked = _code(root, wanted)
        experiment = name or _name_of(wanted, fingerprint)
        chosen = Plan(wanted, root / RUNS / experiment, experiment, fingerprint, edits, untracked)
    require_idle(chosen.folder, chosen.title)
    require_no_dvc(chosen.folder / CHECKOUT if chosen.name else root)
    _refuse_other(chosen.folder, chosen.fingerprint)
    return chosen


def automatic_name(root: Path, wanted: Resolved) -> str:
    """Return the name of a run without one: its changes, and the beginning of its fingerprint."""
    return _name_of(wanted, _code(root, wanted)[0])


def _name_of(wanted: Resolved, fingerprint: str) -> str:
    return f"{wanted.changes.label()}_{fingerprint[:6]}"


def _code(root: Path, wanted: Resolved) -> tuple[str, bytes, Untracked]:
    """Return the fingerprint of a run's code and parameters, the edits since the commit, and the untracked files."""
    commit = head(root)
    edits = git(root, "diff", "HEAD", "--binary")
    untracked = find_untracked(root, [value for _, _, value, _ in _local_data(root, wanted.raw)])
    parts = [commit.encode(), edits, digest(root, untracked), repr(wanted.params).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest(), edits, untracked


@contextmanager
def open_workspace(root: Path, wanted: Resolved, name: str | None = None) -> Iterator[Workspace]:
    """Yield the workspace of a run: `root` if its parameters are unchanged, else a new clone.

    Raises:
        UserError: see `plan`.
    """
    chosen = plan(root, wanted, name)
    with only_one(chosen.folder, chosen.title):
        if chosen.name is None:
            sweep_checkout(root)
            yield Workspace(root, root)
            sweep_checkout(root)
            return
        folder, checkout = chosen.folder, chosen.folder / CHECKOUT
        _refuse_other(folder, chosen.fingerprint)  # again, now that nobody else can change the folder
        (folder / FAILED).unlink(missing_ok=True)
        messages: list[str] = []
        if not (folder / FINGERPRINT).is_file():
            shutil.rmtree(checkout, ignore_errors=True)  # left by an interrupted clone
            make_clone(root, checkout, chosen.edits)
            _link_data(root, checkout, chosen.wanted.raw)
            _link_models(root, checkout)
            lend_untracked(root, checkout, chosen.untracked)
            update_yaml(checkout / "params.yaml", _as_stored(root, chosen.wanted.raw))
            (folder / STORED).write_text(json.dumps(chosen.untracked.stored))
            (folder / FINGERPRINT).write_text(chosen.fingerprint)
            messages = chosen.untracked.messages()
        stored = tuple(json.loads((folder / STORED).read_text()))
        try:
            yield Workspace(root, checkout, chosen.name, stored, tuple(messages))
        except Exception as error:
            (folder / FAILED).write_text(f"{error}\n", encoding="utf-8")
            raise
        (folder / FINGERPRINT).unlink()
        (folder / STORED).unlink()


def require_free_name(root: Path, name: str) -> None:
    """Raise UserError if `name` is not a valid name for an experiment or is taken."""
    _require_name(name)
    if experiment_refs(root, name):
        raise UserError(
            f"The experiment {name} already exists.\nChoose another --name, or delete it: dvc exp remove {name}"
        )


def is_stored(root: Path, name: str, wanted: Resolved) -> bool:
    """Return whether the experiment `name` exists, with the parameters `wanted`.

    Raises:
        UserError: the name is not valid, or the experiment has other parameters.
    """
    _require_name(name)
    if not (references := experiment_refs(root, name)):
        return False
    expected = effective(validate(_as_stored(root, wanted.raw)))
    for reference in references:
        raw = load_yaml(git(root, "show", f"{reference}:params.yaml").decode(), f"params.yaml of experiment {name}")
        with suppress(UserError):  # parameters of another version
            if effective(validate(raw)) == expected:
                return True
    raise UserError(
        f"The experiment {name} exists, with other parameters.\n"
        f"Choose another --name, or delete it: dvc exp remove {name}"
    )


def _require_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or ".." in name or name.endswith(".lock"):
        raise UserError(f"{name!r} is not a valid experiment name. Use letters, digits, '.', '_' and '-'.")


def make_clone(root: Path, checkout: Path, edits: bytes) -> None:
    """Clone `root` with its uncommitted `edits`, its DVC cache and its local DVC settings.

    Cache and settings are links: .dvc/config.local may contain credentials, which must not be copied.
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
    if linked.resolve() != cache.resolve():  # a relative path, such as the default, points elsewhere in the clone
        _link_cache(cache, linked)


def _link_cache(cache: Path, linked: Path) -> None:
    """Link the clone's cache folder `linked` to `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    linked.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        linked.rmdir()  # an empty folder created by DVC
    try:
        linked.symlink_to(cache)
    except FileExistsError:
        raise UserError(
            f"DVC's cache.dir is a relative path; from the run's clone it points to {linked}, which is not the cache.\n"
            f"Set the absolute path: dvc cache dir --local {cache}"
        ) from None


def _refuse_other(folder: Path, fingerprint: str) -> None:
    """Raise UserError if the folder contains an unfinished run with other code or parameters."""
    known = folder / FINGERPRINT
    if known.is_file() and known.read_text() != fingerprint:
        raise UserError(
            f"{folder} contains an unfinished run with other code or parameters.\n"
            f"Choose another --name, or delete the run: rlhf runs --remove {folder.name}"
        )


def _link_data(root: Path, checkout: Path, parameters: Mapping[str, Any]) -> None:
    """Link local data inside `root` that parameters name.

    The data is not copied, so that a failed run sees the user's corrections when it is started again.
    """
    for _, _, value, source in _local_data(root, parameters):
        if source.is_relative_to(root.resolve()) and not (checkout / value).exists():
            (checkout / value).parent.mkdir(parents=True, exist_ok=True)
            (checkout / value).symlink_to(source)


def _link_models(root: Path, checkout: Path) -> None:
    """Link the files of inputs/rewards, which git ignores. DVC reads linked files, but no linked folder."""
    for source in (root / FOLDER).rglob("*"):
        target = checkout / source.relative_to(root)
        if (source.is_file() or source.is_symlink()) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)


def _as_stored(root: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters as a clone needs them: paths of data outside `root` are absolute."""
    stored = deepcopy(dict(parameters))
    for section, key, _, source in _local_data(root, parameters):
        if not source.is_relative_to(root.resolve()):
            stored[section][key] = str(source)
    return stored


def _local_data(root: Path, parameters: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Path]]:
    """Yield section, key, value and resolved path of local data. The stage reports missing files."""
    for section, key in DATA_KEYS:
        value = (parameters.get(section) or {}).get(key)
        if isinstance(value, str) and value and (root / value).exists():
            yield section, key, value, (root / value).resolve()
