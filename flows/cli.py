"""The command line, `rlhf`. Heavy libraries are imported inside the commands that need them."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.run.stopping import stoppable
from flows.servers.settings import find_root, login, set_environment
from rlhf_core.common.errors import UserError
from tasks.files import paths

app = typer.Typer(
    help="Train, align and judge a language model; every number traceable to the data and code that made it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)  # a command, path or address is never broken in the middle

Profile = Annotated[str, typer.Option(help="A set of parameters from profiles/, laid over params.yaml.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="key=value for this run, repeatable.")]


@app.command()
def run(
    profile: Profile = "default",
    assignments: Assignments = None,
    only: Annotated[str | None, typer.Option(help="Run this stage and what it needs, e.g. sft.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the experiment the run ends as.")] = None,
) -> None:
    """Run the pipeline. With changed parameters it runs in a checkout of its own and ends as a DVC experiment."""
    with stoppable():
        root = _enter()
        from flows.commands.run import run_pipeline

        run_pipeline(root, profile, assignments or [], only, name, out)


@app.command()
def up(
    prefect_port: Annotated[int | None, typer.Option(help="Port of Prefect's server.", show_default="4200")] = None,
    mlflow_port: Annotated[int | None, typer.Option(help="Port of MLflow's server.", show_default="5000")] = None,
) -> None:
    """Start Prefect's and MLflow's servers and a worker, all on 127.0.0.1 and behind a password."""
    root = _enter()
    from flows.servers.services import login_addresses
    from flows.servers.services import up as start
    from tasks.runtime.tracking import client, close_interrupted

    if (root / "mlflow.db").is_file():
        close_interrupted(client())
    with out.status("Starting Prefect, MLflow and a worker (up to a minute)"):
        services = start(root, prefect_port, mlflow_port)
        prefect, mlflow = login_addresses(root, services)
    user, _, password = login(root).partition(":")
    out.print(f"Prefect  {prefect}", soft_wrap=True)
    out.print(f"MLflow   {mlflow}", soft_wrap=True)
    out.print("Both addresses log you in. To start a run in Prefect: Deployments, rlhf, Run.")
    out.print(f"If a page asks: user {user}, password {password}; as one field {user}:{password}", soft_wrap=True)
    out.print("Stop them with: rlhf down")


@app.command()
def down() -> None:
    """Stop what `rlhf up` started, with everything it runs."""
    root = _enter()
    from flows.commands.runs import require_no_terminal_run
    from flows.servers.services import down as stop

    require_no_terminal_run(root)
    stopped = stop(root)
    out.print(f"Stopped: {', '.join(stopped)}." if stopped else "Nothing was running.")


@app.command()
def report() -> None:
    """Draw the report page again, with today's links, and say where it lies."""
    root = _enter()
    from flows.run.stages import StageRunner
    from flows.servers.services import mlflow_address

    if not (root / paths.REPORT).is_file():
        raise UserError(f"{root / 'reports' / 'report.json'} does not exist. Make it with: rlhf run")
    environment = {"RLHF_MLFLOW_UI": mlflow_address(root), **os.environ}
    outcome = StageRunner(root, environment).call("report page", ["tasks.stages.report", "--render"], out.print)
    if outcome.code:
        raise UserError(outcome.message)
    out.print(f"Report: {root / 'reports' / 'report.html'}")


@app.command()
def compare() -> None:
    """Compare finished runs: which policy wins most, and which parameters differed."""
    _enter()
    from flows.commands.compare import compare_runs

    compare_runs(out)


@app.command()
def runs(
    remove: Annotated[
        list[str] | None, typer.Option(help="Delete the folder of this run, repeatable.", metavar="NAME")
    ] = None,
    remove_all: Annotated[bool, typer.Option(help="Delete the folders of all runs that are not under way.")] = False,
) -> None:
    """List the runs that have a folder of their own, running, interrupted, failed and finished, or delete some."""
    root = _enter()
    from flows.commands.runs import delete, print_runs

    if remove or remove_all:
        delete(root, remove or [], remove_all, out)
    else:
        print_runs(root, out)


@app.command()
def chat(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder, e.g. models/policies/dpo.")],
    prompt: Annotated[str | None, typer.Option(help="Answer this and stop, instead of asking for lines.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most likely token.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Talk to a checkpoint."""
    from flows.commands.chat import talk

    talk(checkpoint, prompt, max_new_tokens, temperature, seed, out)


@app.command()
def doctor(
    profile: Profile = "default",
    assignments: Assignments = None,
    stage: Annotated[
        str, typer.Option(help="Only what this stage checks in its model and data before it trains.", metavar="STAGE")
    ] = "",
) -> None:
    """Check versions, devices, data, disk and memory for a run before it starts."""
    root = _enter()
    from flows.commands.doctor import examine, examine_stage

    chosen = assignments or []
    if not (examine_stage(root, stage, profile, chosen, out) if stage else examine(root, profile, chosen, out)):
        raise typer.Exit(1)


def _enter() -> Path:
    """Set the environment for the checkout around here; before any heavy import."""
    root = find_root()
    set_environment(root)
    return root


def main() -> None:
    """Run the command line; a user's mistake is a message of one or two lines, never a traceback."""
    try:
        app()
    except UserError as error:
        Console(stderr=True, highlight=False).print("[bold red]error:[/]", end=" ")
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
