"""Models on disk and in memory: policies, and models with one scalar per token (reward model, critic).

On disk everything is a plain Hugging Face folder that `AutoModelForCausalLM` or, for scalar models,
`AutoModelForSequenceClassification` loads without this project. Centring and scale of a reward model stand in its
config.json (`reward_offset`, `reward_scale`) and are applied by `ScalarModel`, so raw scores stay the library's; so do
the mean and standard deviation of the Likert scores it was fitted to (`rating_mean`, `rating_std`).
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_core.common.errors import UserError

# Masks and frequencies that older versions of the library saved beside the weights.
CONSTANTS = re.compile(r"(attn|attention)\.(masked_)?bias$|inv_freq$|position_ids$")


def load_config(path: str | Path) -> PretrainedConfig:
    """The configuration of a causal language model in a checkpoint folder or in a file, with every dropout off.

    Raises:
        UserError: if transformers does not know the architecture, does not take a value of it, or cannot make a
            language model of it.
    """
    try:
        config = without_dropout(AutoConfig.from_pretrained(str(path), trust_remote_code=False))
    except Exception as error:  # of as many kinds as there are architectures
        raise UserError(f"{path} holds no configuration that transformers takes: {_first_line(error)}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{path} has model_type {config.model_type}, which is no causal language model. Take another.")
    return config


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, or of a folder that holds a tokenizer alone.

    Raises:
        UserError: if there is none, or transformers cannot read it.
    """
    _require_checkpoint(path, "tokenizer_config.json")
    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # of as many kinds as there are tokenizers
        raise UserError(f"{path} holds no tokenizer that transformers reads: {_first_line(error)}") from error


def load_policy(path: str | Path) -> PreTrainedModel:
    """A causal language model with float32 weights and every dropout off.

    Weights stay float32 whatever the compute precision is: a step of 1e-6 vanishes in bf16 (docs/pitfalls.md, 24).

    Raises:
        UserError: if `path` is no checkpoint, lacks a tensor or has one too many, or holds NaN or infinite weights.
    """
    _require_checkpoint(path, "config.json")
    return _load(AutoModelForCausalLM, path, load_config(path))


def new_policy(config: PretrainedConfig) -> PreTrainedModel:
    """A causal language model with fresh weights from torch's global generator."""
    return AutoModelForCausalLM.from_config(without_dropout(config), dtype=torch.float32)


class ScalarModel(nn.Module):
    """A transformer with one scalar per token: (score head - offset) / scale."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def offset(self) -> float:
        """What is subtracted from raw scores, so that the SFT policy's responses have mean 0."""
        return float(getattr(self.model.config, "reward_offset", 0.0))

    @property
    def scale(self) -> float:
        """What centred scores are divided by."""
        return float(getattr(self.model.config, "reward_scale", 1.0))

    def set_normalisation(self, offset: float, scale: float) -> None:
        """Store centring and scale in the config, which is saved with the weights."""
        self.model.config.reward_offset = offset
        self.model.config.reward_scale = scale

    def set_rating_scale(self, mean: float, std: float) -> None:
        """Store what Likert scores were standardised with: raw score × std + mean is on the annotators' scale."""
        self.model.config.rating_mean = mean
        self.model.config.rating_std = std

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """(B, P+R) three times -> scalars at every token, (B, P+R), float32."""
        transformer: Any = self.model.base_model
        hidden = transformer(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        head: Any = self.model.score
        # In full precision also under bf16 autocast, which would leave scores three digits.
        with torch.autocast(hidden.device.type, enabled=False):
            scalars: Tensor = head(hidden.to(head.weight.dtype)).squeeze(-1)
        return (scalars - self.offset) / self.scale


def new_scalar_model(policy_path: str | Path) -> ScalarModel:
    """The policy's transformer with its vocabulary head replaced by a linear layer to one scalar.

    The head is drawn out of torch's global generator with a tenth of the std 1/√(d+1) of Ziegler et al. 2019: their
    head gives unit-variance scores before any training, which a single epoch on few pairs first has to unlearn.

    Raises:
        UserError: as `load_policy` does.
    """
    _require_checkpoint(policy_path, "config.json")
    config = load_config(policy_path)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"{policy_path} has model_type {config.model_type}, which cannot give a score. Take another.")
    config.num_labels = 1
    model = _load(AutoModelForSequenceClassification, policy_path, config, has_new_head=True)
    nn.init.normal_(model.score.weight, std=0.1 * (model.score.weight.shape[1] + 1) ** -0.5)
    return ScalarModel(model)


