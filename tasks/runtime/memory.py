"""Estimate the memory that each stage needs, from the model's config and the parameters, before anything starts.

A model in training holds weights, gradients and AdamW's two moments, all in float32: 16 bytes per weight, or 10 with
8-bit moments. A frozen model holds 4, or 2 in bf16, or about 0.6 in 4 bits. With LoRA, all models of a stage share one
frozen base, and only their adapters are trained; saving merges a float32 copy in main memory. Under bf16 autocast a
float32 weight that the backward pass reads has a bf16 copy, 2 bytes.

Until the backward pass, a layer keeps for each token about 32 values per unit of width, and one value per head and
attended token; with gradient checkpointing only its float32 input, and one layer at a time keeps the rest. Logits, of
which the fast path holds a chunk, are added. The constants are fitted to Llama-style models on a CPU: what is measured
is 0.5 to 1.6 times the estimate without PROCESS. The larger factors are small models, for which the allocator's own
memory counts.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from rlhf_core.algorithms.base.algorithm import Algorithm, Method
from rlhf_core.common.lora import Lora
from tasks.files import declared
from tasks.files.declared import Loads
from tasks.params.derived import stage_of
from tasks.params.schema import Params, algorithm_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GB = 1e9
PROCESS = 0.7e9  # bytes of a stage's process before it loads a model: torch, transformers, datasets, MLflow
MOMENTS = {"adamw": 8, "adamw_8bit": 2}  # bytes per weight
TRAINED = 4 + 4  # bytes per weight, and its gradient
FROZEN = {"fp32": 4.0, "bf16": 2.0}  # bytes per weight
FOUR_BIT = 0.5 + 4 / 64  # bytes per weight of a linear layer, with one float32 scale per 64 weights; the rest is bf16
CAST = 2  # bytes of the bf16 copy of a float32 weight
WIDTHS_KEPT = 32  # values that a layer keeps per token and unit of width
LOGIT_COPIES = 2  # logits and their log-softmax


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a causal language model that determine its memory.

    linear: weights of the linear layers but the head. sides: the sum of the inputs and outputs of these layers; an
    adapter of rank r on all of them has r times as many weights.
    """

    weights: int
    layers: int
    width: int
    heads: int
    vocabulary: int
    keys: int = 0  # width of the keys of a layer, smaller than `width` if heads share them; 0: as width
    linear: int = 0
    sides: int = 0


@dataclass(frozen=True)
class Need:
    """Bytes that a stage needs for weights with their optimiser state, and for the activations of one batch."""

    stage: str
    models: float
    activations: float

    @property
    def total(self) -> float:
        """Total bytes, including the process itself."""
        return PROCESS + self.models + self.activations


def model_shape(config: "PretrainedConfig") -> ModelShape:
    """Return the sizes of the model that a transformers config describes. Weights are counted, not allocated."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlhf_core.models.adapters import linear_layers

    factory: Any = AutoModelForCausalLM  # untyped in transformers
    with torch.device("meta"):
        model = factory.from_config(config)
    text = config.get_text_config()
    layers: list[Any] = list(linear_layers(model).values())
    return ModelShape(
        weights=sum(parameter.numel() for parameter in model.parameters()),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        heads=text.num_attention_heads,
        vocabulary=text.vocab_size,
        keys=_key_width(text),
        linear=sum(layer.weight.numel() for layer in layers),
        sides=sum(sum(layer.weight.shape) for layer in layers),
    )


def _key_width(text: Any) -> int:
    """Width of the keys of one layer, from its key-value heads."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(heads * size)


def estimate(shape: ModelShape, params: Params, is_from_scratch: bool) -> list[Need]:
    """Return the need of each stage that loads a model: from its declaration or, for a policy, from its method."""
    needs = []
    for stage in declared.STAGES:
        if stage.name == declared.REWARDS and stage.loads is not None:
            names = [f"{stage.name}@{name}" for name in params.reward_models.names]
            needs += [_need(name, stage.loads, params.reward, shape, params) for name in names]
        elif stage.is_matrix:
            for name in params.policy.methods:
                if declared.of(stage_of(name)) == stage:
                    loads = _loads(algorithm_of(params, name))
                    needs.append(_need(stage_of(name), loads, params.policy.section(name), shape, params))
        elif stage.loads is not None and (is_from_scratch or stage != declared.BASE):
            section = getattr(params, stage.name) if stage.loads.trained else None
            needs.append(_need(stage.name, stage.loads, section, shape, params))
    return needs


