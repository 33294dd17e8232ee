"""Device, precision and threads of a stage."""

from typing import Any

from rlhf_core.common.device import make_accelerator
from tasks.params.schema import Params


def accelerator_of(params: Params) -> Any:
    """The Accelerator that params.yaml's section `run` asks for."""
    run = params.run
    return make_accelerator(run.device, run.precision, run.threads)
