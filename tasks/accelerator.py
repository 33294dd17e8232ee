"""Device, precision and threads of a stage."""

from typing import Any

from rlhf_core.device import make_accelerator
from tasks.stage import Stage


def accelerator_of(stage: Stage) -> Any:
    """The Accelerator that params.yaml's section `run` asks for."""
    run = stage.params.run
    return make_accelerator(run.device, run.precision, run.threads)
