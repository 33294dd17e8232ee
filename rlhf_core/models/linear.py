"""Linear layers prepared for many calls on a few rows, as decoding makes them.

A layer is prepared once, and may not change until its function has been called for the last time:
- Layers that read the same states become one product.
- The change of a LoRA adapter is added to the weights, which saves two products and their calls.
- Weights are cast to the type of the surrounding autocast, which casts them in every call otherwise.
- On a CPU, large matrices are laid out for products of a few rows, which torch otherwise repeats in every call. Small
  matrices gain nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_core.models.adapters import NAME

SMALLEST = 2**18  # weights of the smallest matrix that is laid out
BUDGET = 2**30  # bytes of all copies; layers beyond them are called as they are

Linear = Callable[[Tensor], Tensor]


class LinearCopies:
    """Prepares the layers of one model, the most important first. Copies are freed with the functions."""

    def __init__(self, device: torch.device) -> None:
        """device: of the model. Is made inside the autocast, if any, of the calls."""
        self.cast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        self.left = BUDGET

    def of(self, *layers: nn.Module) -> Linear:
        """A function that returns the outputs of the layers side by side: (B, d) -> (B, n_1 + n_2 + ...)."""
        plain = [_base(layer) for layer in layers]
        if all(type(layer) is nn.Linear for layer in plain):
            function = self._prepared(layers, plain)
            if function is not None:
                return function
        if len(layers) == 1:
            return layers[0]
        return lambda states: torch.cat([layer(states) for layer in layers], -1)

    def _prepared(self, layers: tuple[nn.Module, ...], plain: list[Any]) -> Linear | None:
        """The function for layers and their plain layers (see `_base`); None if copies would exceed the budget."""
        weight, size = plain[0].weight, sum(layer.weight.numel() for layer in plain)
        dtype = self.cast or weight.dtype
        packs = size >= SMALLEST and _can_pack(weight.device, dtype)
        if not packs and [*layers] == plain and len(plain) == 1 and weight.dtype == dtype:
            return partial(F.linear, weight=weight.detach(), bias=plain[0].bias)
        if size * dtype.itemsize > self.left:
            return None
        self.left -= size * dtype.itemsize
        weights = torch.cat([_weight(*pair).to(dtype) for pair in zip(layers, plain, strict=True)])
        bias = _bias(plain, dtype)
        if not packs:
            return partial(_linear, weights, bias)
        return partial(_packed_linear, torch.ops.mkldnn._reorder_linear_weight(weights, None), dtype, bias)


def _base(layer: nn.Module) -> nn.Module:
    """The layer inside an active adapter, or the layer itself."""
    adapted: Any = layer
    if hasattr(layer, "get_delta_weight") and not adapted.disable_adapters and not adapted.merged:
        base: nn.Module = adapted.get_base_layer()
        return base
    return layer


def _weight(layer: Any, plain: Any) -> Tensor:
    """The weights with the change of an adapter, W + (lora_alpha / r) B A, (n, d)."""
    weight: Tensor = plain.weight.detach()
    return weight if layer is plain else weight + layer.get_delta_weight(NAME).detach()


def _bias(layers: list[Any], dtype: torch.dtype) -> Tensor | None:
    """The biases side by side, 0 where a layer has none; None if no layer has one."""
    if all(layer.bias is None for layer in layers):
        return None
    biases = [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    return torch.cat([bias.detach().to(dtype) for bias in biases])


def _can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _linear(weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    return F.linear(states.to(weight.dtype), weight, bias)


def _packed_linear(weight: Tensor, dtype: torch.dtype, bias: Tensor | None, states: Tensor) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(states.to(dtype), weight, bias, "none", [], "")
    return output
