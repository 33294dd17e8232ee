"""Encode chat messages as token ids, exactly once. Training then uses these ids.

A prompt is the chat template's rendering with the generation prompt. A response is the ids of its text and one end
token. Text that spells a role or end token is encoded as ordinary text; only the template can write those tokens.
Prompts are never truncated: data preparation drops and counts prompts that are too long.
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
    """A prompt to sample from: its messages, their token ids, and the correct answer if the task has one."""

    messages: Messages
    ids: Sequence[int]
    answer: str | None = None


BREAK = "\U000f0000"  # a private-use character that marks where a text is cut before it is encoded

# For tokenizers without a chat template: each role name on its own line, the end token after each turn.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}:\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:\n{% endif %}"
)


def ready_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Add a chat template, and a pad token that differs from the end token, if the tokenizer lacks them.

    If pad and end token are equal, a reward model that looks for the last non-pad token stops one token early, and
    label masks made from pads hide the end token (docs/pitfalls.md, 3 and 7). The added pad token has a new id unless
    the tokenizer already contains it.

    Raises:
        UserError: the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end token, so no response can end. Set its eos_token.")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.padding_side = "left"
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Return the token ids of a prompt with the generation prompt and, if the model uses one, one beginning token."""
    return _render(tokenizer, messages, for_response=True)


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Return the token ids of a whole conversation, as reward models with a tokenizer of their own read it."""
    return _render(tokenizer, messages, for_response=False)


def begins_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes the beginning token at the start of every turn, as ChatML and Llama 2 do."""
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    try:
        ids = encode_conversation(tokenizer, turns)
    except Exception:  # templates raise errors of their own; one that takes one turn only has no other turns
        return False
    return ids.count(tokenizer.bos_token_id) > 1


def encode_whole(tokenizer: PreTrainedTokenizerBase, messages: Messages, response: str, name: str) -> Example:
    """Encode a prompt and a response at once, as a reward model reads them that has a tokenizer of its own.

    Raises:
        UserError: the model's chat template rejects the prompt; states `name`, that of the model.
    """
    try:
        ids = encode_conversation(tokenizer, [*messages, {"role": "assistant", "content": response}])
    except Exception as error:  # templates raise errors of their own
        raise UserError(f"{name}: its chat template rejects a prompt ({error}). Use another reward model.") from error
    return Example(ids[:1], ids[1:])


def same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers have the same tokens, special tokens and chat template."""
    special = [(each.bos_token_id, each.eos_token_id, each.pad_token_id) for each in (first, second)]
    return (
        first.get_vocab() == second.get_vocab()
        and special[0] == special[1]
        and first.chat_template == second.chat_template
    )


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, for_response: bool) -> list[int]:
    """Render messages with the chat template and encode the text once.

    Chat templates often write the beginning token, and the tokenizer adds another one (docs/pitfalls.md, 4). The
    prompt is therefore rendered to text and encoded without special tokens; if the template writes no beginning token,
    one is added.
    """
    control = control_tokens(tokenizer)
    spelt = any(control.search(message["content"]) for message in messages)
    conversation = list(messages)
    if spelt:
        conversation = [{**message, "content": _broken(message["content"], control)} for message in messages]
    text = str(tokenizer.apply_chat_template(conversation, add_generation_prompt=for_response, tokenize=False))
    ids = _encode_broken(tokenizer, text) if spelt else list(tokenizer.encode(text, add_special_tokens=False))
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id:
        start = 0
        while start < len(ids) and ids[start] == bos:
            start += 1
        # The model expects a beginning token only if the tokenizer's own encoding starts with it.
        wants_bos = start > 0 or list(tokenizer.encode("a"))[:1] == [bos]
        ids = [bos] * wants_bos + ids[start:]
    return ids


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a response and its end token, which is part of the response and is trained."""
    control = control_tokens(tokenizer)
    if control.search(text):
        ids = _encode_broken(tokenizer, _broken(text, control))
    else:
        ids = list(tokenizer.encode(text, add_special_tokens=False))
    return [*ids, tokenizer.eos_token_id]


def _broken(text: str, control: re.Pattern[str]) -> str:
    """Insert a BREAK after the first character of every control token that the text spells."""
    text = text.replace(BREAK, "")
    while control.search(text):  # repeat, since one token may contain another
        text = control.sub(lambda match: f"{match[0][0]}{BREAK}{match[0][1:]}", text)
    return text


def _encode_broken(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text piece by piece around each BREAK, so that no token crosses it."""
    first, *others = text.split(BREAK)
    ids = list(tokenizer.encode(first, add_special_tokens=False))
    newline = list(tokenizer.encode("\n", add_special_tokens=False))
    for piece in others:
        # After a newline, since some tokenizers put a space before the first word of their input.
        behind = list(tokenizer.encode(f"\n{piece}", add_special_tokens=False))
        whole = behind[: len(newline)] == newline
        ids += behind[len(newline) :] if whole else tokenizer.encode(piece, add_special_tokens=False)
    return ids


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return a pattern that finds the special tokens, with which templates write roles and ends, in texts.

    Added tokens that are not special, such as those around a model's reasoning, may occur in texts.
    """
    return _control_tokens(tokenizer, len(tokenizer), tuple(tokenizer.all_special_tokens))


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: PreTrainedTokenizerBase, size: int, named: tuple[str, ...]) -> re.Pattern[str]:
    # The arguments `size` and `named` are part of the cache key: they change when a token is added to the tokenizer.
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    spelt = [token for token in added | set(named) if token != tokenizer.unk_token and len(token) > 1]
    return re.compile("|".join(map(re.escape, sorted(spelt, key=len, reverse=True))) or "(?!)")


def encode_example(tokenizer: PreTrainedTokenizerBase, messages: Messages, response: str) -> Example:
    """Encode a prompt and a response as one training row."""
    return Example(encode_prompt(tokenizer, messages), encode_response(tokenizer, response))


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of a response for people and judges. Never encode it again for training (docs/pitfalls.md, 2)."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
