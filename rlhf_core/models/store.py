"""Models on disk and in memory: policies, and models with one scalar per token (reward model, critic).

On disk, every model is a plain Hugging Face folder that `AutoModelForCausalLM` or, for scalar models,
`AutoModelForSequenceClassification` loads without this project. The config.json of a reward model stores its centring
and scale (`reward_offset`, `reward_scale`), which `ScalarModel` applies; the library itself returns raw scores. It also
stores the mean and standard deviation of the Likert scores used for training (`rating_mean`, `rating_std`).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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

from rlhf_core.common.device import AttentionName, Weights
from rlhf_core.common.errors import UserError
from rlhf_core.models.adapters import FOLDER, HEAD, has_adapter, save_adapter
from rlhf_core.models.attention import has_layouts, use_layouts
from rlhf_core.models.merging import merged

# Masks and frequencies that older versions of transformers saved with the weights.
CONSTANTS = re.compile(r"(attn|attention)\.(masked_)?bias$|inv_freq$|position_ids$")


def load_config(path: str | Path) -> PretrainedConfig:
    """Load the configuration of a causal language model from a checkpoint folder or a file, with all dropout off.

    Raises:
        UserError: transformers does not know the architecture, rejects a value, or has no causal language model for it.
    """
    try:
        config = without_dropout(AutoConfig.from_pretrained(str(path), trust_remote_code=False))
    except Exception as error:  # architectures raise many types of errors
        raise UserError(f"{path}: transformers cannot read the configuration: {_first_line(error)}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{path} has model_type {config.model_type}, which is not a causal language model. Use another model."
        )
    return config


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint folder or of a folder with only a tokenizer.

    Raises:
        UserError: the tokenizer is missing, or transformers cannot read it.
    """
    _require_checkpoint(path, "tokenizer_config.json")
    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # tokenizers raise many types of errors
        raise UserError(f"{path}: transformers cannot read the tokenizer: {_first_line(error)}") from error


def load_policy(path: str | Path, dtype: Weights = "fp32", attention: AttentionName = "sdpa") -> PreTrainedModel:
    """Load a causal language model with all dropout off.

    Weights that are trained must be float32 for every compute precision: a step of 1e-6 is lost in bf16
    (docs/pitfalls.md, 24). Frozen weights may be bf16, or 4-bit NormalFloat with the arithmetic in bf16 (Dettmers et
    al. 2023, arXiv:2305.14314). Both run only under bf16 autocast. Hidden states between the layers remain float32, so
    that a bf16 model and its float32 copy compute the same.

    Raises:
        UserError: `path` is not a checkpoint, has missing or unexpected tensors, or has NaN or infinite weights; or the
            model lacks the attention implementation.
    """
    _require_checkpoint(path, "config.json")
    return _load(AutoModelForCausalLM, path, load_config(path), dtype, attention)


