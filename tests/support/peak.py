"""Measure the peak memory of one training step in a process of its own: python tests/support/peak.py JSON"""

import json
import sys
from pathlib import Path

import peft  # noqa: F401 - before memory is measured
import torch
from transformers import LlamaConfig

from rlhf_core.algorithms.base.config import OptimizerConfig
from rlhf_core.common.batch import Example, collate
from rlhf_core.common.lora import Lora
from rlhf_core.loops.common.optimizer import make_optimizer
from rlhf_core.models.adapters import Base, add_adapter
from rlhf_core.models.checkpointing import checkpoint_layers
from rlhf_core.models.forward import policy_outputs
from rlhf_core.models.store import new_policy

SHAPE = {
    "vocab_size": 512, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 8, "max_position_embeddings": 256,
}  # fmt: skip
PROMPT, RESPONSE = 64, 64


def main(lora: bool, checkpointing: bool, dtype: str, rows: int) -> None:
    """Print the bytes by which two steps raise the process's peak."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = peak()
    model = new_policy(LlamaConfig(**SHAPE))
    if lora:
        if dtype == "bf16":
            model.to(torch.bfloat16)
            model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.float())
        add_adapter(model, Lora(r=16), Base("test", "0"))
    if checkpointing:
        checkpoint_layers(model)
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = make_optimizer(OptimizerConfig(), [{"params": trained, "lr": 1e-4}])
    batch = collate([Example([7 + row] * PROMPT, [8] * RESPONSE) for row in range(rows)], 0)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = policy_outputs(model, batch).logprobs.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    sys.stdout.write(f"{peak() - before}\n")


def saved_bytes(lora: bool, checkpointing: bool, rows: int) -> int:
    """The bytes that autograd saves in a float32 forward pass, weights left out."""
    model = new_policy(LlamaConfig(**SHAPE))
    if lora:
        add_adapter(model, Lora(r=16), Base("test", "0"))
    if checkpointing:
        checkpoint_layers(model)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = collate([Example([7 + row] * PROMPT, [8] * RESPONSE) for row in range(rows)], 0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = policy_outputs(model.train(), batch)
    del outputs
    return sum(saved.values())


def peak() -> int:
    """The highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text()  # ru_maxrss begins with the parent's
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
