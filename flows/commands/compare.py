"""`rlhf compare`: compare finished runs: the best policy, and the parameters that differ.

Win rates are ranked only among runs with the same test prompts, the same number of prompts and the same judge. Other
runs are shown in separate groups. Runs that differ only in run.seed are also shown together, over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.commands.differences import differences, is_read
from flows.commands.screen import plain_table
from rlhf_core.common.errors import UserError
from tasks.reporting import formats
from tasks.reporting.comparison import column
from tasks.reporting.findings import did_not_move, join
from tasks.reporting.seeds import CODE_AND_DATA, SEED, estimates, same_but_seed, table
from tasks.runtime import tracking

RATE = "win_rate_vs_sft"
# Runs are comparable if these tags of flows.run.lineage.terms_of are equal; the value names the difference.
TERMS = {"test_prompts": "other test prompts", "prompts": "another number of prompts", "judge": "another judge"}
FEW = 4  # policies named in a sentence
BEFORE_POLICIES = ("run.", "model.", "prepare.", "base.", "sft.")  # sections that the SFT model depends on


@dataclass(frozen=True)
class Run:
    """A finished flow run in MLflow: `metrics` (`kl/ppo`) and `params` by name, `terms` by key of TERMS."""

    name: str
    began: str
    lock: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    terms: Mapping[str, str] = field(default_factory=dict)
    code_and_data: str = ""

    def rates(self) -> dict[str, float]:
        """Return the win rates against SFT by policy, highest first."""
        found = {
            key.removeprefix(f"{RATE}/"): value
            for key, value in self.metrics.items()
            if key.startswith(f"{RATE}/") and not key.endswith(("_low", "_high"))
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def not_shown(self, policy: str) -> str:
        """Return '' if the policy is shown to beat its SFT model, else why not."""
        if did_not_move({"kl": self.metrics.get(f"kl/{policy}")}):
            return "did not move from its SFT model"
        low = self.metrics.get(f"{RATE}/{policy}_low")
        return "is not shown to be better than its SFT model" if low is None or low <= 0.5 else ""

    def best(self) -> tuple[str, float] | None:
        """Return the policy with the highest win rate against SFT and that rate, None if no policy was judged."""
        return next(iter(self.rates().items()), None)


def claim(runs: Sequence[Run]) -> str:
    """Return what the win rates of comparable runs, best first, show: the highest, and what may equal it.

    As in the report, no order is claimed where 95 % intervals overlap.
    """
    every = [(run, policy, rate) for run in runs for policy, rate in run.rates().items()]
    highest = formats.rate({"value": max(rate for *_, rate in every)})
    best = [(run, policy) for run, policy, rate in every if formats.rate({"value": rate}) == highest]
    low = best[0][0].metrics.get(f"{RATE}/{best[0][1]}_low", 1.0)
    close = [
        (run, policy)
        for run, policy, rate in every
        if formats.rate({"value": rate}) != highest and run.metrics.get(f"{RATE}/{policy}_high", 0.0) >= low
    ]
    text = f"{'Equal highest win rates' if len(best) > 1 else 'Highest win rate'}: {_listed(best)}"
    for run, policy in best:
        if why := run.not_shown(policy):
            text += f"; {policy} of {run.name} {why}" if len(best) > 1 else f"; the policy {why}"
    if not close:
        return text
    its = "Their intervals overlap" if len(best) > 1 else "Its interval overlaps"
    return f"{text}.\n{its} with that of {_listed(close)}: the order may be due to chance"


def _listed(policies: Sequence[tuple[Run, str]]) -> str:
    names = [f"{policy} of {run.name}" for run, policy in policies]
    return join(names if len(names) <= FEW else [*names[: FEW - 1], f"{len(names) - FEW + 1} others"])


def compare_runs(out: Console) -> None:
    """Print each group of comparable runs: one block per distinct result, best first, then the differing parameters.

    Raises:
        UserError: no finished run has judged policies.
    """
    finished = finished_runs()
    groups = comparable(distinct(finished))
    if not groups:
        raise UserError("No finished run has judged policies. Start one with: rlhf run")
    number = 1
    for index, runs in enumerate(groups):
        if index:
            out.print()
        out.print(_heading(runs[0], groups[0][0] if index else None), soft_wrap=True)
        _print_group(out, {str(number + place): run for place, run in enumerate(runs)})
        number += len(runs)
    out.print("Brackets: 95 % interval over the test prompts of one run. Curves: rlhf up", soft_wrap=True)
    print_over_seeds(out, finished)


def print_over_seeds(out: Console, runs: Sequence[Run]) -> bool:
    """Print the figures over seeds of runs, latest first, that differ only in their seed. Return whether there are any.

    Several such groups are numbered, with the highest mean win rate first, and their differing parameters are shown.
    """
    groups = [group for group in same_but_seed(runs) if len(table(_metrics(group))) > 1]
    groups.sort(key=lambda group: -_best_mean(group))
    for index, group in enumerate(groups):
        out.print()
        seeds, names = ", ".join(map(str, group)), ", ".join(run.name for run in group.values())
        label = f"S{index + 1}  " if len(groups) > 1 else ""
        out.print(Text(f"{label}Over seeds {seeds} (n = {len(group)}): {names}", "bold"), soft_wrap=True)
        headings, *rows = table(_metrics(group))
        figures = plain_table(*headings)
        for row in rows:
            figures.add_row(*row)
        out.print(figures)
    if len(groups) > 1:
        first = {f"S{index + 1}": next(iter(group.values())) for index, group in enumerate(groups)}
        if keys := [key for key in differences([run.params for run in first.values()]) if key != SEED]:
            out.print(_parameters(first, keys))
    if groups:
        out.print("Over seeds: mean (95 % t-interval over seeds).", soft_wrap=True)
    return bool(groups)


def _metrics(group: Mapping[int, Run]) -> dict[int, Mapping[str, float]]:
    return {seed: run.metrics for seed, run in group.items()}


def _best_mean(group: Mapping[int, Run]) -> float:
    return max(row[RATE].mean for row in estimates(_metrics(group)).values())


def _heading(run: Run, first: Run | None) -> Text:
    """Return how a group was judged and, for a later group, why it is not ranked with the first."""
    if not run.terms:
        text = "Not ranked: an earlier version made these runs and did not record the judge and the test prompts."
    else:
        prompts, test, judge = (run.terms[key] for key in ("prompts", "test_prompts", "judge"))
        text = f"Judged on {prompts} test prompts ({test}) by: {judge}."
    if first is not None and first.terms and run.terms:
        reasons = [what for key, what in TERMS.items() if run.terms[key] != first.terms[key]]
        text += f" Not ranked with the runs above: {', '.join(reasons)}."
    return Text(text, "bold")


def _print_group(out: Console, runs: Mapping[str, Run]) -> None:
    """Print results, names and differing parameters of comparable runs, keyed by number."""
    out.print(_results(runs))
    for number, run in runs.items():
        out.print(Text(f" {number:>2}  {run.name}  {run.began}"), soft_wrap=True)
    differing = differences([run.params for run in runs.values()])
    if differing:
        out.print(_parameters(runs, differing))
        if any(key.startswith(BEFORE_POLICIES) for key in differing):
            text = "The runs have different SFT models: each win rate compares a policy with the SFT model of its run."
            out.print(text, soft_wrap=True)
    elif len(runs) > 1:
        out.print("All runs have the same parameters; the code or the data differs.", soft_wrap=True)
    compared = list(runs.values())
    if compared[0].terms:
        out.print(Text(claim(compared)), soft_wrap=True)


def finished_runs() -> list[Run]:
    """Return the parent runs of finished flow runs, latest first."""
    from datetime import datetime

    return [
        Run(
            name=str(run.info.run_name),
            began=datetime.fromtimestamp(run.info.start_time / 1000).strftime("%Y-%m-%d %H:%M"),
            lock=run.data.tags.get(tracking.LOCK, run.info.run_id),
            params=run.data.params,
            metrics={renamed(key): value for key, value in run.data.metrics.items()},
            terms={key: run.data.tags[key] for key in TERMS if key in run.data.tags},
            code_and_data=run.data.tags.get(CODE_AND_DATA, ""),
        )
        for run in tracking.pipeline_runs()
    ]


def renamed(key: str) -> str:
    """Return the current name of a metric that an earlier version logged as `policies.dpo.win_rate_vs_sft.low`."""
    group, _, rest = key.partition(".")
    if group == "policies":
        policy, figure, *end = rest.split(".")
        return "_".join([f"{figure}/{policy}", *end])
    return f"{group}/{rest}" if rest else key


def distinct(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with judged policies, best first. Of several runs with the same dvc.lock, keep the first."""
    by_lock: dict[str, Run] = {}
    for run in runs:
        if run.best() is not None:
            by_lock.setdefault(run.lock, run)
    return sorted(by_lock.values(), key=lambda run: -(run.best() or ("", 0.0))[1])


def comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that were judged in the same way, largest group first, runs without terms last."""
    groups: dict[tuple[str | None, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.terms.get(key) for key in TERMS), []).append(run)
    return sorted(groups.values(), key=lambda group: (not group[0].terms, -len(group)))


def _results(runs: Mapping[str, Run]) -> Table:
    """Return a table with one row per policy, grouped by run, so that any number of policies fits a terminal."""
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
    """Return a table of differing parameters: each value and the numbers of the runs that have it."""
    table = plain_table("parameter", "value", "runs", title="Differing parameters")
    for key in keys:
        by_value: dict[str, list[str]] = {}
        for number, run in runs.items():
            if is_read(key, run.params):
                by_value.setdefault(run.params.get(key, formats.NONE), []).append(number)
        heading = key
        for value, numbers in by_value.items():
            table.add_row(heading, Text(value), ", ".join(numbers))
            heading = ""
    return table
