"""How much memory each stage will need, estimated from the model's config and params.yaml before anything starts.

A trained model holds weights, gradients, AdamW's two moments and one more copy during its step, all float32: 20
bytes a weight; a frozen one 4. A layer keeps about 32 values of the model's width for each token until the backward
pass, and one for each token it looks back at; the logits come on top. Fitted to two Llama-style models on CPU, where
it lies 10 to 30 % above what was measured: an upper bound of the right size.
"""

from dataclasses import dataclass
from typing import Any

from tasks.params.schema import Params, algorithm_of

PROCESS = 0.7e9  # bytes of a stage's process before it loads a model: torch, transformers, datasets, MLflow
TRAINED, FROZEN = 20, 4  # bytes a weight
WIDTHS_KEPT = 32  # values a layer keeps for each token and each unit of width
LOGIT_COPIES = 2  # logits and their log-softmax
SAMPLED_ROWS = 128  # rlhf_core.models.sampling.Sampler.rows


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a causal language model that its memory depends on."""

    weights: int
    layers: int
    width: int
    heads: int
    vocabulary: int


@dataclass(frozen=True)
class Need:
    """Bytes that a stage needs: for weights with their optimiser state, and for one batch on its way through."""

    stage: str
    models: float
    activations: float

    @property
    def total(self) -> float:
        """All of it, the process itself included."""
        return PROCESS + self.models + self.activations


def model_shape(config: Any) -> ModelShape:
    """Return the sizes of the model a transformers config describes, counting its weights without allocating any."""
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
    """Return what each stage that loads a model needs."""
    trained, frozen = TRAINED * shape.weights, FROZEN * shape.weights
    sampling = _sampling(shape, params)
    reward = params.reward.micro_batch_size * 2
    needs = [
        Need("sft", trained, _training(shape, params, params.sft.micro_batch_size)),
        Need("collect", frozen, sampling),
        Need("reward", trained + frozen, max(_training(shape, params, reward, logits=False), sampling)),
        *(_policy(shape, params, name) for name in params.policy.algorithms),
        Need("evaluate", 4 * frozen, sampling),  # policy, SFT model, judge, reward model
    ]
    if is_from_scratch:
        needs.insert(0, Need("base", trained, _training(shape, params, params.base.micro_batch_size)))
    return needs


def _policy(shape: ModelShape, params: Params, name: str) -> Need:
    """A policy is trained, with a critic where there is one; reference and reward model are frozen."""
    algorithm, section = algorithm_of(params, name), getattr(params.policy, name)
    if algorithm.data == "none":
        return Need(f"policy@{name}", 0, 0)
    samples = algorithm.data in ("rollouts", "best_of_n")
    needs = algorithm.needs
    trained = 2 if needs.critic else 1
    frozen = 2 if samples else 1
    if needs.trust_region:
        frozen += 1  # π_old
    weights = (trained * TRAINED + frozen * FROZEN) * shape.weights
    rows = section.micro_batch_size * (2 if algorithm.data in ("pairs", "unpaired") else 1)
    activations = _training(shape, params, rows) * trained
    return Need(f"policy@{name}", weights, max(activations, _sampling(shape, params) if samples else 0))


def _training(shape: ModelShape, params: Params, rows: int, *, logits: bool = True) -> float:
    """Bytes of one micro-batch of `rows` forward and backward."""
    tokens = _tokens(params)
    value = 2 if params.run.precision == "bf16" else 4  # bytes
    layer = tokens * rows * (WIDTHS_KEPT * shape.width + shape.heads * tokens) * value
    head = LOGIT_COPIES * rows * params.prepare.max_response_tokens * shape.vocabulary * 4 if logits else 0
    return shape.layers * layer + head


def _sampling(shape: ModelShape, params: Params) -> float:
    """Bytes of sampling SAMPLED_ROWS responses at once: keys and values of every layer, and one row of logits each."""
    cache = 2 * shape.layers * SAMPLED_ROWS * _tokens(params) * shape.width * 4
    return cache + LOGIT_COPIES * SAMPLED_ROWS * shape.vocabulary * 4


def _tokens(params: Params) -> int:
    return params.prepare.max_prompt_tokens + params.prepare.max_response_tokens