def _loads(method: Method) -> Loads:
    """Return the models of a policy's training: policy and perhaps critic are trained; the others are frozen."""
    if not isinstance(method, Algorithm):  # it trains nothing
        return Loads()
    needs, data = method.needs, method.data
    return Loads(
        trained=1 + needs.critic,
        frozen=needs.any_reference + data.is_rewarded + needs.trust_region,  # a trust region also needs π_old
        is_sampling=data.is_rewarded,
        rows=data.unit_rows,
    )


def _need(stage: str, loads: Loads, section: Any, shape: ModelShape, params: Params) -> Need:
    """`section` is the section of params.yaml with the stage's micro_batch_size, if the stage trains."""
    lora = params.model.lora if stage != declared.BASE.name else None
    weights = _full(loads, section, shape, params) if lora is None else _adapted(loads, section, shape, params, lora)
    batch = 0.0
    if loads.trained:
        rows = loads.rows * section.micro_batch_size
        if section.micro_batch_tokens is not None:
            rows = max(loads.rows, min(rows, section.micro_batch_tokens // _tokens(params)))
        batch = loads.trained * _training(shape, params, rows, logits=loads.has_logits)
        if lora is not None and not on_gpu(params):
            batch = max(batch, 4 * shape.weights)  # the merged copy, when the batch is freed
    return Need(stage, weights, max(batch, _sampling(shape, params) if loads.is_sampling else 0))


def _trained(section: Any) -> int:
    """Bytes per trained weight."""
    return TRAINED + MOMENTS[section.optimizer]


def _frozen(shape: ModelShape, params: Params) -> float:
    """Bytes of one frozen model."""
    if params.model.dtype == "4bit":
        return FOUR_BIT * shape.linear + FROZEN["bf16"] * (shape.weights - shape.linear)
    return FROZEN[params.model.dtype] * shape.weights


def _full(loads: Loads, section: Any, shape: ModelShape, params: Params) -> float:
    """Bytes of a stage's models when whole models are trained."""
    trained = loads.trained * _trained(section) * shape.weights if loads.trained else 0
    cast = loads.trained * CAST * shape.weights if params.run.precision == "bf16" else 0
    return trained + cast + loads.frozen * _frozen(shape, params)


def _adapted(loads: Loads, section: Any, shape: ModelShape, params: Params, lora: Lora) -> float:
    """Bytes of a stage's models when adapters are trained on one frozen base.

    Where nothing is trained, a merged policy may be loaded beside the base.
    """
    bases = 1 if loads.trained or params.model.dtype != "fp32" else min(2, loads.frozen)
    adapter = lora.r * shape.sides
    trained = loads.trained * _trained(section) * adapter if loads.trained else 0
    is_cast = loads.trained and params.run.precision == "bf16" and params.model.dtype == "fp32"
    cast = CAST * shape.weights if is_cast else 0
    return bases * _frozen(shape, params) + trained + loads.frozen * 4 * adapter + cast


def _training(shape: ModelShape, params: Params, rows: int, *, logits: bool = True) -> float:
    """Return the bytes for the forward and backward pass of one micro-batch of `rows`."""
    tokens = _tokens(params)
    value = 2 if params.run.precision == "bf16" else 4  # bytes
    layer = tokens * rows * (WIDTHS_KEPT * shape.width + shape.heads * tokens) * value
    count = rows * params.prepare.max_response_tokens * shape.vocabulary if logits else 0
    if params.model.fast and params.model.attn_implementation == "sdpa":
        from rlhf_core.models.head import CHUNK  # imports torch

        count = min(count, CHUNK)
    head = LOGIT_COPIES * count * 4
    if params.model.gradient_checkpointing:
        return layer + shape.layers * tokens * rows * shape.width * 4 + head
    return shape.layers * layer + head


def _sampling(shape: ModelShape, params: Params) -> float:
    """Return the bytes to sample responses: prepared weights, keys and values of every layer, one row of logits."""
    from rlhf_core.models.linear import BUDGET  # imports torch
    from rlhf_core.models.sampling import LocalSampler

    value = 2 if params.run.precision == "bf16" else 4  # bytes
    copies = min(BUDGET, value * shape.weights) if params.model.fast else 0
    cache = 2 * shape.layers * LocalSampler.rows * _tokens(params) * (shape.keys or shape.width) * value
    return copies + cache + LOGIT_COPIES * LocalSampler.rows * shape.vocabulary * 4


def _tokens(params: Params) -> int:
    return params.prepare.max_prompt_tokens + params.prepare.max_response_tokens


def on_gpu(params: Params) -> bool:
    """Whether the stages run on a CUDA device."""
    import torch

    return params.run.device != "cpu" and torch.cuda.is_available()


def free_memory(params: Params) -> float:
    """Return the free bytes on the device that the stages use."""
    import torch

    return float(torch.cuda.mem_get_info()[0]) if on_gpu(params) else float(psutil.virtual_memory().available)
