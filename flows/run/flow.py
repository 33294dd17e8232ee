"""The flow: one Prefect task for each stage of DVC's graph, inside one MLflow parent run.

DVC decides what is up to date, so Prefect's own cache is off. This module reads the graph and never writes it.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.run.changes import DEFAULT, Changes, Resolved, require_inputs
from flows.run.form import Form, Profile, chosen
from flows.run.graph import Stage, read_graph, select
from flows.run.lineage import ParentRun, comparison_markdown, read_report
from flows.run.locks import RUNS
from flows.run.seeds import SeedPlan, plan_seeds
from flows.run.stages import StageRunner
from flows.run.stopping import Stopped
from flows.run.workspace import Workspace, open_workspace
from flows.servers.services import mlflow_address
from flows.servers.settings import find_root
from rlhf_core.common.errors import UserError
from tasks.files import paths
from tasks.params.schema import Params

# The changes that `rlhf run` has resolved, for the flow that it starts in the same process; one for each seed.
_HANDED: ContextVar[tuple[Resolved, ...]] = ContextVar("handed", default=())

MISTAKE = "Mistake"  # state of a stage that failed because of a user's mistake


def _may_resume(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """Retry a killed stage, which then resumes. After a user's mistake, a retry would fail again."""
    return state.name != MISTAKE


@task(task_run_name="{stage}", retries=1, retry_condition_fn=_may_resume, cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str, runner: StageRunner) -> State[None] | None:
    """Run one stage through DVC; its output goes to the log line by line."""
    logger = get_run_logger()
    # The log already names the stage.
    outcome = runner.run(stage, lambda line: logger.info(line.removeprefix(f"{stage} ").lstrip()))
    if outcome.code == 0:
        return None
    if runner.is_stopped:
        return Cancelled(message="The run was stopped.")
    return Failed(name=MISTAKE if outcome.is_mistake else "Failed", message=outcome.message)


def _title() -> str:
    """Return the name of the flow run: the experiment's, else a description of the run."""
    given = flow_run.parameters
    changes = _changes(given["profile"], given["parameters"], given["overrides"])
    try:
        title = given.get("name") or _resolved(changes).title()
        return title + (f", seeds {', '.join(map(str, given['seeds']))}" if given.get("seeds") else "")
    except UserError:  # the run reports it
        return changes.label()


@contextmanager
def handing(*resolved: Resolved) -> Iterator[None]:
    """In this context, a flow with the same changes uses one of `resolved` instead of reading the files again."""
    token = _HANDED.set(resolved)
    try:
        yield
    finally:
        _HANDED.reset(token)


def _resolved(changes: Changes) -> Resolved:
    handed = (resolved for resolved in _HANDED.get() if resolved.changes == changes)
    return next(handed, None) or changes.resolve(find_root())


def _title_of(parameter: str) -> Any:
    """The label in Prefect's form in place of the parameter's own name."""
    return Field(json_schema_extra={"title": parameter})


@flow(name="rlhf", flow_run_name=_title, persist_result=False)
def rlhf_pipeline(
    profile: Annotated[Profile, _title_of("Profile")] = DEFAULT,
    parameters: Annotated[Form, _title_of("Settings")] = Form(),  # noqa: B008 - nobody changes it
    overrides: Annotated[dict[str, Any], _title_of("Any other parameter")] = {},  # noqa: B006 - nobody changes it
    name: Annotated[str, _title_of("Experiment name")] = "",
    seeds: Annotated[list[int], _title_of("Seeds")] = [],  # noqa: B006 - nobody changes it
    only: Annotated[str, _title_of("Only this stage")] = "",
) -> Any:
    """Train, align and judge a model.

    Args:
        profile: A named set of parameters to start from. The fields below override it.
        parameters: Values to change for this run only. An empty field keeps the value in brackets, or the profile's.
        overrides: Values by dotted key of params.yaml, e.g. {"sft.warmup_steps": 20, "prepare.max_dropped": 0.1}.
        name: Name of the DVC experiment that stores the run. If empty, it is made from the changes.
        seeds: Run once for each of these seeds, e.g. 0, 1 and 2, as the experiments NAME-seed-0, NAME-seed-1, ... If
            empty, run once.
        only: Run only this stage and the stages it needs, e.g. sft or offline@dpo. If empty, run all.
    """
    try:
        changes = _changes(profile, parameters, overrides)
        if seeds:
            return _run_seeds(plan_seeds(find_root(), changes, seeds, name or None, only or None, _resolved))
        return _run(find_root(), _resolved(changes), only or None, name or None)
    except UserError as error:
        return Failed(name=MISTAKE, message=str(error))
    except Stopped:
        return Cancelled(message="Stopped. Start the same run again to continue.")


def _changes(profile: str, parameters: Any, overrides: dict[str, Any]) -> Changes:
    return Changes(profile, {**chosen(parameters), **overrides})


