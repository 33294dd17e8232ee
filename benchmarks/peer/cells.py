"""The cells of the comparison: the model, the rows and the response lengths, equal on both sides and in every step.

This module runs in the environments of both sides, so it imports only torch and transformers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAD, END, FIRST_WORD = 0, 1, 2
LONGEST_CONTEXT = 1024
EPOCHS = {"ppo": 4}  # passes over a rollout; TRL's default for PPO
PAIRED = ("dpo", "reward")
ONLINE = ("grpo", "ppo")
SHAPES = {
    "tiny": {"hidden": 128, "layers": 4, "vocabulary": 4096},
    "small": {"hidden": 384, "layers": 6, "vocabulary": 32_000},
}


@dataclass(frozen=True)
class Cell:
    """What one optimiser step trains.

    units: rows (sft), pairs (dpo, reward), prompts (grpo, ppo) per step. group: responses per prompt.
    prompt: tokens of each prompt. shortest, longest: response tokens with the end token, uniform between them.
    """

    method: str
    hidden: int
    layers: int
    vocabulary: int
    prompt: int
    units: int
    group: int = 1
    shortest: int = 8
    longest: int = 64

    @classmethod
    def named(cls, name: str) -> "Cell":
        """The cell `METHOD SIZE+PROMPT`, e.g. `grpo tiny256`.

        Raises:
            ValueError: there is no such cell.
        """
        method, _, place = name.partition(" ")
        size = place.rstrip("0123456789")
        if method not in METHODS or size not in SHAPES or size == place:
            raise ValueError(f"there is no cell {name!r}; a cell is a method ({', '.join(METHODS)}) and e.g. tiny256")
        units, group = (2, 8) if method == "grpo" else (8, 1)
        return cls(method=method, prompt=int(place[len(size) :]), units=units, group=group, **SHAPES[size])

    @property
    def rows(self) -> int:
        """Sequences per step."""
        return self.units * (2 if self.method in PAIRED else self.group)

    @property
    def epochs(self) -> int:
        """Passes over a rollout; 1 for fixed data."""
        return EPOCHS.get(self.method, 1)

    def lengths(self, step: int) -> list[int]:
        """Response tokens of each row of a step, the end token included."""
        draw = random.Random(f"lengths {step}")
        return [draw.randint(self.shortest, self.longest) for _ in range(self.rows)]

    def prompts(self, step: int) -> list[list[int]]:
        """The ids of the prompts of a step, one per unit."""
        draw = random.Random(f"prompts {step}")
        return [self._words(draw, self.prompt) for _ in range(self.units)]

    def responses(self, step: int) -> list[list[int]]:
        """The ids of the responses of a step on fixed data; the two of a pair are adjacent."""
        draw = random.Random(f"responses {step}")
        return [[*self._words(draw, length - 1), END] for length in self.lengths(step)]

    def _words(self, draw: random.Random, count: int) -> list[int]:
        return draw.choices(range(FIRST_WORD, self.vocabulary), k=count)


METHODS = ("grpo", "dpo", "ppo", "reward", "sft")
PLACES = ("tiny32", "tiny256", "small32", "small256")
CELLS = [f"{method} {place}" for place in PLACES for method in METHODS]


def text_of(ids: Sequence[int]) -> str:
    """The text whose tokens are these words."""
    return " ".join(f"w{token}" for token in ids)


def new_tokenizer(vocabulary: int) -> Any:
    """A tokenizer with one token per word w2, w3, ..., so that texts and ids correspond exactly."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<end>": END} | {f"w{token}": token for token in range(FIRST_WORD, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def write_model(cell: Cell, folder: Path) -> Path:
    """Write the cell's model, a Llama with random weights that depend only on its shape, and return its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = folder / f"{cell.hidden}-{cell.layers}-{cell.vocabulary}"
    if not (path / "config.json").is_file():
        heads = max(2, cell.hidden // 64)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=cell.vocabulary,
            hidden_size=cell.hidden,
            intermediate_size=4 * cell.hidden,
            num_hidden_layers=cell.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=LONGEST_CONTEXT,
            pad_token_id=PAD,
            eos_token_id=END,
            bos_token_id=None,
            tie_word_embeddings=True,
        )
        new_tokenizer(cell.vocabulary).save_pretrained(path)
        LlamaForCausalLM(config).save_pretrained(path)
    return path
