"""What to change when a stage runs out of memory, by the same estimate as `rlhf doctor`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from rlhf_core.common.errors import UserError
from tasks.files import declared, paths
from tasks.params.schema import Params
from tasks.params.sections import LoraParams
from tasks.runtime.memory import GB, ModelShape, estimate, free_memory, model_shape, on_gpu

# A change of one setting: its text, and the function that makes the changed parameters.
Change = tuple[str, Callable[[Params], Params]]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be allocated, on the CPU or on a GPU."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("DefaultCPUAllocator", "not enough memory", "CUDA out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def out_of_memory(stage: str, params: Params) -> UserError:
    """The error for a stage that ran out of memory."""
    return UserError(advice(stage, params, _shape(params), _memory(params)))


def advice(stage: str, params: Params, shape: ModelShape | None, memory: float) -> str:
    """Say what a stage needs of `memory` bytes, and which changes fit: single ones, or the first few together.

    A change must also need less than now, in case the estimate is too low.
    """
    now = None if shape is None else _need(stage, shape, params)
    if shape is None or now is None:
        return f"{stage} ran out of memory. Close other programs, or set run.parallel to 1."
    limit = min(memory, now)
    said = f"{stage} ran out of memory. It needs about {now / GB:.2g} GB; {memory / GB:.2g} GB are available."

    def fits(change: Callable[[Params], Params]) -> bool:
        return (_need(stage, shape, change(params)) or now) < limit

    settings = _settings(stage, params)
    single = [next((text for text, change in steps if fits(change)), None) for steps in settings]
    if any(single):
        return f"{said}\nEach of these alone would fit: {'; '.join(text for text in single if text)}."
    largest = [steps[-1] for steps in settings]
    for count in range(2, len(largest) + 1):
        if fits(partial(_all, largest[:count])):
            return f"{said}\nThese together would fit: {'; '.join(text for text, _ in largest[:count])}."
    return f"{said}\nNo setting would make it fit. Use a smaller model, or lower prepare.max_response_tokens."


def _all(changes: Sequence[Change], params: Params) -> Params:
    for _, change in changes:
        params = change(params)
    return params


def _need(stage: str, shape: ModelShape, params: Params) -> float | None:
    """The bytes that a stage needs; None if it loads no model."""
    return {need.stage: need.total for need in estimate(shape, params, is_from_scratch=True)}.get(stage)


def _settings(stage: str, params: Params) -> list[list[Change]]:
    """The settings that save memory, and for each its changes from the smallest on."""
    settings: list[list[Change]] = []
    key, section = _section(stage, params)
    size = getattr(section, "micro_batch_size", 1)
    halves = [size >> count for count in range(1, size.bit_length())]
    if halves:
        settings.append(
            [(f"{key}.micro_batch_size {half}", partial(_with_micro_batch, stage, half)) for half in halves]
        )
    if section is not None and not params.model.gradient_checkpointing:
        settings.append([("model.gradient_checkpointing true", partial(_with_model, gradient_checkpointing=True))])
    if stage != declared.BASE.name and params.model.dtype == "fp32":
        settings.append([("model.dtype bf16 with run.precision bf16", _in_bf16)])
    if stage != declared.BASE.name and params.model.lora is None:
        settings.append([("model.lora.r 16", partial(_with_model, lora=LoraParams(r=16)))])
    return settings


def _with_model(params: Params, **changes: Any) -> Params:
    return replace(params, model=replace(params.model, **changes))


def _in_bf16(params: Params) -> Params:
    return replace(params, model=replace(params.model, dtype="bf16"), run=replace(params.run, precision="bf16"))


def _section(stage: str, params: Params) -> tuple[str, Any]:
    """The key and the section of a stage's training; None if it does not train."""
    name, _, method = stage.partition("@")
    if method:
        return f"policy.{method}", params.policy.section(method)
    section = getattr(params, name, None)
    return name, section if hasattr(section, "micro_batch_size") else None


def _with_micro_batch(stage: str, size: int, params: Params) -> Params:
    name, _, method = stage.partition("@")
    section = replace(_section(stage, params)[1], micro_batch_size=size)
    if method:
        policy: Any = params.policy
        return replace(params, policy=replace(policy, **{method: section}))
    changed: dict[str, Any] = {name: section}
    return replace(params, **changed)


def _memory(params: Params) -> float:
    """The bytes that the stage could use: what is free, and what its process has."""
    import torch

    if on_gpu(params):
        return float(torch.cuda.mem_get_info()[1])
    return free_memory(params) + psutil.Process().memory_info().rss


def _shape(params: Params) -> ModelShape | None:
    """The shape of the model, from the first config that exists; None if there is none yet."""
    from transformers import AutoConfig

    for path in (paths.SFT, paths.BASE, Path(params.model.path)):
        file = path / "config.json" if path.is_dir() else path
        if file.is_file():
            config = AutoConfig.from_pretrained(str(file), trust_remote_code=False)
            if path.is_file():  # trained from scratch
                config.vocab_size = params.model.vocabulary
            return model_shape(config)
    return None
