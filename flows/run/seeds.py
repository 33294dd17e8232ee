"""Runs over several seeds: one experiment per seed, NAME-seed-0, NAME-seed-1, ..., one after the other.

A seed whose experiment exists is not run again, so the same command continues where an earlier one stopped.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flows.run.changes import DEFAULT, Changes, Resolved
from flows.run.workspace import automatic_name, is_stored, plan
from rlhf_core.common.errors import UserError
from tasks.params.explain import shorten

SEED = "run.seed"
EXAMPLE = "Write whole numbers from 0 on, separated by commas: --seeds 0,1,2"


@dataclass(frozen=True)
class SeedRun:
    """The run of one seed: its experiment's name, its parameters, and whether the experiment exists."""

    seed: int
    name: str
    resolved: Resolved
    is_stored: bool


@dataclass(frozen=True)
class SeedPlan:
    """The runs of all seeds, and the command that continues them."""

    runs: tuple[SeedRun, ...]
    command: str


def read_seeds(text: str) -> list[int]:
    """Parse the seeds of a command line: `0,1,2`.

    Raises:
        UserError: one of them is not a whole number of at least 0, or is named twice.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit()):
            raise UserError(f"--seeds {shorten(text)}: {shorten(part)!r} is not a seed. {EXAMPLE}")
    seeds = [int(part) for part in parts]
    _require_distinct(seeds)
    return seeds


def require_seeds(seeds: Sequence[int], changes: Changes, only: str | None) -> None:
    """Check seeds against the rest of the request.

    Raises:
        UserError: a seed is negative or named twice; the seed is set elsewhere too; or only some stages are chosen, so
            that nothing would be compared.
    """
    _require_distinct(seeds)
    if SEED in changes.overrides:
        raise UserError(f"Both --seeds and {SEED} choose the seed. Leave one of them out.")
    if only:
        raise UserError("--seeds compares finished runs, so it needs all stages. Leave out --only.")


def _require_distinct(seeds: Sequence[int]) -> None:
    for place, seed in enumerate(seeds):
        if seed < 0:
            raise UserError(f"Seed {seed} is negative. {EXAMPLE}")
        if seed in seeds[:place]:
            raise UserError(f"Seed {seed} is named twice; its run would be counted twice. Name each seed once.")


def plan_seeds(
    root: Path,
    changes: Changes,
    seeds: Sequence[int],
    name: str | None,
    only: str | None = None,
    resolve: Callable[[Changes], Resolved] | None = None,
) -> SeedPlan:
    """Return the run of each seed, before anything is made.

    Raises:
        UserError: see `require_seeds`; the parameters or the name are wrong; or an experiment or an unfinished run of a
            seed has other parameters.
    """
    require_seeds(seeds, changes, only)
    resolve = resolve or (lambda wanted: wanted.resolve(root))
    group = name or automatic_name(root, resolve(changes))
    runs = []
    for seed in seeds:
        own = resolve(replace(changes, overrides={**changes.overrides, SEED: seed}))
        title = f"{group}-seed-{seed}"
        stored = is_stored(root, title, own)
        if not stored:
            plan(root, own, title)
        runs.append(SeedRun(seed, title, own, stored))
    return SeedPlan(tuple(runs), _command(changes, seeds, group))


def _command(changes: Changes, seeds: Sequence[int], group: str) -> str:
    """Return the command that runs these seeds. It names the group, since an automatic name depends on the code."""
    words = ["rlhf", "run", "--seeds", ",".join(map(str, seeds)), "--name", group]
    if changes.profile != DEFAULT:
        words += ["--profile", changes.profile]
    for key, value in changes.overrides.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)
