"""Device, precision, threads and processes of a stage."""

from accelerate import Accelerator

from rlhf_core.common.device import make_accelerator
from tasks.params.schema import Params
from tasks.runtime.launcher import LAUNCHER


def accelerator_of(params: Params) -> Accelerator:
    """Return the Accelerator for the section `run`, with the number of processes that the stage was started in."""
    run = params.run
    return make_accelerator(run.device, run.precision, run.threads, LAUNCHER.processes)