def load_scalar_model(path: str | Path) -> ScalarModel:
    """A reward model saved by `save_scalar_model`, its centring and scale included.

    Raises:
        UserError: if `path` holds another kind of model, or as `load_policy` does.
    """
    _require_checkpoint(path, "config.json")
    config = load_config(path)
    if not any("SequenceClassification" in name for name in config.architectures or []):
        raise UserError(f"{path} holds {config.architectures}, not a reward model. Name the folder of a reward stage.")
    return ScalarModel(_load(AutoModelForSequenceClassification, path, config))


def _load(kind: Any, path: str | Path, config: PretrainedConfig, *, has_new_head: bool = False) -> Any:
    """The model of a checkpoint in float32, every tensor of it from the checkpoint and finite.

    transformers fills a tensor that is missing with random numbers and drops one that it has no place for. Where
    `has_new_head`, the score head is meant to be new and the vocabulary head to be dropped.
    """
    try:
        model, found = kind.from_pretrained(
            str(path),
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} could not be loaded: {_first_line(error)} Restore the checkpoint.") from error
    missing = set(found["missing_keys"])
    unexpected = {name for name in found["unexpected_keys"] if not CONSTANTS.search(name)}
    if has_new_head:
        missing, unexpected = {name for name in missing if not name.startswith("score.")}, set()
    wrong = [f"{name} is {list(have)}, not {list(needed)}" for name, have, needed in sorted(found["mismatched_keys"])]
    wrong += [f"{name} is missing" for name in sorted(missing)]
    wrong += [f"{name} belongs to no part of the model" for name in sorted(unexpected)]
    broken = [name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    wrong += [f"{name} holds NaN or infinite weights" for name in broken]
    if wrong:
        more = f" ({len(wrong) - 1} more tensors are wrong)" if len(wrong) > 1 else ""
        raise UserError(f"{path}: {wrong[0]}{more}. Name a checkpoint whose weights and config.json belong together.")
    return model


def _first_line(error: Exception) -> str:
    """What an exception says, on one line; its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> None:
    """Write weights (safetensors), tokenizer, chat template and generation config to `path`.

    `temperature` is the one that the policy was trained to be sampled at; `own_temperature` reads it back.
    """
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(stop_tokens(model, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(str(path))
    save_tokenizer(tokenizer, path)


def own_temperature(model: PreTrainedModel) -> float:
    """The temperature in a policy's generation config, 1 where there is none."""
    temperature = model.generation_config.temperature if model.generation_config is not None else None
    return 1.0 if temperature is None else float(temperature)


def save_scalar_model(model: ScalarModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write a reward model: weights, tokenizer, and a config that holds centring and scale."""
    model.model.config.pad_token_id = tokenizer.pad_token_id
    model.model.save_pretrained(str(path))
    save_tokenizer(tokenizer, path)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write a tokenizer and its chat template; what it remembers of how it was loaded is left out.

    The library would write whether it was offline, and the same checkpoint would have another hash.
    """
    for remembered in ("local_files_only", "is_local"):
        tokenizer.init_kwargs.pop(remembered, None)
    tokenizer.save_pretrained(str(path))


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token that ends a response: the tokenizer's end token first, then the generation config's."""
    listed = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *listed]))


def without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """Set every dropout probability of a config to 0.

    RLHF compares log-probabilities of two forward passes; dropout makes the ratio of equal policies differ from 1
    (docs/pitfalls.md, 10; Huang et al. 2024, arXiv:2403.17031).
    """
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):  # composite models keep a config for each part
            without_dropout(value)
        elif any(word in name for word in ("dropout", "pdrop", "layerdrop")) and type(value) in (int, float):
            setattr(config, name, 0.0)
    return config


def parameter_count(model: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def _require_checkpoint(path: str | Path, *files: str) -> None:
    if not Path(path).is_dir():
        raise UserError(f"{path} is not a folder. Name a checkpoint folder, such as models/sft.")
    for name in files:
        if not (Path(path) / name).is_file():
            raise UserError(f"{path} holds no {name}, so it is not a checkpoint folder. Name one, such as models/sft.")


def fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add an embedding row for the pad token that the tokenizer has and the model lacks, the mean of the others.

    Models whose embedding is larger than the tokenizer, as many are for speed, keep it.

    Raises:
        UserError: if the tokenizer has other ids beyond the embedding, and so does not belong to the model.
    """
    embeddings: Any = model.get_input_embeddings()
    known = embeddings.weight.shape[0]
    ids = {number: token for token, number in tokenizer.get_vocab().items()}
    largest = max(ids)
    if largest < known:
        return
    if largest > known or tokenizer.pad_token_id != known:
        raise UserError(
            f"the tokenizer has ids up to {largest} ({ids[largest]!r}), and the model's embedding has {known} rows. "
            "Set model.path to a folder that holds the tokenizer and the weights of one model."
        )
    model.resize_token_embeddings(known + 1, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight: Any = table.weight
        with torch.no_grad():
            weight[known:] = weight[:known].mean(0)
