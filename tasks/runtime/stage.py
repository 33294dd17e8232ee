"""What every stage does around its work: read parameters and inputs, resume, log, and write all outputs or none."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.common.errors import UserError
from rlhf_core.loops.common.resume import ResumeStore
from rlhf_core.loops.common.run import Run
from tasks.files.paths import MANIFEST
from tasks.params.load import load_params
from tasks.params.schema import Params
from tasks.runtime.finished import (
    RESUME,
    any_finished,
    empty,
    finished_outputs,
    holding,
    is_finished,
    is_recorded,
    mark_finished,
    place,
    require_resume_folder,
    sweep,
    sweep_superseded,
)
from tasks.runtime.key import dependencies, portable, stage_key
from tasks.runtime.launcher import LAUNCHER, Launcher
from tasks.runtime.out_of_memory import is_out_of_memory, out_of_memory
from tasks.runtime.progress import transformers_progress
from tasks.runtime.tracking import StageRun
from tasks.runtime.training_progress import TrainingProgress

if TYPE_CHECKING:
    from dvc.repo import Repo

STOPPED = 130  # exit code after Ctrl-C
LEAST_FREE = 256 << 20  # bytes: the outputs of the smallest run, including its MLflow store
FULL_DISK = 16 << 20  # bytes


class Restored(Exception):  # noqa: N818 - no error: it ends a stage that has nothing left to do
    """An earlier start of the stage made the outputs, and they are in place again."""


@dataclass
class Stage:
    """One execution of one stage of dvc.yaml."""

    name: str
    params: Params
    sections: dict[str, Any]  # the parameters this stage reads, as plain values
    inputs: dict[str, str]  # dependency -> DVC digest
    key: str
    tracker: StageRun
    written: list[tuple[Path, Path]] = field(default_factory=list)
    stream: str = ""  # name of its random streams, if it differs from the stage's name

    @property
    def folder(self) -> Path:
        """Git-ignored working folder, named by the stage's key."""
        return RESUME / self.key

    def out(self, path: str | Path) -> Path:
        """Return the folder to write the output `path` into, the same at each call. On success it moves to `path`."""
        working = self.folder / "out" / path
        working.mkdir(parents=True, exist_ok=True)
        if (working, Path(path)) not in self.written:
            self.written.append((working, Path(path)))
        return working

    def out_file(self, path: str | Path) -> Path:
        """The same for an output that is a single file. It has no manifest."""
        working = self.folder / "out" / path
        working.parent.mkdir(parents=True, exist_ok=True)
        self.written.append((working, Path(path)))
        return working

    def training_run(self, name: str = "", snapshot: Callable[[int], None] | None = None) -> Run:
        """Return seed, resume store and reporting for a loop. `name` distinguishes several trainings of a stage."""
        path = f"/{name}" if name else ""
        progress = TrainingProgress(self.tracker, f"{name}/" if name else "", self.name + path)
        store = ResumeStore(self.folder / "state" / (name or "main"))
        return Run(
            seed=self.params.run.seed,
            name=(self.stream or self.name) + path,
            resume=store,
            report=progress,
            **({} if snapshot is None else {"snapshot": snapshot}),
        )

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics to MLflow in one call."""
        self.tracker.log_metrics(metrics, step)

    def finish(self) -> None:
        """Write each output's manifest and put the outputs in place. `folder` keeps a copy until DVC has them."""
        manifest = {
            "stage": self.name,
            "key": self.key,
            "params": {key: portable(value) for key, value in self.sections.items()},
            "inputs": {portable(path): digest for path, digest in self.inputs.items()},
        }
        for working, _ in self.written:
            if working.is_dir():
                write_json(working / MANIFEST, manifest)
        outputs = [str(final) for _, final in self.written]
        mark_finished(self.folder, self.name, outputs)
        place(self.folder, outputs)


@contextmanager
def open_stage(name: str, stream: str = "") -> Iterator[Stage]:
    """Run one stage of dvc.yaml. On success its outputs are moved into place; otherwise nothing is left behind.

    `stream` names the stage's random streams, if it differs from the stage's name.

    Raises:
        UserError: an error that the user can fix, such as a lack of memory or disk space.
        Restored: an earlier start of this stage finished, but was killed before DVC recorded its outputs.
    """
    from dvc.repo import Repo

    params = load_params()
    require_resume_folder()
    if (free := shutil.disk_usage(".").free) < LEAST_FREE:
        raise UserError(
            f"The disk of {Path.cwd()} has {free >> 20} MiB free; a stage needs at least {LEAST_FREE >> 20}. Free some."
        )
    with ExitStack() as held:
        with Repo() as repo:
            inputs, sections = dependencies(repo, name)
            key = stage_key(name, sections, inputs)
            tracker = StageRun(name, key, RESUME / key)
            stage = Stage(name, params, sections, inputs, key, tracker, stream=stream)
            held.enter_context(holding(stage.folder))
            if any_finished():
                _restore(stage, repo)
        with tracker:
            tracker.log_params(sections)
            tracker.log_inputs({path: digest for path, digest in inputs.items() if not path.endswith(".py")})
            try:
                yield stage
            except UserError:
                # The same parameters and inputs would fail again, so there is nothing to resume.
                shutil.rmtree(stage.folder, ignore_errors=True)
                raise
            except (MemoryError, RuntimeError) as error:
                # The resume state is kept: another program may have used the memory.
                if is_out_of_memory(error):
                    raise out_of_memory(name, params) from error
                raise
            stage.finish()


def _restore(stage: Stage, repo: "Repo") -> None:
    """Raise Restored with the outputs in place if they were finished before. Delete what DVC has recorded since."""
    sweep_superseded(stage.name, stage.folder)
    sweep(repo, but=stage.folder.resolve())
    if not is_finished(stage.folder):
        return
    outputs = finished_outputs(stage.folder)
    # Recorded, but started again by `dvc repro --force`.
    if outputs is None or is_recorded(stage.folder, repo):
        empty(stage.folder)
        return
    place(stage.folder, outputs)
    stage.tracker.restore()
    raise Restored(stage.name)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with sorted keys and a final newline."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def quiet_libraries() -> None:
    """Silence the loading messages of transformers, and show its progress like that of the stages."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_tqdm_hook(transformers_progress)
    transformers.utils.logging.set_verbosity_error()


def main(work: Callable[..., None], *arguments: str, launcher: Launcher = LAUNCHER) -> None:
    """Run a stage's `work` as a command. A user's mistake prints at most two lines and exits 1, without a traceback."""
    quiet_libraries()
    try:
        launcher.run(work, *arguments)
    except Restored as stage:
        sys.stdout.write(f"{stage}: finished earlier; its outputs are in place again\n")
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        # Erase the rest of a progress line.
        sys.stderr.write(("\r\033[K" if sys.stderr.isatty() else "") + "stopped; run the same command to continue\n")
        sys.exit(STOPPED)
    except Exception:
        # A full disk raises different errors (from the system, safetensors, SQLite), so check the disk itself.
        if shutil.disk_usage(".").free < FULL_DISK:
            sys.exit(f"error: The disk of {Path.cwd()} is full. Free some space and run the same command to continue.")
        raise
