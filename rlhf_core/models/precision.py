"""The precision in which a model computes: float32, or bfloat16 by autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from rlhf_core.common.device import Precision


def set_compute(model: nn.Module, precision: Precision) -> None:
    """Set in which precision `compute` runs this model. The weights do not change."""
    model._compute = precision  # type: ignore[assignment]


def compute(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which the model's operations run in its precision; without `set_compute`, it changes nothing.

    accelerate wraps only `model.forward` in autocast, and the fast paths call the parts of the model.
    """
    if getattr(model, "_compute", "fp32") != "bf16":
        return nullcontext()
    device = next(model.parameters()).device.type
    context: AbstractContextManager[None] = torch.autocast(device, torch.bfloat16)
    return context