def new_policy(config: PretrainedConfig, attention: AttentionName = "sdpa") -> PreTrainedModel:
    """Return a causal language model with random weights from torch's global generator."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        without_dropout(config), dtype=torch.float32, **_attention_argument(attention)
    )
    if attention == "sdpa":
        use_layouts(model)
    return model


class ScalarModel(nn.Module):
    """A transformer with one scalar per token: (score head - offset) / scale."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def offset(self) -> float:
        """The value subtracted from raw scores, so that the SFT policy's responses have mean 0."""
        return float(getattr(self.model.config, "reward_offset", 0.0))

    @property
    def scale(self) -> float:
        """The divisor of centred scores."""
        return float(getattr(self.model.config, "reward_scale", 1.0))

    @property
    def has_own_tokenizer(self) -> bool:
        """Whether the model reads texts with a tokenizer or a chat template that is not the policy's."""
        return bool(getattr(self.model.config, "reward_own_tokenizer", False))

    def set_own_tokenizer(self) -> None:
        """Note in the config, which is saved with the weights, that the model has its own tokenizer."""
        self.model.config.reward_own_tokenizer = True

    def set_normalisation(self, offset: float, scale: float) -> None:
        """Set centring and scale in the config, which is saved with the weights."""
        self.model.config.reward_offset = offset
        self.model.config.reward_scale = scale

    def set_rating_scale(self, mean: float, std: float) -> None:
        """Store mean and std of the Likert scores: raw score × std + mean is on the annotators' scale."""
        self.model.config.rating_mean = mean
        self.model.config.rating_std = std

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Return a float32 scalar at every token, (B, P+R). All three arguments are (B, P+R)."""
        return self.scalars(lambda model: plain_states(model, input_ids, attention_mask, position_ids))

    @property
    def has_layouts(self) -> bool:
        """Whether the transformer runs on packed tokens (`attention`)."""
        return has_layouts(self.model)

    def scalars(self, states_of: Callable[[PreTrainedModel], Tensor]) -> Tensor:
        """Return a float32 scalar for each hidden state, (...), from states_of(transformer), (..., d)."""
        head: Any = self.model.score
        hidden = states_of(self.model)
        # In full precision also under bf16 autocast, where scores would have only three digits.
        with torch.autocast(hidden.device.type, enabled=False):
            scalars: Tensor = head(hidden.to(head.weight.dtype)).squeeze(-1)
        return (scalars - self.offset) / self.scale


def plain_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
    """The last hidden states, (B, P+R, d). All three tensors are (B, P+R)."""
    transformer: Any = model.base_model
    states: Tensor = transformer(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    return states


def new_scalar_model(
    policy_path: str | Path, dtype: Weights = "fp32", attention: AttentionName = "sdpa"
) -> ScalarModel:
    """Load the policy's transformer with its vocabulary head replaced by a linear layer to one scalar.

    The head is drawn from torch's global generator and is float32.

    Raises:
        UserError: see `load_policy`; or the architecture has no sequence classification model.
    """
    _require_checkpoint(policy_path, "config.json")
    config = load_config(policy_path)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(
            f"{policy_path} has model_type {config.model_type}, which transformers cannot use as a reward model. "
            "Use another model."
        )
    config.num_labels = 1
    model = _load(AutoModelForSequenceClassification, policy_path, config, dtype, attention, has_new_head=True)
    model.score.float()
    initialise_head(model)
    return ScalarModel(model)


def initialise_head(model: Any) -> None:
    """Draw a score head with a tenth of the std 1/√(d+1) of Ziegler et al. 2019 (arXiv:1909.08593).

    Their head gives scores of unit variance before training, which one epoch on few pairs must first unlearn.
    """
    nn.init.normal_(model.score.weight, std=0.1 * (model.score.weight.shape[1] + 1) ** -0.5)


def load_scalar_model(path: str | Path, dtype: Weights = "fp32", attention: AttentionName = "sdpa") -> ScalarModel:
    """Load a reward model saved by `save_scalar_model`, including centring and scale. Its head is float32.

    Raises:
        UserError: see `load_policy`; or `path` contains another type of model.
    """
    _require_checkpoint(path, "config.json")
    config = load_config(path)
    if not any("SequenceClassification" in name for name in config.architectures or []):
        raise UserError(f"{path} contains {config.architectures}, not a reward model. Use the reward stage's folder.")
    model = _load(AutoModelForSequenceClassification, path, config, dtype, attention)
    if dtype != "fp32":  # scores need more than the three digits of bf16
        model.score.float().weight.data.copy_(_tensor(Path(path), f"{HEAD}.weight"))
    return ScalarModel(model)


def _tensor(folder: Path, name: str) -> Tensor:
    """One tensor of a checkpoint, as stored."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - not a dict
                found: Tensor = tensors.get_tensor(name)
                return found
    raise UserError(f"{folder}: {name} is missing. Restore the checkpoint.")


