"""The graph of stages, read from dvc.yaml through DVC."""

import difflib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlhf_core.common.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml: its name (`online@ppo` for a member of a matrix) and the stages it needs directly.

    Indirect dependencies are omitted: DVC lists every earlier stage whose output this stage reads, and a graph with
    all those edges is unreadable.
    """

    name: str
    upstream: tuple[str, ...]


def read_graph(root: Path) -> list[Stage]:
    """Return the stages of `root`/dvc.yaml in topological order, otherwise in the order of the file.

    Raises:
        UserError: DVC cannot read dvc.yaml or params.yaml; the message is DVC's.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from networkx import transitive_reduction

    try:
        with Repo(str(root)) as repo:
            graph = transitive_reduction(repo.index.graph)
            upstream = {
                stage.name: tuple(sorted(needed.name for needed in graph.successors(stage)))
                for stage in repo.index.stages
                if stage.name
            }
    except DvcException as error:
        raise UserError(f"{root / 'dvc.yaml'}: {error}".strip()) from error
    return _in_order(upstream)


def graph_with(root: Path, parameters: Mapping[str, Any]) -> list[Stage]:
    """Return the stages of `root`/dvc.yaml with other parameters than those of params.yaml, as `read_graph` does."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / ".dvc").mkdir()
        (folder / ".dvc/config").write_text(f"[core]\nno_scm = true\nsite_cache_dir = {folder}\n")
        shutil.copyfile(root / "dvc.yaml", folder / "dvc.yaml")
        (folder / "params.yaml").write_text(json.dumps(parameters), encoding="utf-8")  # JSON is YAML
        return read_graph(folder)


def select(stages: list[Stage], only: str | None) -> list[Stage]:
    """Return the stages that `only` names and everything they need, or all stages if it is None.

    The name of a matrix selects all its members: `offline` is every `offline@NAME`. The stages that they need are
    included so that no input is outdated; DVC skips stages that are up to date.

    Raises:
        UserError: no stage has this name.
    """
    if only is None:
        return stages
    wanted = {stage.name for stage in stages if stage.name == only or stage.name.split("@")[0] == only}
    if not wanted:
        names = [stage.name for stage in stages]
        near = difflib.get_close_matches(only, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Choose one of these."
        raise UserError(f"dvc.yaml has no stage {only!r}. Its stages are {', '.join(names)}. {hint}")
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.upstream)
    return [stage for stage in stages if stage.name in wanted]


def _in_order(upstream: dict[str, tuple[str, ...]]) -> list[Stage]:
    """Sort topologically; among stages that are ready, keep the order of the file."""
    ordered: dict[str, Stage] = {}
    while len(ordered) < len(upstream):
        free = next(
            name for name, needs in upstream.items() if name not in ordered and all(n in ordered for n in needs)
        )
        ordered[free] = Stage(free, upstream[free])
    return list(ordered.values())
