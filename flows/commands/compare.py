"""`rlhf compare`: finished runs side by side; which policy is best, and which parameters differed.

Win rates are ranked only among runs that were judged alike: on the same test prompts, as many of them, by the same
judge. Runs that were judged differently form separate groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.commands.screen import plain_table
from flows.run.lineage import KIND
from rlhf_core.common.errors import UserError
from tasks.reporting import formats
from tasks.reporting.comparison import column
from tasks.reporting.findings import did_not_move
from tasks.runtime import tracking

RATE = "win_rate_vs_sft"
# The tags of flows.run.lineage.terms_of under which runs are comparable, and what it is called if they differ.
TERMS = {"test_prompts": "other test prompts", "prompts": "another number of prompts", "judge": "another judge"}
BEFORE_POLICIES = ("run.", "model.", "prepare.", "base.", "sft.")  # what an SFT model depends on
NOT_RESULTS = frozenset({"run.parallel"})  # affects the time of a run, not its results


@dataclass(frozen=True)
class Run:
    """A finished flow run as MLflow holds it: `metrics` (`kl/ppo`) and `params` by name; `terms` by key of TERMS."""

    name: str
    began: str
    lock: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    terms: Mapping[str, str] = field(default_factory=dict)

    def rates(self) -> dict[str, float]:
        """Win rates against SFT by policy, the highest first."""
        found = {
            key.removeprefix(f"{RATE}/"): value
            for key, value in self.metrics.items()
            if key.startswith(f"{RATE}/") and not key.endswith(("_low", "_high"))
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def claim(self) -> str:
        """The policy with the highest win rate, and whether it is shown to be better than its SFT model."""
        policy = next(iter(self.rates()))
        text = f"Highest win rate: {policy} of {self.name}"
        if did_not_move({"kl": self.metrics.get(f"kl/{policy}")}):
            return f"{text}; it did not move from its SFT model"
        low = self.metrics.get(f"{RATE}/{policy}_low")
        return f"{text}; not shown to be better than its SFT model" if low is None or low <= 0.5 else text

    def best(self) -> tuple[str, float] | None:
        """The policy with the highest win rate against SFT, and that rate; None where no policy was judged."""
        return next(iter(self.rates().items()), None)


def compare_runs(out: Console) -> None:
    """Print each group of comparable runs: one block per distinct result, best first, then what differed.

    Raises:
        UserError: no run has finished yet.
    """
    groups = comparable(distinct(finished_runs()))
    if not groups:
        raise UserError("No finished run holds judged policies. Make one with: rlhf run")
    number = 1
    for index, runs in enumerate(groups):
        if index:
            out.print()
        out.print(_heading(runs[0], groups[0][0] if index else None), soft_wrap=True)
        _print_group(out, {str(number + place): run for place, run in enumerate(runs)})
        number += len(runs)
    out.print("In brackets the 95 % interval. Curves: rlhf up", soft_wrap=True)


def _heading(run: Run, first: Run | None) -> Text:
    """How a group was judged; of a later group also why it is not ranked with the first."""
    if not run.terms:
        text = "Not ranked, because the judge and test prompts are not recorded (made by an earlier version)."
    else:
        prompts, test, judge = (run.terms[key] for key in ("prompts", "test_prompts", "judge"))
        text = f"Judged on {prompts} test prompts ({test}) by: {judge}."
    if first is not None and first.terms and run.terms:
        reasons = [what for key, what in TERMS.items() if run.terms[key] != first.terms[key]]
        text += f" Not ranked with the runs above: {', '.join(reasons)}."
    return Text(text, "bold")


def _print_group(out: Console, runs: Mapping[str, Run]) -> None:
    """Results, names and differing parameters of comparable runs by number."""
    out.print(_results(runs))
    for number, run in runs.items():
        out.print(Text(f" {number:>2}  {run.name}  {run.began}"), soft_wrap=True)
    differing = differences(list(runs.values()))
    if differing:
        out.print(_parameters(runs, differing))
        if any(key.startswith(BEFORE_POLICIES) for key in differing):
            text = "The runs have different SFT models: a win rate compares a policy with the SFT model of its own run."
            out.print(text, soft_wrap=True)
    elif len(runs) > 1:
        out.print("All ran with the same parameters; code or data differed.", soft_wrap=True)
    best = next(iter(runs.values()))
    if best.terms:
        out.print(Text(best.claim()), soft_wrap=True)


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
            lock=run.data.tags.get(tracking.LOCK, run.info.run_id),
            params=run.data.params,
            metrics={renamed(key): value for key, value in run.data.metrics.items()},
            terms={key: run.data.tags[key] for key in TERMS if key in run.data.tags},
        )
        for run in found
    ]


def renamed(key: str) -> str:
    """Today's name of a figure that an earlier version logged as `policies.dpo.win_rate_vs_sft.low`."""
    group, _, rest = key.partition(".")
    if group == "policies":
        policy, figure, *end = rest.split(".")
        return "_".join([f"{figure}/{policy}", *end])
    return f"{group}/{rest}" if rest else key


def distinct(runs: Sequence[Run]) -> list[Run]:
    """Return runs with judged policies, best first; of runs with the same dvc.lock only the first given."""
    by_lock: dict[str, Run] = {}
    for run in runs:
        if run.best() is not None:
            by_lock.setdefault(run.lock, run)
    return sorted(by_lock.values(), key=lambda run: -(run.best() or ("", 0.0))[1])


def comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Split runs into groups that were judged alike, the largest first, those without terms last."""
    groups: dict[tuple[str | None, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.terms.get(key) for key in TERMS), []).append(run)
    return sorted(groups.values(), key=lambda group: (not group[0].terms, -len(group)))


def differences(runs: Sequence[Run]) -> list[str]:
    """Return the parameters that are not the same in all runs."""
    keys = sorted({key for run in runs for key in run.params} - NOT_RESULTS)
    return [key for key in keys if len({run.params.get(key) for run in runs}) > 1]


def _results(runs: Mapping[str, Run]) -> Table:
    """A block of lines for each run, one for each of its policies, so that any number of them fits a terminal."""
    wins, *others = (column(key) for key in (RATE, "kl", "mean_length"))
    table = plain_table("run", "policy", wins.heading, *(shown.heading for shown in others), "reward model")
    for number, run in runs.items():
        heading, style = number, "bold green"
        accuracy = formats.number(run.metrics.get("reward_model/accuracy"))
        for policy, rate in run.rates().items():
            ends = {end: run.metrics.get(f"{RATE}/{policy}_{end}") for end in ("low", "high")}
            figures = {RATE: {"value": rate, **ends}} | {
                shown.key: run.metrics.get(f"{shown.key}/{policy}") for shown in others
            }
            cells: list[Text | str] = [Text(wins.cell(figures), style), *(shown.cell(figures) for shown in others)]
            table.add_row(heading, policy, *cells, accuracy)
            heading = accuracy = style = ""  # shown once, beside the best policy
        table.add_section()
    return table


def _parameters(runs: Mapping[str, Run], keys: Sequence[str]) -> Table:
    """Each differing parameter with its values, and the numbers of the runs that had them."""
    table = plain_table("parameter", "value", "runs", title="What differed")
    for key in keys:
        by_value: dict[str, list[str]] = {}
        for number, run in runs.items():
            by_value.setdefault(run.params.get(key, "–"), []).append(number)
        heading = key
        for value, numbers in by_value.items():
            table.add_row(heading, Text(value), ", ".join(numbers))
            heading = ""
    return table