def _load(
    kind: Any,
    path: str | Path,
    config: PretrainedConfig,
    dtype: Weights,
    attention: AttentionName,
    *,
    has_new_head: bool = False,
) -> Any:
    """Load a checkpoint, and check that every tensor comes from the checkpoint and is finite.

    transformers initialises missing tensors randomly and ignores unexpected ones; both are errors here. With
    `has_new_head`, the score head may be missing and the vocabulary head is ignored.
    """
    try:
        model, found = kind.from_pretrained(
            str(path),
            config=config,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below
            output_loading_info=True,
            **_dtype_arguments(dtype),
            **_attention_argument(attention),
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        fix = "Restore the checkpoint." if attention == "sdpa" else "Remove model.attn_implementation."
        raise UserError(f"{path} could not be loaded: {_first_line(error)} {fix}") from error
    missing = set(found["missing_keys"])
    unexpected = {name for name in found["unexpected_keys"] if not CONSTANTS.search(name)}
    if has_new_head:
        missing, unexpected = {name for name in missing if not name.startswith("score.")}, set()
    wrong = [f"{name} is {list(have)}, not {list(needed)}" for name, have, needed in sorted(found["mismatched_keys"])]
    wrong += [f"{name} is missing" for name in sorted(missing)]
    wrong += [f"{name} is not part of the model" for name in sorted(unexpected)]
    broken = [name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    wrong += [f"{name} has NaN or infinite weights" for name in broken]
    if wrong:
        more = f" ({len(wrong) - 1} more tensors are wrong)" if len(wrong) > 1 else ""
        raise UserError(f"{path}: {wrong[0]}{more}. Use a checkpoint with matching weights and config.json.")
    if dtype != "fp32":
        model.get_input_embeddings().register_forward_hook(_float_output)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):  # needs weights of the type of its input
                module.float()
    if attention == "sdpa":
        use_layouts(model)
    return model


def _float_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """A forward hook: hidden states begin in float32, and so do all sums of them."""
    return output.float()


def _dtype_arguments(dtype: Weights) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the type of the weights."""
    if dtype == "4bit":
        from transformers import BitsAndBytesConfig

        quantisation = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        return {"dtype": torch.bfloat16, "quantization_config": quantisation}
    return {"dtype": torch.float32 if dtype == "fp32" else torch.bfloat16}


def _attention_argument(attention: AttentionName) -> dict[str, str]:
    """The argument that chooses an attention implementation; the default is sdpa where the model has it."""
    return {} if attention == "sdpa" else {"attn_implementation": attention}


def _first_line(error: Exception) -> str:
    """Return an exception's first two lines of text as one line, or its type if it has no text."""
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
    """Save float32 weights (safetensors), tokenizer, chat template and generation config to `path`.

    An adapter is merged into the weights, and also saved by itself in the subfolder `adapter`. `temperature` is the
    sampling temperature that the policy was trained for; `own_temperature` reads it.

    Raises:
        UserError: see `rlhf_core.models.merging.merged`.
    """
    if has_adapter(model):
        save_adapter(model, path / FOLDER)
        model = merged(model)
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
    """Return the temperature in a policy's generation config, 1 if it has none."""
    temperature = model.generation_config.temperature if model.generation_config is not None else None
    return 1.0 if temperature is None else float(temperature)


def save_scalar_model(model: ScalarModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Save a reward model: weights, tokenizer, and a config with centring and scale; an adapter as `save_policy`."""
    plain = model.model
    if has_adapter(plain):
        save_adapter(plain, path / FOLDER)
        plain = merged(plain)
    plain.config.pad_token_id = tokenizer.pad_token_id
    plain.save_pretrained(str(path))
    save_tokenizer(tokenizer, path)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Save a tokenizer and its chat template, without settings that depend on how it was loaded.

    transformers would store whether it was loaded offline, which would change the hash of the same checkpoint.
    """
    for remembered in ("local_files_only", "is_local"):
        tokenizer.init_kwargs.pop(remembered, None)
    tokenizer.save_pretrained(str(path))


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return every token that ends a response: the tokenizer's end token, then those of the generation config."""
    listed = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *listed]))


def without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """Set every dropout probability of a config to 0.

    RLHF compares log-probabilities of two forward passes; with dropout the ratio of equal policies differs from 1
    (docs/pitfalls.md, 10; Huang et al. 2024, arXiv:2403.17031).
    """
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):  # composite models have a config per part
            without_dropout(value)
        elif any(word in name for word in ("dropout", "pdrop", "layerdrop")) and type(value) in (int, float):
            setattr(config, name, 0.0)
    return config


def parameter_count(model: nn.Module) -> int:
    """Return the number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def _require_checkpoint(path: str | Path, *files: str) -> None:
    if not Path(path).is_dir():
        raise UserError(f"{path} is not a folder. Name a Hugging Face model folder.")
    for name in files:
        if not (Path(path) / name).is_file():
            raise UserError(
                f"{path} has no {name}, so it is not a checkpoint folder. Name a Hugging Face model folder."
            )


def fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add an embedding row, the mean of the others, if the tokenizer has a pad token that the model lacks.

    An embedding larger than the tokenizer, which many models have for speed, is kept.

    Raises:
        UserError: the tokenizer has other ids beyond the embedding, so it does not belong to the model.
    """
    embeddings: Any = model.get_input_embeddings()
    known = embeddings.weight.shape[0]
    ids = {number: token for token, number in tokenizer.get_vocab().items()}
    largest = max(ids)
    if largest < known:
        return
    if largest > known or tokenizer.pad_token_id != known:
        raise UserError(
            f"the tokenizer has ids up to {largest} ({ids[largest]!r}), but the model's embedding has {known} rows. "
            "Set model.path to a folder with the tokenizer and the weights of the same model."
        )
    model.resize_token_embeddings(known + 1, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        if table is None:  # the head of a reward model
            continue
        weight: Any = table.weight
        with torch.no_grad():
            weight[known:] = weight[:known].mean(0)
