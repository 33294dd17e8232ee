"""`rlhf run`: check the request, run the flow in the terminal, and print the results."""

import logging
import os
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.commands.screen import plain_table
from flows.run import stopping
from flows.run.changes import Changes, require_inputs
from flows.run.graph import read_graph, select
from flows.run.lineage import read_report
from flows.run.seeds import SeedPlan, plan_seeds, read_seeds, require_seeds
from flows.run.workspace import plan
from flows.servers import temporary
from flows.servers.services import find
from rlhf_core.common.errors import UserError
from tasks.files import paths
from tasks.reporting.comparison import short_table

# The terminal shows the stages' lines, each after the name of its stage, in place of Prefect's own format.
TERMINAL = {
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s %(task_run_name)-11s %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s %(flow_run_name)s: %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FORMAT": "%(asctime)s %(message)s",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
}

# A waiting stage ends because another failed, and a run ended by SIGTERM prints its own line.
NO_NEWS = re.compile(r"Finished in state (?!Completed)|Crash detected!")
NO_PAGE = re.compile(r"View at ")  # the temporary server has no UI


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether to show a log record of Prefect's. A failure is shown only once, at the end."""
    return not (stopping.is_asked() or NO_NEWS.match(record.getMessage()))


def _is_no_link(record: logging.LogRecord) -> bool:
    return not NO_PAGE.match(record.getMessage())


def run_pipeline(
    root: Path,
    profile: str,
    assignments: list[str],
    only: str | None,
    name: str | None,
    seeds: str | None,
    out: Console,
) -> None:
    """Run the flow on `root`, with the Prefect server of `rlhf up` if it is running, else with a temporary one.

    Raises:
        UserError: a parameter, stage or name is invalid (before anything starts), or a stage failed.
        Stopped, KeyboardInterrupt: the user stopped the run.
    """
    changes = Changes.from_command_line(profile, assignments)
    chosen = read_seeds(seeds) if seeds is not None else []
    if chosen:
        require_seeds(chosen, changes, only)
    resolved = changes.resolve(root)
    require_inputs(resolved.params, root)
    select(read_graph(root), only)
    planned = plan_seeds(root, changes, chosen, name, only) if chosen else None
    if planned is None:
        plan(root, resolved, name)
    services = find(root)
    os.environ.update(TERMINAL)
    if services is not None:
        os.environ.setdefault("PREFECT_API_URL", f"{services.prefect}/api")
    server = None if "PREFECT_API_URL" in os.environ else temporary.begin()
    if server is not None:  # Prefect reads this on import, while the server starts
        os.environ["PREFECT_API_URL"] = server.api

    from flows.run.flow import handing, rlhf_pipeline

    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    if server is not None:
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_no_link)
        temporary.wait(server)
    if stopping.is_asked():  # a KeyboardInterrupt during an import may be swallowed
        raise stopping.Stopped
    each = [run.resolved for run in planned.runs] if planned else []
    with handing(resolved, *each), stopping.calling(lambda: None):
        state: Any = rlhf_pipeline(
            profile=profile,
            name=name or "",
            seeds=chosen,
            only=only or "",
            overrides=dict(changes.overrides),
            return_state=True,
        )
    if not state.is_completed():
        raise UserError(str(state.message))
    result = state.result()
    reports = Path(result["reports"])
    if planned is None:
        _say_where(reports, result["experiment"], services is not None, out)
    else:
        _say_over_seeds(planned, reports, out)


def _say_over_seeds(planned: SeedPlan, reports: Path, out: Console) -> None:
    """Print the figures over seeds, as `rlhf compare` does, and the newest report."""
    from flows.commands.compare import finished_runs, print_over_seeds

    names = {run.name for run in planned.runs}
    if not print_over_seeds(out, [run for run in finished_runs() if run.name in names]) and len(names) > 1:
        out.print("No figures over seeds: the seeds' runs have no judged policies, or other code or data.")
    if (page := reports / paths.PAGE.name).is_file():
        out.print(f"Report of {reports.name}, with the figures over seeds: {page}")


def _say_where(reports: Path, experiment: str | None, is_up: bool, out: Console) -> None:
    """Print the comparison of policies and how to see more."""
    headings, *rows = short_table(read_report(reports)) or [[]]
    if rows:
        table = plain_table(*headings)
        for row in rows:
            table.add_row(*row)
        out.print(table)
    if (page := reports / paths.PAGE.name).is_file():
        out.print(f"Report: {page}")
    if experiment is not None:
        out.print(f"Experiment: {experiment}. Apply it to your checkout with: dvc exp apply {experiment}")
    out.print("Compare runs: rlhf compare" + ("" if is_up else ". Curves and graphs in a browser: rlhf up"))
