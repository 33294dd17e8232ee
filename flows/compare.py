"""`rlhf compare`: finished runs side by side; which policy is best, and which parameters differed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from flows.lineage import KIND, number_text, rate_text
from rlhf_core.errors import UserError
from tasks import tracking

RATE = "win_rate_vs_sft"
BEFORE_POLICIES = ("run.", "model.", "prepare.", "base.", "sft.")  # what an SFT model depends on
NOT_RESULTS = frozenset({"run.parallel"})  # bears on the time a run takes, not on what comes out


@dataclass(frozen=True)
class Run:
    """A finished flow run as MLflow holds it: `metrics` and `params` by dotted name."""

    name: str
    began: str
    lock: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]

    def rates(self) -> dict[str, float]:
        """Win rates against SFT by policy, the highest first."""
        found = {
            key.split(".")[1]: value
            for key, value in self.metrics.items()
            if key.startswith("policies.") and key.endswith(f".{RATE}")
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def best(self) -> tuple[str, float] | None:
        """The policy with the highest win rate against SFT, and that rate; None where no policy was judged."""
        return next(iter(self.rates().items()), None)


def compare_runs(out: Console) -> None:
    """Print one line for each distinct result, best first, then the parameters in which they differ.

    Raises:
        UserError: no run has finished yet.
    """
    runs = distinct(finished_runs())
    if not runs:
        raise UserError("No finished run holds judged policies. Make one with: rlhf run")
    out.print(_results(runs))
    differing = differences(runs)
    if differing:
        out.print(_parameters(runs, differing))
        if any(key.startswith(BEFORE_POLICIES) for key in differing):
            out.print("The runs have SFT models of their own: a win rate says how far a policy is above its own.")
    elif len(runs) > 1:
        out.print("All ran with the same parameters; code or data differed.")
    name, (policy, _) = runs[0].name, runs[0].best() or ("", 0.0)
    out.print(f"Best: {policy} of {name}. In brackets the 95 % interval. Curves: rlhf up")


def finished_runs() -> list[Run]:
    """Parent runs of finished flow runs, the latest first."""
    from datetime import datetime

    client = tracking.client()
    found = client.search_runs(
        [tracking.experiment_id(client)],
        filter_string=f"tags.kind = '{KIND}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
    )
    return [
        Run(
            name=str(run.info.run_name),
            began=datetime.fromtimestamp(run.info.start_time / 1000).strftime("%Y-%m-%d %H:%M"),
            lock=run.data.tags.get("dvc_lock_sha256", run.info.run_id),
            params=run.data.params,
            metrics=run.data.metrics,
        )
        for run in found
    ]


def distinct(runs: Sequence[Run]) -> list[Run]:
    """Return runs with judged policies, best first; of runs with the same dvc.lock only the first given."""
    by_lock: dict[str, Run] = {}
    for run in runs:
        if run.best() is not None:
            by_lock.setdefault(run.lock, run)
    return sorted(by_lock.values(), key=lambda run: -(run.best() or ("", 0.0))[1])


def differences(runs: Sequence[Run]) -> list[str]:
    """Return the parameters that are not the same in all runs."""
    keys = sorted({key for run in runs for key in run.params} - NOT_RESULTS)
    return [key for key in keys if len({run.params.get(key) for run in runs}) > 1]


def _results(runs: Sequence[Run]) -> Table:
    """A block of lines for each run, one for each of its policies, so that any number of them fits a terminal."""
    table = Table(
        Column("run", overflow="fold"),
        "policy",
        Column("wins against SFT", no_wrap=True),
        "KL",
        "length",
        "reward model",
    )
    for run in runs:
        heading, style = f"{run.name}\n{run.began}", "bold green"
        accuracy = number_text(run.metrics.get("reward_model.accuracy"))
        for policy, rate in run.rates().items():
            kl, length, low, high = (
                run.metrics.get(f"policies.{policy}.{key}")
                for key in ("kl", "mean_length", f"{RATE}.low", f"{RATE}.high")
            )
            wins = Text(rate_text({"value": rate, "low": low, "high": high}), style)
            table.add_row(heading, policy, wins, number_text(kl), number_text(length), accuracy)
            heading = accuracy = style = ""  # said once, beside the best policy
        table.add_section()
    return table


def _parameters(runs: Sequence[Run], keys: Sequence[str]) -> Table:
    table = Table("parameter", *(run.name for run in runs), title="What differed")
    for key in keys:
        table.add_row(key, *(run.params.get(key, "–") for run in runs))
    return table
