"""docs/names.md: the tables of peers' names (tasks/params/peers.py) as a page; `make parameters` writes it."""

from collections.abc import Iterator

from tasks.params.peers import METRICS, PARAMETERS, SIMILAR, Metric, Name

HEAD = """\
# Names of TRL, verl and OpenRLHF

Made by `python -m tools.make_parameters` from `tasks/params/peers.py`. A parameter under a peer's name is refused, and
the message says ours. METHOD stands for a method, such as grpo. A key of a loop is also a key of each of its methods
and, where it exists there, of `base`, `sft` and `reward`. TRL 1.16 includes the TrainingArguments of
transformers; its PPO is that of 1.12, the last version with it. verl is 0.9, OpenRLHF 0.8 (0.11 has dotted
names); some names are older, where users still write them.

## Parameters
| library | theirs | ours | remark |
|---|---|---|---|
"""
METRIC_HEAD = """
## Metrics
MLflow also shows these metrics of ours under the peers' names, as `trl/NAME` and `verl/NAME`: search for the name in
the metrics of a run. They mean the same, in the same unit. `trl/eval_NAME` is measured on the development split.

| library | theirs | ours | methods | remark |
|---|---|---|---|---|
"""
SIMILAR_HEAD = """
These look alike but are other numbers, so MLflow shows only ours.

| library | theirs | ours | methods | difference |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, *map(_parameter, PARAMETERS), METRIC_HEAD, *_metrics(METRICS), SIMILAR_HEAD, *_metrics(SIMILAR)]
    return "".join(parts)


def _parameter(row: Name) -> str:
    ours = f"`{row.ours}`" if row.ours else "none"
    return f"| {row.library} | `{row.theirs}` | {ours} | {row.note} |\n"


def _metrics(rows: list[Metric]) -> Iterator[str]:
    for row in rows:
        yield f"| {row.library} | `{row.theirs}` | `{row.ours}` | {', '.join(row.methods)} | {row.note} |\n"
