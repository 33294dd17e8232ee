"""Merge an adapter into its base: W + (lora_alpha / r) B A, in float32 on a copy, and check the result.

A wrong merge is silent: a merged model that is its base, or lacks the change of one layer, trains and samples without
an error. So the logits of the copy are compared before and after the merge.
"""

import copy
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_core.common.errors import UserError
from rlhf_core.models.adapters import HEAD, NAME, adapter_parameters, has_adapter

ROUNDING = 2e-5  # of float32, relative to the largest logit
LOST = 0.01  # largest part of the adapter's effect that the merge may lose
PROBE = 16  # tokens


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A plain float32 model on the CPU with the model's adapter merged into its weights. `model` does not change.

    Raises:
        UserError: the merged model differs from base plus adapter.
    """
    plain = _float_copy(model)
    ids = _probe(plain)
    adapted = _logits(plain, ids)
    _enable(plain, False)
    base = _logits(plain, ids)
    _enable(plain, True)
    merge_layers(plain)
    _check(base, adapted, _logits(plain, ids))
    own: Any = plain
    own.adapter_base = None
    del own.peft_config
    return plain


def require_trained(model: PreTrainedModel) -> None:
    """Check that training changed the adapter, whose B begins at 0.

    Raises:
        UserError: B is still 0, so the merged model would be its base.
    """
    if has_adapter(model) and not any(bool(p.any()) for name, p in adapter_parameters(model) if ".lora_B." in name):
        raise UserError(
            "training did not change the adapter, so the model would equal its base. "
            "Every gradient was 0: check that the rewards or the data differ."
        )


@torch.no_grad()
def merge_layers(model: nn.Module) -> None:
    """Replace every adapted layer by a plain one with the merged weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, layer in layers:
        adapted: Any = layer
        plain = adapted.get_base_layer()
        plain.weight.data += adapted.get_delta_weight(NAME)
        model.set_submodule(name, plain)


def _float_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A float32 copy on the CPU, without the forward that accelerate wraps around the model's own."""
    quantised = [layer for layer in model.modules() if _is_quantised(layer)]
    copies: dict[int, Any] = {id(layer): _dequantised(layer) for layer in quantised}
    copies |= {id(tensor): _float(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    plain = copy.deepcopy(model, copies)
    own: Any = plain
    for wrapped in ("forward", "_original_forward"):
        own.__dict__.pop(wrapped, None)
    if quantised:
        del own.config.quantization_config
        own.is_quantized = own.is_loaded_in_4bit = False
        own.hf_quantizer = own.quantization_method = None
    return plain.eval()


def _is_quantised(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether this is a 4-bit layer of bitsandbytes; peft's layer around it has the same name."""
    return type(layer).__name__ == "Linear4bit" and isinstance(layer, nn.Linear)


def _float(tensor: Tensor) -> Tensor:
    """A copy on the CPU; float32 unless it holds integers."""
    value = tensor.detach()
    value = value.to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
    return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value


@torch.no_grad()
def _dequantised(layer: nn.Linear) -> nn.Linear:
    """A plain layer with the weights of a 4-bit layer, read through its own arithmetic: W = (I Wᵀ)ᵀ.

    bitsandbytes stores the weights in different ways, which may change with the first forward pass.
    """
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    own: Any = layer
    bias, own.bias = layer.bias, None
    rows = layer(torch.eye(layer.in_features, device=layer.weight.device, dtype=torch.bfloat16))
    own.bias = bias
    plain.weight = nn.Parameter(rows.t().to("cpu", torch.float32).contiguous(), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().to("cpu", torch.float32), requires_grad=False)
    return plain


def _enable(model: nn.Module, enabled: bool) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(enabled)


def _probe(model: PreTrainedModel) -> Tensor:
    """Ids spread over the vocabulary, (1, T)."""
    embeddings: Any = model.get_input_embeddings()
    count = min(PROBE, getattr(model.config, "max_position_embeddings", None) or PROBE)
    return torch.linspace(0, embeddings.weight.shape[0] - 1, count).long()[None]


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The logits or, for a scalar model, the raw scores at every token, (1, T, V) or (1, T, 1)."""
    transformer: Any = model.base_model
    head: Any = model.get_output_embeddings() or getattr(model, HEAD)
    mask = torch.ones_like(ids)
    logits: Tensor = head(transformer(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state)
    return logits


def _check(base: Tensor, adapted: Tensor, result: Tensor) -> None:
    change = (adapted - base).abs().max().item()
    gap = (adapted - result).abs().max().item()
    rounding = ROUNDING * max(1.0, adapted.abs().max().item())
    if not gap <= rounding + LOST * change:
        raise UserError(
            f"the merged model differs from base plus adapter by {gap:.2g} in a logit that the adapter changes by "
            f"{change:.2g}, so it was not saved. Name other layers in model.lora.target_modules."
        )
