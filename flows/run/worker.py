"""The worker: registers the flow as a deployment that the UI can start, then runs what is started."""

import os
import shlex
import sys
from pathlib import Path

POOL = "rlhf"

# How the pool starts a run. A template's variables (command, environment, folder) are filled in by whoever starts
# a run; this one has none and refuses any. `env` is left out, since Prefect adds a run's own to a literal one.
TEMPLATE = {
    "job_configuration": {"stream_output": True, "command": f"{shlex.quote(sys.executable)} -m flows.run.engine"},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}


def register() -> None:
    """Make the work pool and the deployment, or bring them up to date with params.yaml's fields and profiles/."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    from flows.run.flow import rlhf_pipeline

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=TEMPLATE), overwrite=True)
    deployment = RunnerDeployment.from_flow(
        rlhf_pipeline,
        name="rlhf",
        work_pool_name=POOL,
        entrypoint_type=EntrypointType.MODULE_PATH,
        description="Train, align and judge a model. Empty fields keep the value of params.yaml and of the profile.",
    )
    deployment.apply()
    with get_client(sync_client=True) as client:
        # Prefect's own schema lets unknown arguments through, and the flow run would crash on them.
        made = client.read_deployment_by_name(f"{rlhf_pipeline.name}/{deployment.name}")
        schema = {**(made.parameter_openapi_schema or {}), "additionalProperties": False}
        client.update_deployment(made.id, DeploymentUpdate(parameter_openapi_schema=schema))


def main() -> None:
    """Register, say so by making the file named in the arguments, then become Prefect's worker."""
    register()
    Path(sys.argv[1]).touch()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
