"""The command line, `rlhf`. Heavy libraries are imported inside the commands that need them."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from flows.run.stopping import stoppable
from flows.servers.settings import find_root, login, set_environment
from rlhf_core.common.errors import UserError
from tasks.files import paths


class _Help:
    """Typer shows a type beside every option, also <bool> beside --help, which takes no value."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)  # type: ignore[misc]  # of TyperCommand or TyperGroup
        option.metavar = ""
        return option


class Command(_Help, TyperCommand):
    """A command."""


class Commands(_Help, TyperGroup):
    """All commands."""


app = typer.Typer(
    cls=Commands,
    help="Train, align and judge a language model. Every result is traceable to the data and code that produced it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)  # never break a command, path or address

Profile = Annotated[str, typer.Option(help="A set of parameters from profiles/ that overrides params.yaml.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="key=value for this run; can be repeated.")]


@app.command(cls=Command)
def run(
    profile: Profile = "default",
    assignments: Assignments = None,
    only: Annotated[str | None, typer.Option(help="Run this stage and the stages it needs, e.g. sft.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the DVC experiment that the run becomes.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Run once for each of these seeds, e.g. 0,1,2, and compare over seeds.")
    ] = None,
) -> None:
    """Run the pipeline. A run with changed parameters works in a separate clone and becomes a DVC experiment."""
    with stoppable():
        root = _enter()
        from flows.commands.run import run_pipeline

        run_pipeline(root, profile, assignments or [], only, name, seeds, out)


@app.command(cls=Command)
def up(
    prefect_port: Annotated[int | None, typer.Option(help="Port of Prefect's server.", show_default="4200")] = None,
    mlflow_port: Annotated[int | None, typer.Option(help="Port of MLflow's server.", show_default="5000")] = None,
) -> None:
    """Start Prefect's and MLflow's servers and a worker on 127.0.0.1, protected by a password."""
    root = _enter()
    from flows.servers.services import login_addresses
    from flows.servers.services import up as start
    from tasks.runtime.tracking import client, close_interrupted

    if (root / "mlflow.db").is_file():
        close_interrupted(client())
    with out.status("Starting Prefect, MLflow and a worker; this takes up to a minute"):
        services = start(root, prefect_port, mlflow_port)
        prefect, mlflow = login_addresses(root, services)
    user, _, password = login(root).partition(":")
    out.print(f"Prefect  {prefect}", soft_wrap=True)
    out.print(f"MLflow   {mlflow}", soft_wrap=True)
    out.print("Both addresses log you in. To start a run in Prefect: Deployments, rlhf, Run.")
    out.print(f"If a page asks: user {user}, password {password}; in a single field {user}:{password}", soft_wrap=True)
    out.print("Stop the services with: rlhf down")


@app.command(cls=Command)
def down() -> None:
    """Stop the services of `rlhf up` and the runs they started."""
    root = _enter()
    from flows.commands.runs import require_no_terminal_run
    from flows.servers.services import down as stop

    require_no_terminal_run(root)
    stopped = stop(root)
    out.print(f"Stopped: {', '.join(stopped)}." if stopped else "Nothing was running.")


@app.command(cls=Command)
def report() -> None:
    """Render the report page again with current links and print its path."""
    root = _enter()
    from flows.run.stages import StageRunner
    from flows.servers.services import mlflow_address

    if not (root / paths.REPORT).is_file():
        raise UserError(f"{root / paths.REPORT} does not exist. Create it with: rlhf run")
    environment = {"RLHF_MLFLOW_UI": mlflow_address(root), **os.environ}
    outcome = StageRunner(root, environment).call("report page", ["tasks.stages.report", "--render"], out.print)
    if outcome.code:
        raise UserError(outcome.message)
    out.print(f"Report: {root / paths.PAGE}")


@app.command(cls=Command)
def compare() -> None:
    """Compare finished runs: which policy wins most, and which parameters differ."""
    _enter()
    from flows.commands.compare import compare_runs

    compare_runs(out)


@app.command(cls=Command)
def runs(
    remove: Annotated[
        list[str] | None, typer.Option(help="Delete the folder of this run; can be repeated.", metavar="NAME")
    ] = None,
    remove_all: Annotated[
        bool, typer.Option("--remove-all", help="Delete the folders of all runs that are not running.", metavar="")
    ] = False,
) -> None:
    """List the runs that have their own folder (running, interrupted, failed or finished), or delete some."""
    root = _enter()
    from flows.commands.runs import delete, print_runs

    if remove or remove_all:
        delete(root, remove or [], remove_all, out)
    else:
        print_runs(root, out)


@app.command(cls=Command)
def chat(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder, e.g. models/policies/dpo.")],
    prompt: Annotated[str | None, typer.Option(help="Answer this prompt and exit, without a conversation.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens per answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the most likely token.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Seed for sampling.")] = 0,
    top_k: Annotated[int | None, typer.Option(min=0, help="Sample from the k most likely tokens; 0: all.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Sample from the most likely tokens with this total probability."),
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End an answer at this text; can be repeated.")] = None,
) -> None:
    """Chat with a checkpoint."""
    from flows.commands.chat import talk

    truncation = {"top_k": top_k, "top_p": top_p, "stop_strings": stop or None}
    talk(checkpoint, prompt, max_new_tokens, temperature, seed, out, truncation)


@app.command(cls=Command)
def convert(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="The folder to write, e.g. inputs/models/NAME.")],
) -> None:
    """Convert a GGUF file once to a Hugging Face folder (float32, a dequantised copy), for model.path."""
    set_environment(find_root())
    with out.status(f"Converting {file}"):
        from rlhf_core.models.gguf import convert_gguf

        is_new = convert_gguf(file, folder)
    out.print(f"{folder} {'written' if is_new else 'already holds this model'}. Use it with: --set model.path={folder}")


@app.command(cls=Command)
def doctor(
    profile: Profile = "default",
    assignments: Assignments = None,
    stage: Annotated[
        str, typer.Option(help="Run only the checks that this stage makes before it trains.", metavar="STAGE")
    ] = "",
    size: Annotated[
        str, typer.Option(help="Estimate for a model of this size, such as 1B or 8B, that need not be here.")
    ] = "",
    rows: Annotated[
        int, typer.Option(min=10, help="With --size: number of rows to estimate for without data.")
    ] = 10_000,
) -> None:
    """Check versions, devices, data, disk space and memory before a run."""
    root = _enter()
    from flows.commands.doctor import Assumed, examine, examine_stage

    chosen = assignments or []
    if stage:
        is_well = examine_stage(root, stage, profile, chosen, out)
    else:
        is_well = examine(root, profile, chosen, out, Assumed(size, rows) if size else None)
    if not is_well:
        raise typer.Exit(1)


def _enter() -> Path:
    """Find the checkout and set the environment for it; call this before any heavy import."""
    root = find_root()
    set_environment(root)
    return root


def main() -> None:
    """Run the command line. A UserError is printed as one or two lines, without a traceback."""
    try:
        app()
    except UserError as error:
        Console(stderr=True, highlight=False).print("[bold red]error:[/]", end=" ")
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
