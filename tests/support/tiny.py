"""Tiny models, tokenizers and batches made locally: a few thousand weights, float32, CPU."""

from dataclasses import replace

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from rlhf_core.common.batch import Example, Rollout, collate
from rlhf_core.common.responses import Response
from rlhf_core.loops.common.resume import ResumeStore
from rlhf_core.loops.common.run import Run
from rlhf_core.models.responses import Responses
from rlhf_core.models.store import new_policy
from rlhf_core.models.tokens import Prompt

PAD, BEGIN, END, STOP, USER, ASSISTANT = range(6)
WORDS = ["<pad>", "<begin>", "<end>", "<stop>", "<user>", "<assistant>", "a", "b", "c", "d", "e", "f"]
VOCABULARY = len(WORDS)
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_tokenizer(**changes):
    """One token per word. By default, a separate pad token and no beginning token in the template."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="f"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    settings = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "f", "chat_template": TEMPLATE}
    settings |= {"additional_special_tokens": ["<user>", "<assistant>"]} | changes
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{key: value for key, value in settings.items() if value is not None}
    )


def rotary(seed=0, **changes):
    """Config of a Llama-style model with rotary positions, and a seed for its weights."""
    settings = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    settings |= {"initializer_range": 0.3, "tie_word_embeddings": False}
    settings |= {"pad_token_id": PAD, "bos_token_id": None, "eos_token_id": END}
    return _policy(LlamaConfig(**settings | changes), seed)


def learned(seed=0, **changes):
    """Config of a GPT-2 with learned positions, and a seed for its weights."""
    settings = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    settings |= {"initializer_range": 0.3, "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": END}
    return _policy(GPT2Config(**settings | changes), seed)


FAMILIES = {"rotary": rotary, "learned": learned}


def _policy(config, seed):
    torch.manual_seed(seed)
    return new_policy(config).eval()


def examples(count=6, seed=0, longest=5):
    """Rows of different lengths: prompts of 1 to `longest` words, and responses of as many words plus an end token."""
    generator = torch.Generator().manual_seed(seed)

    def words(length):
        return torch.randint(6, VOCABULARY, (length,), generator=generator).tolist()

    lengths = torch.randint(1, longest + 1, (count, 2), generator=generator).tolist()
    return [Example(words(prompt), [*words(response), END]) for prompt, response in lengths]


def prompts_of(texts):
    """Prompts whose tokens are the words of `texts`."""
    return [Prompt([{"role": "user", "content": text}], [WORDS.index(word) for word in text.split()]) for text in texts]


def responses_of(prompts, responses, ended=True, pad=PAD):
    """Responses with the given ids and the matching words as text. `ended` is one value for all, or one each."""
    flags = [ended] * len(responses) if isinstance(ended, bool) else ended
    words = [" ".join(WORDS[token] for token in ids) for ids in responses]
    made = [Response(list(ids), text, flag) for ids, text, flag in zip(responses, words, flags, strict=True)]
    return Responses([Prompt([], ids) for ids in prompts], made, pad)


def rollout_of(batch, *, old_logprobs, ref_logprobs=None, **given):
    """A Rollout of a Batch in which every response has ended. Scores are 0 unless given."""
    given = {"scores": torch.zeros(batch.rows)} | given
    return Rollout.of(
        batch,
        old_logprobs=old_logprobs,
        ref_logprobs=old_logprobs if ref_logprobs is None else ref_logprobs,
        ended=torch.ones(batch.rows, dtype=torch.bool),
        row_weights=torch.ones(batch.rows),
        **given,
    )


def paired(rows):
    """Units of two rows each, chosen and rejected, with their preferences."""
    return [
        (replace(chosen, preference=1.0), replace(rejected, preference=0.0))
        for chosen, rejected in zip(rows[0::2], rows[1::2], strict=True)
    ]


def mask_batch(response_mask):
    """A Batch whose rows have one prompt token and the given response mask; for algorithms, which see no tokens."""
    lengths = response_mask.sum(-1).int().tolist()
    return collate([Example([USER], [6] * length) for length in lengths], PAD)


def quiet_run(folder, name="test", seed=0, **changes):
    """A Run that resumes from `folder`."""
    return Run(seed=seed, name=name, resume=ResumeStore(folder), **changes)
