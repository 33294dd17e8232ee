"""Estimate the memory that each stage needs, from the model's config and params.yaml, before anything starts.

A model in training holds weights, gradients, AdamW's two moments and one more copy during a step, all in float32: 20
bytes per weight. A frozen model holds 4. Until the backward pass, a layer keeps for each token about 32 values per unit
of width, and one value per head and attended token. Logits are added. The constants are fitted to two Llama-style
models on a CPU; the estimate is 10 to 30 % above the measured memory.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_core.common.data import Data
from tasks.files import declared
from tasks.files.declared import Loads
from tasks.params.derived import stage_of
from tasks.params.schema import Params, algorithm_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESS = 0.7e9  # bytes of a stage's process before it loads a model: torch, transformers, datasets, MLflow
TRAINED, FROZEN = 20, 4  # bytes per weight
WIDTHS_KEPT = 32  # values that a layer keeps per token and unit of width
LOGIT_COPIES = 2  # logits and their log-softmax
SAMPLED_ROWS = 128  # rlhf_core.models.sampling.LocalSampler.rows


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a causal language model that determine its memory."""

    weights: int
    layers: int
    width: int
    heads: int
    vocabulary: int


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

    factory: Any = AutoModelForCausalLM  # untyped in transformers
    with torch.device("meta"):
        model = factory.from_config(config)
    text = config.get_text_config()
    return ModelShape(
        weights=sum(parameter.numel() for parameter in model.parameters()),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        heads=text.num_attention_heads,
        vocabulary=text.vocab_size,
    )


def estimate(shape: ModelShape, params: Params, is_from_scratch: bool) -> list[Need]:
    """Return the need of each stage that loads a model: from its declaration or, for a policy, from its method."""
    needs = []
    for stage in declared.STAGES:
        if stage.is_matrix:
            for name in params.policy.methods:
                if declared.of(stage_of(name)) == stage:
                    loads, section = _loads(params, name), params.policy.section(name)
                    needs.append(_need(stage_of(name), loads, section, shape, params))
        elif stage.loads is not None and (is_from_scratch or stage != declared.BASE):
            needs.append(_need(stage.name, stage.loads, getattr(params, stage.name), shape, params))
    return needs


def _loads(params: Params, name: str) -> Loads:
    """Return the models of a policy's training: policy and perhaps critic are trained; the others are frozen."""
    algorithm = algorithm_of(params, name)
    if algorithm.data == Data.NOTHING:
        return Loads()
    return Loads(
        trained=1 + algorithm.needs.critic,
        frozen=1 + algorithm.data.is_rewarded + algorithm.needs.trust_region,  # a trust region also needs π_old
        is_sampling=algorithm.data.is_rewarded,
        rows=1 if algorithm.data.is_rewarded else 2,
    )


def _need(stage: str, loads: Loads, section: Any, shape: ModelShape, params: Params) -> Need:
    """`section` is the section of params.yaml with the stage's micro_batch_size, if the stage trains."""
    weights = (loads.trained * TRAINED + loads.frozen * FROZEN) * shape.weights
    activations = 0.0
    if loads.trained:
        rows = loads.rows * section.micro_batch_size
        activations = loads.trained * _training(shape, params, rows, logits=loads.has_logits)
    return Need(stage, weights, max(activations, _sampling(shape, params) if loads.is_sampling else 0))


def _training(shape: ModelShape, params: Params, rows: int, *, logits: bool = True) -> float:
    """Return the bytes for the forward and backward pass of one micro-batch of `rows`."""
    tokens = _tokens(params)
    value = 2 if params.run.precision == "bf16" else 4  # bytes
    layer = tokens * rows * (WIDTHS_KEPT * shape.width + shape.heads * tokens) * value
    head = LOGIT_COPIES * rows * params.prepare.max_response_tokens * shape.vocabulary * 4 if logits else 0
    return shape.layers * layer + head


def _sampling(shape: ModelShape, params: Params) -> float:
    """Return the bytes to sample SAMPLED_ROWS responses at once: keys and values of every layer, one row of logits."""
    cache = 2 * shape.layers * SAMPLED_ROWS * _tokens(params) * shape.width * 4
    return cache + LOGIT_COPIES * SAMPLED_ROWS * shape.vocabulary * 4


def _tokens(params: Params) -> int:
    return params.prepare.max_prompt_tokens + params.prepare.max_response_tokens
