"""Shapes of common language models, for an estimate without the model: `rlhf doctor --profile lora_8b --size 8B`."""

from typing import TYPE_CHECKING

from rlhf_core.common.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Name: the model whose shape it is, then layers, width, heads, key-value heads, feed-forward width, vocabulary, and
# whether the head is the embedding. From the models' config.json.
SIZES = {
    "135M": ("SmolLM2-135M", 30, 576, 9, 3, 1536, 49152, True),
    "0.5B": ("Qwen2.5-0.5B", 24, 896, 14, 2, 4864, 151936, True),
    "1B": ("Llama-3.2-1B", 16, 2048, 32, 8, 8192, 128256, True),
    "3B": ("Llama-3.2-3B", 28, 3072, 24, 8, 8192, 128256, True),
    "8B": ("Llama-3.1-8B", 32, 4096, 32, 8, 14336, 128256, False),
}


def described(size: str) -> str:
    """The model that a size stands for."""
    return SIZES[size][0]


def config_of(size: str) -> "PretrainedConfig":
    """Return the config of a Llama-style model of this size.

    Raises:
        UserError: the size is not in SIZES.
    """
    if size not in SIZES:
        raise UserError(f"--size {size} is not known. Choose the nearest of: {', '.join(SIZES)}.")
    from transformers import LlamaConfig

    _, layers, width, heads, key_value_heads, feed_forward, vocabulary, is_tied = SIZES[size]
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=width // heads,
        intermediate_size=feed_forward,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=is_tied,
    )


def narrow(config: "PretrainedConfig") -> "PretrainedConfig":
    """Return a small model with the proportions of a large one, to be timed in its place."""
    from copy import deepcopy

    small = deepcopy(config)
    factor = max(1, config.hidden_size // 512)
    small.num_attention_heads = max(1, config.num_attention_heads // factor)
    small.num_key_value_heads = max(1, config.num_key_value_heads // factor)
    small.num_attention_heads -= small.num_attention_heads % small.num_key_value_heads
    small.hidden_size = small.num_attention_heads * small.head_dim
    small.intermediate_size = config.intermediate_size // factor
    small.vocab_size = min(config.vocab_size, 8192)
    return small
