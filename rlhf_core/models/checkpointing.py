"""Gradient checkpointing: keep only the input of each layer, and compute the layer again in the backward pass.

Chen et al. 2016, arXiv:1604.06174. The gradients are the same; a step computes about a third more.
"""

from transformers import PreTrainedModel

from rlhf_core.common.errors import UserError


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Checkpoint every layer of a model while it trains, with torch's non-reentrant implementation.

    Raises:
        UserError: the architecture does not support it.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"model.gradient_checkpointing is true, but {type(model).__name__} does not support it. Set it to false."
        )
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()  # only the reentrant implementation needs inputs with a gradient
