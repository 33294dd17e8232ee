"""The graph of stages, read from DVC: dvc.yaml is the only place that knows it."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from rlhf_core.common.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml: its name (`online@ppo` for a member of a matrix) and the stages it needs directly.

    What those need in turn is left out: DVC also names every earlier stage whose output this one reads, and a graph
    with all those edges cannot be read.
    """

    name: str
    upstream: tuple[str, ...]


def read_graph(root: Path) -> list[Stage]:
    """Return the stages of `root`/dvc.yaml, each after all it needs, in the order they are written in otherwise.

    Raises:
        UserError: dvc.yaml or params.yaml cannot be read; the message is DVC's own.
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


def select(stages: list[Stage], only: str | None) -> list[Stage]:
    """Return the stages that `only` names, with everything they need; all stages where it is None.

    The name of a matrix means all its members: `online` is every `online@NAME`. What they need is included, since a
    stage on outdated inputs would be worthless; what is up to date costs no time.

    Raises:
        UserError: no stage has this name.
    """
    if only is None:
        return stages
    wanted = {stage.name for stage in stages if stage.name == only or stage.name.split("@")[0] == only}
    if not wanted:
        names = [stage.name for stage in stages]
        near = difflib.get_close_matches(only, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Name one of these."
        raise UserError(f"There is no stage {only!r} in dvc.yaml; it has {', '.join(names)}. {hint}")
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.upstream)
    return [stage for stage in stages if stage.name in wanted]


def _in_order(upstream: dict[str, tuple[str, ...]]) -> list[Stage]:
    """Sort topologically, keeping the written order among stages that are free."""
    ordered: dict[str, Stage] = {}
    while len(ordered) < len(upstream):
        free = next(
            name for name, needs in upstream.items() if name not in ordered and all(n in ordered for n in needs)
        )
        ordered[free] = Stage(free, upstream[free])
    return list(ordered.values())
