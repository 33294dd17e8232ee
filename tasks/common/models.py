"""The models of a stage: loaded in the types, with the adapters and on the paths that the section `model` asks for.

What is trained has float32 weights. What is frozen has weights of model.dtype, and training begins at the same values,
so policy and reference are the same model at the start. With model.lora, every model that starts from the stage's
checkpoint shares its frozen weights (`rlhf_core.models.sharing`).
"""

import sys
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel

from rlhf_core.common.seeding import seed_everything
from rlhf_core.models.adapters import FOLDER, Base, add_adapter, belongs, load_adapter
from rlhf_core.models.attention import has_layouts, use_layouts
from rlhf_core.models.checkpoint import weights_digest
from rlhf_core.models.checkpointing import checkpoint_layers
from rlhf_core.models.ensembles import ScalarEnsemble, load_reward_model
from rlhf_core.models.precision import set_compute
from rlhf_core.models.sharing import scalar_on, shared_copy
from rlhf_core.models.store import (
    ScalarModel,
    fit_vocabulary,
    load_policy,
    load_scalar_model,
    load_tokenizer,
    new_policy,
    new_scalar_model,
)
from tasks.common.accelerator import accelerator_of
from tasks.files import paths
from tasks.params.schema import Params

STORED = ("reward_", "rating_")  # prefixes of what a reward model's config stores beside its shape


class StageModels:
    """Loads the models of one stage that starts from the checkpoint `start`, by default the SFT model.

    `tokenizer`: a folder with a tokenizer for which the model may lack the row of its pad token.
    """

    def __init__(
        self, params: Params, start: Path = paths.SFT, name: str = str(paths.SFT), tokenizer: Path | None = None
    ) -> None:
        self.params, self.start, self.name, self.tokenizer = params, start, name, tokenizer
        self.accelerator = accelerator_of(params)  # checks the hardware

    @cached_property
    def _base(self) -> PreTrainedModel:
        """The frozen weights that models with adapters share, on the stage's device."""
        model: Any = self._load(self.start).requires_grad_(False).eval()
        return model if self.params.model.dtype == "4bit" else model.to(self.accelerator.device)

    @cached_property
    def _identity(self) -> Base:
        return Base(self.name, weights_digest(self.start))

    def policy(self, stream: str) -> PreTrainedModel:
        """The model to train. A new adapter is drawn from the random stream (run seed, `stream`, adapter)."""
        lora = self.params.model.lora
        if lora is None:
            return self._trained(self._load(self.start).float())
        model = shared_copy(self._base)
        seed_everything(self.params.run.seed, stream, "adapter")
        add_adapter(model, lora, self._identity)
        return self._trained(model)

    def reference(self) -> PreTrainedModel:
        """The frozen start of the training."""
        return self._frozen(self._load(self.start) if self.params.model.lora is None else shared_copy(self._base))

    def checkpoint(self, folder: Path) -> PreTrainedModel:
        """The frozen policy in `folder`.

        The merged weights of an adapter on the start are rounded only in float32: in bf16, rounding could undo the
        adapter. For other types the adapter is loaded on the shared start.
        """
        if not self._is_adapter(folder) or self.params.model.dtype == "fp32":
            return self._frozen(load_policy(folder, self.params.model.dtype, self.params.model.attn_implementation))
        model = shared_copy(self._base)
        load_adapter(model, folder / FOLDER, self._identity)
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
        return self._frozen(model)

    def new_reward_model(self) -> ScalarModel:
        """A scalar model to train: the start with a new score head, drawn from torch's global generator."""
        lora = self.params.model.lora
        if lora is None:
            return self._trained(self._new_scalar().float())
        scalar = scalar_on(self._base) or self._new_scalar()
        add_adapter(scalar.model, lora, self._identity)
        return self._trained(scalar)

    def reward_model(self, folder: Path) -> ScalarModel | ScalarEnsemble:
        """The frozen reward model or ensemble in `folder`."""
        return load_reward_model(folder, lambda member: self._frozen(self._scalar(member)))

    def critic(self, folder: Path) -> ScalarModel:
        """A scalar model to train that starts from the reward model in `folder`, with its centring."""
        scalar, lora = self._scalar(folder), self.params.model.lora
        if lora is None:
            return self._trained(scalar.float())
        if not self._is_adapter(folder):
            add_adapter(scalar.model, lora, Base(str(folder), weights_digest(folder)))
        return self._trained(scalar)

    def _scalar(self, folder: Path) -> ScalarModel:
        """The adapter in `folder` on the shared start if it belongs to it, else the merged model."""
        model = self.params.model
        scalar = scalar_on(self._base) if self._is_adapter(folder) else None
        if scalar is None:
            return load_scalar_model(folder, model.dtype, model.attn_implementation)
        load_adapter(scalar.model, folder / FOLDER, self._identity)
        stored: PretrainedConfig = AutoConfig.from_pretrained(str(folder))
        for name, value in vars(stored).items():
            if name.startswith(STORED):
                setattr(scalar.model.config, name, value)
        return scalar

    def _new_scalar(self) -> ScalarModel:
        scalar = new_scalar_model(self.start, self.params.model.dtype, self.params.model.attn_implementation)
        if self.tokenizer is not None:
            fit_vocabulary(scalar.model, load_tokenizer(self.tokenizer))
        return scalar

    def _is_adapter(self, folder: Path) -> bool:
        """Whether `folder` has an adapter that can be loaded on the shared start."""
        return self.params.model.lora is not None and belongs(folder / FOLDER, self._identity)

    def _load(self, folder: Path) -> PreTrainedModel:
        model = load_policy(folder, self.params.model.dtype, self.params.model.attn_implementation)
        if self.tokenizer is not None:
            fit_vocabulary(model, load_tokenizer(self.tokenizer))
        return model

    def _trained(self, model: Any) -> Any:
        return for_training(self.params, model)

    def _frozen(self, model: Any) -> Any:
        return _ready(self.params, model.requires_grad_(False).eval())


def model_from_scratch(params: Params, config: PretrainedConfig) -> PreTrainedModel:
    """A model with random weights from torch's global generator, to train."""
    model: PreTrainedModel = for_training(params, new_policy(config, params.model.attn_implementation))
    return model


def for_training(params: Params, model: Any) -> Any:
    """The same model, prepared for training on the paths that the section `model` asks for."""
    if params.model.gradient_checkpointing:
        checkpoint_layers(_transformer(model))
    return _ready(params, model)


def _ready(params: Params, model: Any) -> Any:
    transformer = _transformer(model)
    set_compute(model, params.run.precision)
    if not params.model.fast:
        if has_layouts(transformer):
            transformer.set_attn_implementation("sdpa")
    elif why := _why_not_fast(params, transformer):
        _say_plain(why)
    return model


def _transformer(model: Any) -> Any:
    return model.model if isinstance(model, ScalarModel) else model


def _why_not_fast(params: Params, model: PreTrainedModel) -> str | None:
    if params.model.attn_implementation != "sdpa":
        return f"model.attn_implementation is {params.model.attn_implementation}"
    return use_layouts(model)


@cache
def _say_plain(why: str) -> None:
    """Say once per process why models take the slower path."""
    sys.stderr.write(f"{'model':12} transformers' own forward pass and generate are used: {why}\n")
