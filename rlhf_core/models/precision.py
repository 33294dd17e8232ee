"""The compute precision of a model, for forward passes that call its parts and not the model itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rlhf_core.common.device import Precision


def set_compute(model: nn.Module, precision: Precision) -> None:
    """Set the precision in which `compute` runs a model."""
    own: Any = model
    own.compute_precision = precision


@contextmanager
def compute(model: nn.Module) -> Iterator[None]:
    """Run forward passes in the model's compute precision: bf16 by autocast, or fp32 as they are."""
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=getattr(model, "compute_precision", "fp32") == "bf16"):
        yield
