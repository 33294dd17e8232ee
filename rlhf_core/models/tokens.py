"""From chat messages to token ids, once; after that, token ids are what is trained on.

A prompt is the chat template's rendering with the generation prompt; a response is its text's ids and one end token.
Text that spells a role or end token is encoded as text: only the template writes those tokens.
Prompts are never truncated: what does not fit is dropped, and counted, when the data is prepared.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from rlhf_core.common.batch import Example
from rlhf_core.common.errors import UserError

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Prompt:
    """A prompt to sample from: its messages, their token ids, and the right answer where the task has one."""

    messages: Messages
    ids: Sequence[int]
    answer: str | None = None


BREAK = "\U000f0000"  # a private character, which stands where a text must be cut before it is encoded

# For tokenizers that bring none: role names on lines of their own, the end token after each turn.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}:\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:\n{% endif %}"
)


def ready_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer what the pipeline needs: a chat template, and a pad token that is not its end token.

    With pad == end, a reward model that looks for the last non-pad token stops one token early, and label masks made
    from pads hide the end token (docs/pitfalls.md, 3 and 7). The pad token added here is a new id where the tokenizer
    has none.

    Raises:
        UserError: if the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end token (eos_token), so no response could end. Set eos_token in it.")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.padding_side = "left"
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of a prompt, the generation prompt included and exactly one beginning token if there is one.

    Chat templates often write the beginning token that the tokenizer adds again (docs/pitfalls.md, 4); rendering to
    text and encoding without special tokens leaves the template's alone, and one is added where the template has none.
    """
    control = control_tokens(tokenizer)
    spelt = any(control.search(message["content"]) for message in messages)
    conversation = list(messages)
    if spelt:
        conversation = [{**message, "content": _broken(message["content"], control)} for message in messages]
    text = str(tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False))
    ids = _encode_broken(tokenizer, text) if spelt else list(tokenizer.encode(text, add_special_tokens=False))
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id:
        start = 0
        while start < len(ids) and ids[start] == bos:
            start += 1
        # Only where the tokenizer's own encoding starts with it does the model expect one.
        wants_bos = start > 0 or list(tokenizer.encode("a"))[:1] == [bos]
        ids = [bos] * wants_bos + ids[start:]
    return ids


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a response and its end token: the end is part of the response and is trained."""
    control = control_tokens(tokenizer)
    if control.search(text):
        ids = _encode_broken(tokenizer, _broken(text, control))
    else:
        ids = list(tokenizer.encode(text, add_special_tokens=False))
    return [*ids, tokenizer.eos_token_id]


def _broken(text: str, control: re.Pattern[str]) -> str:
    """The text with a BREAK behind the first character of every control token that it spells."""
    text = text.replace(BREAK, "")
    while control.search(text):  # again, as one token may hold another
        text = control.sub(lambda match: f"{match[0][0]}{BREAK}{match[0][1:]}", text)
    return text


def _encode_broken(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text, encoded piece by piece around each BREAK, so that no token reaches over it."""
    first, *others = text.split(BREAK)
    ids = list(tokenizer.encode(first, add_special_tokens=False))
    newline = list(tokenizer.encode("\n", add_special_tokens=False))
    for piece in others:
        # Behind a newline, since some tokenizers put a space before the first word of what they are given.
        behind = list(tokenizer.encode(f"\n{piece}", add_special_tokens=False))
        whole = behind[: len(newline)] == newline
        ids += behind[len(newline) :] if whole else tokenizer.encode(piece, add_special_tokens=False)
    return ids


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds what no text may turn into: the special tokens, by which templates write roles and ends.

    Added tokens that are not special, such as those around a model's thoughts, are left to texts.
    """
    return _control_tokens(tokenizer, len(tokenizer), tuple(tokenizer.all_special_tokens))


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: PreTrainedTokenizerBase, size: int, named: tuple[str, ...]) -> re.Pattern[str]:
    # Size and named tokens are there for the cache: a tokenizer that was given a token is another one.
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    spelt = [token for token in added | set(named) if token != tokenizer.unk_token and len(token) > 1]
    return re.compile("|".join(map(re.escape, sorted(spelt, key=len, reverse=True))) or "(?!)")


def encode_example(tokenizer: PreTrainedTokenizerBase, messages: Messages, response: str) -> Example:
    """One training row from text."""
    return Example(encode_prompt(tokenizer, messages), encode_response(tokenizer, response))


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of a response, for people and text judges only; never encoded again for training (docs/pitfalls.md, 2)."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
