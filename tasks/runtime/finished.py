"""Finished outputs that DVC may not have recorded yet. They are kept in .resume/KEY until dvc.lock contains them.

DVC writes dvc.lock only after a stage has ended, and deletes a stage's outputs before it starts the stage again. A run
killed in between would have to train again from step 0. A stage therefore writes its outputs here and hard-links them
to their paths:

    .resume/KEY/out/PATH ... -> finished.json (last, atomically) -> links at PATH -> dvc.lock -> KEY is deleted
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.common.errors import UserError
from tasks.files.paths import MANIFEST
from tasks.runtime.hold import hold

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

PathLike = str | Path
RESUME = Path(".resume")
MARKER = "finished.json"


def require_resume_folder(root: Path = Path()) -> None:
    """Raise UserError if .resume exists but is not a folder."""
    path = root / RESUME
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} links to a folder that does not exist. Create that folder, or delete the link.")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, but stages need a folder of that name for their state. Rename the file.")


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Create `folder` and lock it for this process, so that no other process works in it or deletes it.

    Raises:
        UserError: another process holds the lock.
    """
    handle = hold(folder)
    if handle is None:
        raise UserError(f"another process runs the same stage in {folder.resolve()}. Wait for it, or stop it.")
    try:
        yield
    finally:
        os.close(handle)


def mark_finished(folder: Path, stage: str, outputs: Sequence[str]) -> None:
    """Mark the files under `folder`/out as the complete output of `stage`, and delete the training state.

    Without this mark, files may be incomplete, for example after a kill or on a full disk.
    """
    files = _sizes(folder)
    for name in files:
        _flush(folder / "out" / name)
    partial = folder / f"{MARKER}.partial"
    partial.write_text(json.dumps({"stage": stage, "outputs": list(outputs), "files": files}), encoding="utf-8")
    _flush(partial)
    partial.rename(folder / MARKER)
    shutil.rmtree(folder / "state", ignore_errors=True)


def is_finished(folder: Path) -> bool:
    """Return whether `folder` contains outputs that are marked as finished."""
    return (folder / MARKER).is_file()


def finished_outputs(folder: Path) -> list[str] | None:
    """Return the paths of the finished outputs in `folder`, None if they are not marked or incomplete."""
    marker = _read_marker(folder)
    return None if marker is None or marker["files"] != _sizes(folder) else marker["outputs"]


def place(folder: Path, outputs: Sequence[str]) -> None:
    """Put the outputs at their paths and replace each as a whole. Use hard links if the file system supports them."""
    new, old = folder / "new", folder / "replaced"
    for path in outputs:
        for left in (new, old):  # left by a kill
            _delete(left)
        source, final = folder / "out" / path, Path(path)
        if source.is_dir():
            shutil.copytree(source, new, copy_function=_link)
        else:
            _link(source, new)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.is_dir():  # a file is replaced by the rename itself
            final.rename(old)
        new.rename(final)
        for left in (new, old):  # renaming a file to another link of itself leaves both
            _delete(left)


def empty(folder: Path) -> None:
    """Delete the contents of `folder`, the marker last. Without it, a stage would write into files linked by DVC."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MARKER):
        _delete(path)


def any_finished(root: Path = Path()) -> bool:
    """Return whether any folder contains finished outputs; a cheap check before opening the DVC repository."""
    return any((root / RESUME).glob(f"*/{MARKER}"))


def sweep(repo: "Repo", but: Path | None = None) -> None:
    """Delete finished outputs that the dvc.lock of a dvc.repo.Repo holds, and those whose stage is gone.

    Args:
        repo: A dvc.repo.Repo.
        but: A folder to keep. Folders locked by a live process are kept too.
    """
    root = Path(repo.root_dir) / RESUME
    for marker in sorted(root.glob(f"*/{MARKER}")):
        folder = marker.parent
        if folder.resolve() == but or (handle := hold(folder)) is None:
            continue
        try:
            if is_recorded(folder, repo):
                shutil.rmtree(folder)
        finally:
            os.close(handle)


def sweep_checkout(root: Path) -> None:
    """Call `sweep` for the checkout `root`."""
    if any_finished(root):
        from dvc.repo import Repo

        with Repo(str(root)) as repo:
            sweep(repo)


def sweep_superseded(stage: str, key: Path) -> None:
    """Delete finished outputs of `stage` that have other inputs or parameters than those of the folder `key`."""
    for marker in sorted(key.parent.glob(f"*/{MARKER}")):
        found = _read_marker(marker.parent)
        if marker.parent != key and found is not None and found["stage"] == stage:
            handle = hold(marker.parent)
            if handle is not None:
                shutil.rmtree(marker.parent)
                os.close(handle)


def is_recorded(folder: Path, repo: "Repo") -> bool:
    """Whether dvc.lock and DVC's cache hold the finished outputs of `folder`, or dvc.yaml no longer has their stage.

    Every output folder has a manifest with the stage's key in it, so its digest identifies the stage that made it.
    """
    from dvc.stage.exceptions import StageNotFound

    marker = _read_marker(folder)
    if marker is None:
        return False
    try:
        stage = repo.stage.load_one(path=str(Path(repo.root_dir) / "dvc.yaml"), name=marker["stage"])
    except StageNotFound:
        return True
    kept = {str(out.def_path): out for out in stage.outs}
    return all(path in kept and _holds(kept[path], folder / "out" / path) for path in marker["outputs"])


def _holds(out: "Output", path: Path) -> bool:
    """Whether a DVC output, as dvc.lock has it, is the file or folder at `path`."""
    stored = out.get_obj() if out.hash_info else None
    if stored is None:
        return False
    if path.is_file():
        return bool(out.hash_info.value == _md5(path) and out.cache.exists(out.hash_info.value))
    manifest = path / MANIFEST
    found = {name: digest.value for name, _, digest in stored} if out.hash_info.isdir else {}
    return manifest.is_file() and found.get((manifest.name,)) == _md5(manifest)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _read_marker(folder: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / MARKER).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return None


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file under `folder`/out."""
    out = folder / "out"
    return {str(path.relative_to(out)): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()}


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _link(source: PathLike, target: PathLike) -> PathLike:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copy2(source, target)
    return target


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
