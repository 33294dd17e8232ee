"""The precision in which a model computes: float32, or bf16 by autocast with float32 weights."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf_core.common.device import Precision


def set_compute(model: nn.Module, precision: Precision) -> None:
    """Store the precision on a model and on the transformers in it."""
    for part in model.modules():
        if part is model or isinstance(part, PreTrainedModel):
            part.compute_precision = precision  # type: ignore[assignment]


def is_exact(model: nn.Module) -> bool:
    """Whether the model computes in float32 or better, so that two ways to compute a number agree up to rounding."""
    return getattr(model, "compute_precision", "fp32") == "fp32" and all(
        parameter.dtype in (torch.float32, torch.float64) for parameter in model.parameters()
    )


def compute(model: nn.Module) -> AbstractContextManager[object]:
    """The autocast of the model's precision. A model without one computes in the precision of its weights."""
    if getattr(model, "compute_precision", "fp32") == "fp32":
        return nullcontext()
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16)
