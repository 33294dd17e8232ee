"""The worker: register the flow as a deployment, then run what users start in the UI."""

import os
import shlex
import sys
from pathlib import Path

POOL = "rlhf"

# How the pool starts a run. The client that starts a run fills in a template's variables (command, environment,
# folder), so this template has no variables and refuses any. `env` is omitted, since Prefect adds the run's own.
TEMPLATE = {
    "job_configuration": {"stream_output": True, "command": f"{shlex.quote(sys.executable)} -m flows.run.engine"},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}


def register() -> None:
    """Create the work pool and the deployment, or update them to the fields of params.yaml and to profiles/."""
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
        # Prefect's own schema accepts unknown arguments, and the flow run would then crash.
        made = client.read_deployment_by_name(f"{rlhf_pipeline.name}/{deployment.name}")
        schema = {**(made.parameter_openapi_schema or {}), "additionalProperties": False}
        client.update_deployment(made.id, DeploymentUpdate(parameter_openapi_schema=schema))


def main() -> None:
    """Register, create the file named by the first argument as a signal, then become Prefect's worker."""
    register()
    Path(sys.argv[1]).touch()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
