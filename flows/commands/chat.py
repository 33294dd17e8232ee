"""`rlhf chat`: talk to a checkpoint, using only transformers and the checkpoint's tokenizer and chat template."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf_core.common.errors import UserError
from rlhf_core.models.checkpoint import check_checkpoint
from tasks.files import paths


def talk(
    checkpoint: Path,
    prompt: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    out: Console,
    truncation: Mapping[str, Any] | None = None,
) -> None:
    """Answer `prompt`, or lines of input until an empty line. Each answer is printed token by token.

    truncation: `top_k`, `top_p` and `stop_strings` of transformers' generation config; those that are missing or None
    are the checkpoint's own.

    Raises:
        UserError: the folder is not a checkpoint of a language model with a chat template, or the conversation
            exceeds the model's context.
    """
    model, tokenizer = _load(checkpoint)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        settings["temperature"] = temperature
    settings |= {name: value for name, value in (truncation or {}).items() if value is not None}

    from rlhf_core.common.seeding import seed_everything

    seed_everything(seed, "chat")
    if prompt is not None:
        _answer(model, tokenizer, [{"role": "user", "content": prompt}], settings)
        return
    out.print(f"Chat with {checkpoint}. Enter an empty line to quit.", style="dim")
    messages: list[dict[str, str]] = []
    while line := _ask():
        messages.append({"role": "user", "content": line})
        answer = _answer(model, tokenizer, messages, settings)
        messages.append({"role": "assistant", "content": answer})


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _known() -> str:
    """Say which checkpoints can be talked to."""
    folders = [paths.BASE, paths.SFT, *sorted(paths.POLICIES.glob("*"))]
    if found := [str(folder) for folder in folders if (folder / "config.json").is_file()]:
        return f"Choose from: {', '.join(found)}."
    return "There is none in models yet: start `rlhf run`, or apply an experiment with: dvc exp apply NAME"


def _load(checkpoint: Path) -> tuple[Any, Any]:
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint} {'is no folder' if checkpoint.exists() else 'does not exist'}.\n{_known()}")
    check_checkpoint(checkpoint, str(checkpoint))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
    if tokenizer.chat_template is None:
        raise UserError(f"{checkpoint} has no chat template.\nUse a checkpoint of this pipeline, such as models/sft.")
    model: Any = AutoModelForCausalLM.from_pretrained(str(checkpoint))
    return model.eval(), tokenizer


def _answer(model: Any, tokenizer: Any, messages: list[dict[str, str]], settings: dict[str, Any]) -> str:
    """Print one answer token by token and return it."""
    import torch
    from transformers import TextStreamer

    from rlhf_core.models.tokens import encode_prompt

    # As in training, text that the user types never becomes a role or end token.
    inputs = torch.tensor([encode_prompt(tokenizer, messages)])
    length, context = inputs.shape[1], getattr(model.config, "max_position_embeddings", None)
    if context is not None and length + settings["max_new_tokens"] > context:
        raise UserError(
            f"{length} tokens of conversation plus {settings['max_new_tokens']} new tokens exceed the model's context "
            f"of {context}.\nStart a new conversation, or lower --max-new-tokens."
        )
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = model.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), streamer=streamer, tokenizer=tokenizer, **settings
    )
    return str(tokenizer.decode(ids[0, length:], skip_special_tokens=True))
