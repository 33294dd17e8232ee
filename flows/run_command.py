"""`rlhf run`: checks what was asked for, runs the flow on the terminal, and says where to look."""

import logging
import os
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.changes import Changes, require_inputs
from flows.graph import read_graph, select
from flows.lineage import number_text, ranked, rate_text, read_report
from flows.screen import plain_table
from flows.services import find
from flows.workspace import require_free_name
from rlhf_core.errors import UserError

# Prefect's own lines say little on a terminal; the stages' lines do, each after the name of its stage.
TERMINAL = {
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s %(task_run_name)-11s %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s %(flow_run_name)s: %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FORMAT": "%(asctime)s %(message)s",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
}

# How each waiting stage ended is the failure of another; the temporary server is nobody's to look at.
NO_NEWS = re.compile(r"Finished in state (?!Completed)|(Starting|Stopping) temporary server")


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of Prefect's is worth a place on the terminal, where a failure is told once, at the end."""
    return not NO_NEWS.match(record.getMessage())


def run_pipeline(
    root: Path, profile: str, assignments: list[str], only: str | None, name: str | None, out: Console
) -> None:
    """Run the flow on `root`, with the server of `rlhf up` if there is one, else with a temporary one.

    Raises:
        UserError: a bad parameter, stage or name (before anything starts), or a stage that failed.
    """
    changes = Changes.from_command_line(profile, assignments)
    require_inputs(changes.resolve(root).params, root)
    if name is not None:
        require_free_name(root, name)
    select(read_graph(root), only)
    services = find(root)
    os.environ.update(TERMINAL)
    if services is not None:
        os.environ.setdefault("PREFECT_API_URL", f"{services.prefect}/api")

    from flows.pipeline import rlhf_pipeline

    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    try:
        state: Any = rlhf_pipeline(
            profile=profile, name=name or "", only=only or "", overrides=dict(changes.overrides), return_state=True
        )
    except KeyboardInterrupt:
        out.print("Stopped. The same command goes on where it stopped.")
        raise
    if not state.is_completed():
        raise UserError(str(state.message))
    result = state.result()
    _say_where(Path(result["reports"]), result["experiment"], services is not None, out)


def _say_where(reports: Path, experiment: str | None, is_up: bool, out: Console) -> None:
    """Print the comparison of policies and how to see more."""
    policies = read_report(reports).get("policies")
    if policies:
        out.print(_table(policies))
    if (reports / "report.html").is_file():
        out.print(f"Report: {reports / 'report.html'}")
    if experiment is not None:
        out.print(f"Experiment: {experiment}; make it your checkout's state with: dvc exp apply {experiment}")
    out.print("Compare runs: rlhf compare" + ("" if is_up else ". Curves and graphs in a browser: rlhf up"))


def _table(policies: dict[str, dict[str, object]]) -> Table:
    table = plain_table("policy", "wins against SFT", "against reference", "KL", "reward", "length")
    for name, figures in ranked(policies):
        rates = [rate_text(figures.get(key)) for key in ("win_rate_vs_sft", "win_rate_vs_reference")]
        numbers = [number_text(figures.get(key)) for key in ("kl", "reward", "mean_length")]
        table.add_row(name, *rates, *numbers)
    return table