def _run_seeds(planned: SeedPlan) -> dict[str, str | None]:
    """Run the pipeline once for each seed whose experiment is missing, as a flow inside this one.

    Return the path of the newest report, which shows all seeds; the experiment is None, since there are several.

    Raises:
        UserError: the run of one seed failed. Later ones were not started.
        Stopped: the user stopped the run.
    """
    logger = get_run_logger()
    newest = planned.runs[-1].name
    for run in planned.runs:
        if run.is_stored:
            logger.info(f"seed {run.seed}: the experiment {run.name} exists")
            continue
        newest, wanted = run.name, run.resolved.changes
        with handing(run.resolved):
            state: Any = rlhf_pipeline(
                profile=wanted.profile, overrides=dict(wanted.overrides), name=run.name, return_state=True
            )
        if state.is_cancelled():
            raise Stopped
        if not state.is_completed():
            reason, _, _ = str(state.message).partition("\n")
            raise UserError(f"seed {run.seed}: {reason}\nAfter a fix, continue with: {planned.command}")
    return {"reports": str(find_root() / RUNS / newest), "experiment": None}


def _run(root: Path, resolved: Resolved, only: str | None, name: str | None) -> dict[str, str | None]:
    """Run the stages. Return the path of the report, and the name of the experiment if there is one."""
    logger = get_run_logger()
    params = resolved.params
    require_inputs(params, root)
    with (
        open_workspace(root, resolved, name) as workspace,
        ParentRun(workspace.name or resolved.title(), params, root, str(flow_run.id)) as parent,
    ):
        for message in workspace.messages:
            logger.info(message)
        stages = select(read_graph(workspace.checkout), only)
        with StageRunner(workspace.checkout, _environment(params, parent)) as runner:
            _run_stages(stages, runner, params.run.parallel)
            # Draw the page after the stages: tracked outputs must not contain its links and wall times.
            if (workspace.checkout / paths.REPORT).is_file():
                outcome = runner.call("report page", ["tasks.stages.report", "--render"], logger.info)
                if runner.is_stopped:
                    raise Stopped
                if outcome.code:
                    raise UserError(f"The report could not be drawn: {outcome.message}")
        parent.record(workspace)
        _publish(parent, workspace)
        folder = workspace.finish([stage.name for stage in stages])
    return {"reports": str(folder), "experiment": workspace.name}


def _environment(params: Params, parent: ParentRun) -> dict[str, str]:
    """Return the environment of the stages: offline unless a hub is configured, with the ids of their parent run."""
    names_hub = bool(params.model.hub or params.prepare.hub)
    return {
        **({} if names_hub else {"HF_HUB_OFFLINE": "1"}),
        "RLHF_MLFLOW_UI": mlflow_address(find_root()),
        **os.environ,
        "RLHF_PARENT_RUN_ID": parent.run_id,
        "RLHF_FLOW_RUN_ID": str(flow_run.id),
    }


def _run_stages(stages: Sequence[Stage], runner: StageRunner, parallel: int) -> None:
    """Run each stage as soon as its inputs exist, up to `parallel` stages at the same time.

    Raises:
        UserError: a stage failed. Stages that need it were not started.
        Stopped: the user stopped the run.
    """
    futures: dict[str, PrefectFuture[Any]] = {}
    pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=parallel)
    with pool:
        try:
            for stage in stages:
                needs = [futures[name] for name in stage.upstream if name in futures]
                futures[stage.name] = pool.submit(
                    run_stage, parameters={"stage": stage.name, "runner": runner}, wait_for=needs
                )
            for future in futures.values():
                future.wait()
        except BaseException:  # stopped by the user or a signal: the pool would wait for running stages
            runner.stop()
            raise
    if runner.is_stopped:
        raise Stopped
    failed = {name: future.state for name, future in futures.items() if future.state.is_failed()}
    if failed:
        name, state = next(iter(failed.items()))
        more = f" ({', '.join(list(failed)[1:])} failed too)" if len(failed) > 1 else ""
        start = "Fix it, then start the same run again" if state.name == MISTAKE else "Start the same run again"
        raise UserError(f"stage {name}: {state.message}{more}\n{start}: it continues where this one stopped.")


def _publish(parent: ParentRun, workspace: Workspace) -> None:
    """Show the comparison and links to the MLflow runs on the flow run's page."""
    if table := comparison_markdown(read_report(workspace.checkout / paths.REPORTS)):
        create_markdown_artifact(table, key="comparison", description="Policies compared, best first")
    address = f"{mlflow_address(workspace.root)}/#/experiments/{parent.experiment_id}/runs/"
    lines = [f"- [{name}]({address}{run_id})" for name, run_id in parent.family().items()]
    create_markdown_artifact("\n".join(lines), key="mlflow-runs", description="What each stage logged")
