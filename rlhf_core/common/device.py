"""Set up device, precision and processes through accelerate."""

from typing import TYPE_CHECKING, Literal

from rlhf_core.common.errors import UserError
from rlhf_core.common.lazy import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]


def require_cuda() -> None:
    """Raise UserError if torch finds no CUDA device."""
    if not torch.cuda.is_available():
        raise UserError("run.device is cuda, but torch finds no CUDA device. Set run.device to auto or cpu.")


def make_accelerator(device: Device, precision: Precision, threads: int, processes: int = 1) -> "Accelerator":
    """An Accelerator, with the number of CPU threads fixed so that sums round the same way each time.

    Raises:
        UserError: CUDA is asked for and absent, or accelerate found another number of processes than were started.
    """
    from accelerate import Accelerator

    if device == "cuda":
        require_cuda()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")
    if accelerator.num_processes != processes:
        raise UserError(
            f"this stage runs in {processes} process(es), but accelerate found {accelerator.num_processes}. "
            "Start it with rlhf run or dvc repro, not with torchrun or accelerate launch."
        )
    return accelerator
