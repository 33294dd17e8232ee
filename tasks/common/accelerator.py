"""Device, precision, threads and processes of a stage."""

from accelerate import Accelerator

from rlhf_core.common.device import make_accelerator, require_hardware
from tasks.params.schema import Params
from tasks.runtime.launcher import LAUNCHER


def accelerator_of(params: Params) -> Accelerator:
    """Return the Accelerator for the section `run`, with the number of processes that the stage was started in.

    Raises:
        UserError: the device or an installed package lacks what the parameters ask for.
    """
    run, model = params.run, params.model
    require_hardware(run.device, run.precision, model.dtype, model.attn_implementation)
    return make_accelerator(run.device, run.precision, run.threads, LAUNCHER.processes)
