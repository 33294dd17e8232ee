"""The worker's command for a flow run: validate the run's parameters, then start Prefect's engine.

Prefect validates parameters when a run is created, but the client can switch that off. The engine would end such a run
with a traceback, or mark it as crashed if an argument is unknown.
"""

import os
import runpy
from collections.abc import Mapping
from typing import Any
from uuid import UUID


def parameter_mistake(parameters: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a flow run's parameters, None if they are valid."""
    from prefect.exceptions import ParameterTypeError

    from flows.run.flow import rlhf_pipeline

    known = list(rlhf_pipeline.parameters.properties)
    if unknown := sorted(set(parameters) - set(known)):
        return f"The flow has no argument {unknown[0]!r}. Choose from: {', '.join(known)}."
    try:
        rlhf_pipeline.validate_parameters(dict(parameters))
    except ParameterTypeError as error:
        return " ".join(str(error).split())
    return None


def main() -> None:
    """End the flow run with a message if its parameters are invalid, else become Prefect's engine."""
    from prefect.client.orchestration import get_client
    from prefect.states import Failed

    from flows.run.flow import MISTAKE

    run = UUID(os.environ["PREFECT__FLOW_RUN_ID"])
    with get_client(sync_client=True) as client:
        if message := parameter_mistake(client.read_flow_run(run).parameters):
            client.set_flow_run_state(run, Failed(name=MISTAKE, message=message))
            return
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
