"""Set up device, precision and processes through accelerate."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from rlhf_core.common.errors import UserError
from rlhf_core.common.lazy import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
Weights = Literal["fp32", "bf16", "4bit"]
AttentionName = Literal["sdpa", "eager", "flash_attention_2"]


def require_cuda() -> None:
    """Raise UserError if torch finds no CUDA device."""
    if not torch.cuda.is_available():
        raise UserError("run.device is cuda, but torch finds no CUDA device. Set run.device to auto or cpu.")


def require_hardware(device: Device, precision: Precision, weights: Weights, attention: AttentionName) -> None:
    """Check that device and installed packages can do what the parameters ask for.

    Raises:
        UserError: they cannot; the message names the parameter and a value that works.
    """
    require_packages(weights, attention)
    is_cuda = device != "cpu" and torch.cuda.is_available()
    if "bf16" in (precision, weights) and is_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        key = "run.precision" if precision == "bf16" else "model.dtype"
        raise UserError(f"{key} is bf16, but {torch.cuda.get_device_name()} has no bf16 arithmetic. Set it to fp32.")
    if attention == "flash_attention_2" and (not is_cuda or precision != "bf16"):
        raise UserError(
            "model.attn_implementation is flash_attention_2, which needs a CUDA device and run.precision bf16. "
            "Set it to sdpa."
        )


def require_packages(weights: Weights, attention: AttentionName) -> None:
    """Raise UserError if an optional package that these values need is not installed. Does not import torch."""
    if weights == "4bit":
        require_bitsandbytes("model.dtype is 4bit", "set model.dtype to bf16")
    if attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise UserError(
            "model.attn_implementation is flash_attention_2, but flash-attn is not installed. "
            "Install it with: pip install flash-attn; or set it to sdpa."
        )


def require_bitsandbytes(what: str, otherwise: str) -> None:
    """Raise UserError if bitsandbytes, which `what` needs, is not installed."""
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"{what}, but bitsandbytes is not installed. "
            f"Install it with: pip install -c constraints.txt -e '.[4bit]'; or {otherwise}."
        )


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
