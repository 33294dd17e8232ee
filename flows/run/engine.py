"""What the worker starts for a flow run: Prefect's engine, once the flow is known to take the run's parameters.

Prefect compares parameters with the deployment's schema when a run is created, unless whoever creates it says not to.
Its engine would end such a run with a traceback, and where an argument is unknown as crashed.
"""

import os
import runpy
from collections.abc import Mapping
from typing import Any
from uuid import UUID


def parameter_mistake(parameters: Mapping[str, Any]) -> str | None:
    """What is wrong with a flow run's parameters; None where the flow takes them."""
    from prefect.exceptions import ParameterTypeError

    from flows.run.flow import rlhf_pipeline

    known = list(rlhf_pipeline.parameters.properties)
    if unknown := sorted(set(parameters) - set(known)):
        return f"the flow has no argument {unknown[0]!r}. Choose from: {', '.join(known)}."
    try:
        rlhf_pipeline.validate_parameters(dict(parameters))
    except ParameterTypeError as error:
        return " ".join(str(error).split())
    return None


def main() -> None:
    """End the flow run as a mistake, or become Prefect's engine."""
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
