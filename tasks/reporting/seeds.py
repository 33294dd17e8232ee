"""Figures over several seeds: runs that differ only in run.seed, with the mean of each figure and its t-interval.

The interval of one run's win rate is over prompts: it says how well that policy is known. The interval over seeds
says how well the method is known. Other runs are found in MLflow, since a run's own outputs are those of one seed.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tasks.files import declared
from tasks.reporting.comparison import column, figures
from tasks.reporting.formats import NONE, number, signed
from tasks.runtime import tracking

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

SEED = "run.seed"
NOT_RESULTS = frozenset({"run.parallel"})  # changes the duration of a run but not its results
CODE_AND_DATA = "code_and_data"  # MLflow tag of a whole run
FIGURES = ("win_rate_vs_sft", "kl", "mean_length")
CONFIDENCE = 0.95


class Finished(Protocol):
    """A finished run: its parameters and figures as MLflow has them, and its tag CODE_AND_DATA ('' if unknown)."""

    @property
    def params(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def metrics(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def code_and_data(self) -> str: ...  # noqa: D102


R = TypeVar("R", bound=Finished)


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds: its value for each seed, their mean, and its 95 % interval (None with one seed)."""

    values: Mapping[int, float]
    mean: float
    interval: tuple[float, float] | None

    def text(self, form: str = "") -> str:
        """The mean and its interval: `0.843 (0.802 to 0.881)`; `form` is a format, else three significant digits."""
        mean, *ends = (signed(value, form) if form else number(value) for value in (self.mean, *(self.interval or ())))
        return f"{mean} ({ends[0]} to {ends[1]})" if ends else mean

    def each(self, form: str = "") -> str:
        """Each seed's value: `0: 0.843, 1: 0.850`."""
        return ", ".join(
            f"{seed}: {signed(value, form) if form else number(value)}" for seed, value in self.values.items()
        )


def estimate(values: Mapping[int, float]) -> Estimate:
    """Return x̄ ± t_{0.975, n-1} s/√n over n seeds, with s² = Σ(x - x̄)²/(n - 1). Student 1908.

    It assumes that the seeds' values are independent and normal; a rate's interval may exceed [0, 1].
    """
    from scipy.stats import t

    values = dict(sorted(values.items()))
    numbers, n = list(values.values()), len(values)
    if n < 2:
        return Estimate(values, mean(numbers), None)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(numbers) / n**0.5
    return Estimate(values, mean(numbers), (mean(numbers) - half, mean(numbers) + half))


def estimates(metrics: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, Estimate]]:
    """Return FIGURES of each policy over seeds, highest mean win rate first: {"ppo": {"kl": ..., ...}, ...}.

    metrics: by seed, the figures by their names in MLflow, such as `kl/ppo`. A figure that a seed lacks is left out.
    """
    first = FIGURES[0]
    names = dict.fromkeys(
        name.removeprefix(f"{first}/")
        for each in metrics.values()
        for name in each
        if name.startswith(f"{first}/") and not name.endswith(("_low", "_high"))
    )
    found = {
        name: {
            figure: estimate({seed: each[f"{figure}/{name}"] for seed, each in metrics.items()})
            for figure in FIGURES
            if all(f"{figure}/{name}" in each for each in metrics.values())
        }
        for name in names
    }
    judged = {name: row for name, row in found.items() if first in row}
    return dict(sorted(judged.items(), key=lambda item: -item[1][first].mean))


def table(metrics: Mapping[int, Mapping[str, float]]) -> list[list[str]]:
    """Return headings, then one row per policy: each figure over seeds, and the win rate of each seed."""
    headings = ["policy", *(column(key).heading for key in FIGURES), "win rate of each seed"]
    rows = [[name, *_cells(row), row[FIGURES[0]].each(".3f")] for name, row in estimates(metrics).items()]
    return [headings, *rows]


def _cells(row: Mapping[str, Estimate]) -> list[str]:
    return [row[key].text(form_of(key)) if key in row else NONE for key in FIGURES]


def form_of(figure: str) -> str:
    """The format of a figure: three decimals for a rate, else three significant digits."""
    return ".3f" if column(figure).is_rate else ""


def same_but_seed(runs: Sequence[R]) -> list[dict[int, R]]:
    """Group runs, latest first, that have the same code, data and parameters but their seed, by seed.

    Of several runs with one seed the first counts. Runs of one seed alone and runs without CODE_AND_DATA are omitted.
    """
    groups: dict[tuple[str, frozenset[tuple[str, str]]], dict[int, R]] = {}
    for run in runs:
        if run.code_and_data and SEED in run.params:
            groups.setdefault(_likeness(run), {}).setdefault(int(run.params[SEED]), run)
    return [dict(sorted(group.items())) for group in groups.values() if len(group) > 1]


def _likeness(run: Finished) -> tuple[str, frozenset[tuple[str, str]]]:
    """What runs must share to count as seeds of one experiment."""
    return run.code_and_data, frozenset(item for item in run.params.items() if item[0] not in {SEED, *NOT_RESULTS})


def code_and_data(report: Mapping[str, Any]) -> str:
    """Return a digest of the code and the user's data that the stages of a report read; '' without a report.

    Outputs of other stages are left out: they depend on the seed.
    """
    if "sources" not in report:
        return ""
    outputs = [path for stage in declared.STAGES for path in stage.outputs]
    read = {
        (path, digest)
        for stage in report["sources"]["stages"].values()
        for path, digest in stage["inputs"].items()
        if not any(Path(path).is_relative_to(output) for output in outputs)
    }
    return hashlib.sha256(json.dumps(sorted(read)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SeedRun:
    """A run as `same_but_seed` needs it."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]
    code_and_data: str


def metrics_by_seed(report: Mapping[str, Any]) -> dict[int, Mapping[str, float]]:
    """Return the figures of the report's run and of finished runs that differ from it only in their seed.

    The parameters of the report's run are those of its parent run in MLflow: the one of this process, or a finished one
    with the same dvc.lock. {} without other seeds.
    """
    runs = tracking.pipeline_runs()
    params = _own_params(runs)
    if params is None:
        return {}
    own = SeedRun(params, figures(report), code_and_data(report))
    others = [SeedRun(run.data.params, run.data.metrics, run.data.tags.get(CODE_AND_DATA, "")) for run in runs]
    groups = [group for group in same_but_seed([own, *others]) if own in group.values()]
    return {seed: run.metrics for group in groups for seed, run in group.items()}


def _own_params(finished: "Sequence[MlflowRun]") -> Mapping[str, str] | None:
    if parent := os.environ.get("RLHF_PARENT_RUN_ID"):
        params: Mapping[str, str] = tracking.client().get_run(parent).data.params
        return params
    lock = tracking.lock_tag(Path()).get(tracking.LOCK)
    return next((run.data.params for run in finished if lock and run.data.tags.get(tracking.LOCK) == lock), None)
