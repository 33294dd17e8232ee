"""LoRA adapters through peft: add one to a model, save it in peft's format, and load it on the base that it belongs to.

An adapter's weights are float32, whatever the type of the frozen weights. A scalar model's score head is new, so it is
trained in full and saved with the adapter (`modules_to_save` of peft). peft's files do not say which weights the
adapter was trained on, so `base.json` beside them holds a digest of the base.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_core.common.errors import UserError
from rlhf_core.common.lora import ALL_LINEAR, Lora
from rlhf_core.models.checkpoint import ADAPTER_CONFIG

FOLDER = "adapter"  # in the folder of the merged model
BASE = "base.json"
WEIGHTS = "adapter_model.safetensors"
NAME = "default"  # peft's name of the only adapter
PREFIX = "base_model.model."  # of the names in peft's files
HEAD = "score"


@dataclass(frozen=True)
class Base:
    """The checkpoint that an adapter belongs to: a name for people, and a digest of its weights."""

    name: str
    weights_sha256: str


def has_adapter(model: nn.Module) -> bool:
    """Whether a model has an adapter that is not merged."""
    return getattr(model, "adapter_base", None) is not None


def add_adapter(model: PreTrainedModel, lora: Lora, base: Base) -> None:
    """Freeze a model and add a new adapter. A is drawn from torch's global generator and B is 0: no output changes.

    Raises:
        UserError: the model lacks a layer that `target_modules` names; the message lists those it has.
    """
    from peft import LoraConfig

    names = _targets(model, lora)
    _inject(
        model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            target_modules=names,
            fan_in_fan_out=_is_transposed(model, names),
            task_type="CAUSAL_LM" if _head(model) is None else "SEQ_CLS",
        ),
        base,
    )


def _inject(model: PreTrainedModel, config: Any, base: Base) -> None:
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, model, adapter_name=NAME)  # freezes all other weights
    for _, parameter in adapter_parameters(model):
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    own: Any = model
    own.adapter_base = base


def adapter_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The names and weights of a model's adapter and of its score head, which are the only trained ones."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name or name.startswith(f"{HEAD}."):
            yield name, parameter


def _head(model: PreTrainedModel) -> Any:
    """The score head of a scalar model; None for a language model."""
    return getattr(model, HEAD, None)


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers that an adapter can have, by name: all linear ones but the head."""
    heads = (model.get_output_embeddings(), _head(model))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not any(module is head for head in heads)
    }


def _targets(model: PreTrainedModel, lora: Lora) -> list[str]:
    """The names of the layers to adapt, for peft. Raises UserError if one does not exist."""
    layers = linear_layers(model)
    known = sorted({name.rpartition(".")[2] for name in layers})
    chosen = lora.target_modules
    if chosen == ALL_LINEAR:
        return known
    if isinstance(chosen, str):
        found = [name for name in layers if re.fullmatch(chosen, name)]
        missing = [] if found else [chosen]
    else:
        found = sorted(set(chosen))
        missing = [part for part in found if not any(f".{name}".endswith(f".{part}") for name in layers)]
    if missing:
        raise UserError(
            f"model.lora.target_modules has {missing[0]!r}, but the model has no such layer. "
            f"Choose from: {', '.join(known)}; or set it to {ALL_LINEAR}."
        )
    return found


def _is_transposed(model: PreTrainedModel, names: list[str]) -> bool:
    """Whether the adapted layers store the transpose of their weights, as GPT-2's do."""
    layers = linear_layers(model).items()
    chosen = [module for name, module in layers if name in names or name.rpartition(".")[2] in names]
    return any(isinstance(module, Conv1D) for module in chosen)


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Save a model's adapter, and its score head if it has one, in the format of `PeftModel.from_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    base: Base = model.adapter_base  # type: ignore[assignment]
    peft_config: Any = model.peft_config
    content = {
        **json.loads(json.dumps(peft_config[NAME].to_dict(), default=sorted)),  # sets, in an order that is the same
        "base_model_name_or_path": base.name,
        "inference_mode": True,
        "modules_to_save": None if _head(model) is None else [HEAD],
    }
    tensors = {_saved(name): weight.detach().cpu().contiguous() for name, weight in adapter_parameters(model)}
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    _write_json(folder / ADAPTER_CONFIG, content)
    _write_json(folder / BASE, asdict(base))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _saved(name: str) -> str:
    """The name of an adapter's weight in peft's files."""
    return PREFIX + name.replace(f".{NAME}.", ".")


def belongs(folder: Path, base: Base) -> bool:
    """Whether `folder` holds an adapter of this base."""
    return (folder / BASE).is_file() and _base_of(folder).weights_sha256 == base.weights_sha256


def _base_of(folder: Path) -> Base:
    try:
        return Base(**json.loads((folder / BASE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder} has no valid {BASE}, which names its base model. Restore the folder.") from error


def load_adapter(model: PreTrainedModel, folder: Path, base: Base) -> None:
    """Add the adapter in `folder`, and its score head if it has one, to a model that is `base`.

    Raises:
        UserError: the adapter belongs to another base, or its files are incomplete.
    """
    from peft import LoraConfig

    own = _base_of(folder)
    if own.weights_sha256 != base.weights_sha256:
        raise UserError(
            f"{folder} is an adapter of {own.name} with the weights {own.weights_sha256[:12]}, but {base.name} has "
            f"{base.weights_sha256[:12]}. Use the adapter with its own base, or use the merged folder {folder.parent}."
        )
    try:
        config = LoraConfig.from_pretrained(str(folder))
        tensors = load_file(str(folder / WEIGHTS))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} could not be loaded: {error}. Restore the folder.") from error
    config.modules_to_save, config.inference_mode = None, False
    _inject(model, config, base)
    _fill(model, tensors, folder)


@torch.no_grad()
def _fill(model: PreTrainedModel, tensors: dict[str, Tensor], folder: Path) -> None:
    weights = {_saved(name): weight for name, weight in adapter_parameters(model)}
    wrong = sorted(weights.keys() ^ tensors.keys())
    wrong += [name for name in weights.keys() & tensors.keys() if weights[name].shape != tensors[name].shape]
    wrong += [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if wrong:
        raise UserError(f"{folder}: {wrong[0]} is missing, does not fit the model, or is not finite. Restore it.")
    for name, weight in weights.items():
        weight.copy_(tensors[name])
