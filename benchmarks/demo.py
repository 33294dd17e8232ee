"""The demo stage by stage: how long each stage took, and how much of that was imports and bookkeeping.

    make bench-demo                                      # after `make demo` in a new clone
    python -m benchmarks.demo --label after

Reads the MLflow runs of the last finished run in which every stage ran. A stage's time is from when its inputs were
ready and one of run.parallel places was free until its MLflow run ended; its work is its MLflow run. The difference is
the start of DVC, imports, hashing and recording. Results go to benchmarks/results/demo.json under the label.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.stored import RESULTS, ROOT, add

OUT = RESULTS / "demo.json"
MS = 1000


@dataclass(frozen=True)
class Ran:
    """An MLflow run of a stage: seconds from the start of the flow."""

    stage: str
    start: float
    end: float


def stage_times(
    runs: Sequence[Ran], upstream: Mapping[str, Sequence[str]], parallel: int
) -> dict[str, dict[str, float]]:
    """Return wall time, work and the difference (`around`) of each stage, in seconds, in the order of their starts."""
    ordered = sorted(runs, key=lambda run: run.start)
    ends = {run.stage: run.end for run in ordered}
    found = {}
    for place, run in enumerate(ordered):
        ready = max((ends[name] for name in upstream.get(run.stage, ()) if name in ends), default=0.0)
        earlier = sorted(other.end for other in ordered[:place])
        free = earlier[-parallel] if len(earlier) >= parallel else 0.0
        begin = max(ready, free)
        found[run.stage] = {"wall": run.end - begin, "work": run.end - run.start, "around": run.start - begin}
    return found


def last_complete(stages: Sequence[str]) -> tuple[list[Ran], float, int] | None:
    """Return the stages of the last finished flow in which all `stages` ran, its seconds, and run.parallel."""
    from tasks.runtime.tracking import EXPERIMENT, PIPELINE, client

    mlflow = client()
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    flows = mlflow.search_runs(
        [experiment.experiment_id],
        filter_string=f"tags.kind = '{PIPELINE}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
    )
    for flow in flows:
        began = flow.info.start_time
        children = mlflow.search_runs(
            [experiment.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{flow.info.run_id}'"
        )
        ran = [
            Ran(str(run.info.run_name), (run.info.start_time - began) / MS, (run.info.end_time - began) / MS)
            for run in children
            if run.info.end_time is not None
        ]
        if {run.stage for run in ran} >= set(stages):
            return ran, (flow.info.end_time - began) / MS, int(flow.data.params["run.parallel"])
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Store the times of the last complete run; return 1 if there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", default="after", help="the name of the column; `before` is stored")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)

    from flows.run.graph import read_graph

    graph = {stage.name: list(stage.upstream) for stage in read_graph(ROOT)}
    # `params` writes a file and has no MLflow run.
    found = last_complete([name for name in graph if name != "params"])
    if found is None:
        print("error: no finished run in which every stage ran. Run `make demo` in a new clone.", file=sys.stderr)
        return 1
    runs, seconds, parallel = found
    stages = stage_times(runs, graph, parallel)
    result: dict[str, Any] = {"flow": seconds, "parallel": parallel, "stages": stages}
    add(given.out, given.label, result)
    around = sum(times["around"] for times in stages.values())
    print(f"flow {seconds:.0f} s, of it {around:.0f} s of imports and bookkeeping in {len(stages)} stages")
    if given.out == OUT:
        page.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
