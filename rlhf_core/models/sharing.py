"""Several models on one frozen base: separate module trees that hold the same parameters.

Policy, reference, critic and reward model that start from the same checkpoint share its frozen weights. Each tree has
its own adapter, training mode and gradient checkpointing, so nothing is switched between their forward passes.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification, PreTrainedModel

from rlhf_core.models.store import ScalarModel, initialise_head

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def shared_copy(model: ModuleT) -> ModuleT:
    """A copy with the same frozen parameters and buffers. Parameters that are trained are copied."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*frozen, *model.buffers()]})


def scalar_on(policy: PreTrainedModel) -> ScalarModel | None:
    """A scalar model with the frozen transformer of `policy` and a new score head, as in `new_scalar_model`.

    None if transformers has no sequence classification model with that transformer.
    """
    if type(policy.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None
    tree = shared_copy(policy)
    config = tree.config
    config.num_labels = 1
    factory: Any = AutoModelForSequenceClassification  # untyped in transformers
    with torch.device("meta"):
        model = factory.from_config(config)
    if type(model.base_model) is not type(tree.base_model) or model.base_model is model:
        return None
    setattr(model, model.base_model_prefix, tree.base_model)
    for module in model.modules():  # the attention implementation is read from the config of each layer
        if hasattr(module, "config"):
            module.config = model.config
    model.config._attn_implementation = config._attn_implementation
    model.score.to_empty(device=policy.device)
    model.score.float().requires_grad_(False)
    initialise_head(model)
    return ScalarModel(model.train(policy.training))
