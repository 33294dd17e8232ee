"""The score of an existing reward model, which has its own tokenizer and chat template."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_core.common.batch import Example, collate
from rlhf_core.common.errors import UserError
from rlhf_core.models.ensembles import ScalarEnsemble
from rlhf_core.models.forward import scores
from rlhf_core.models.responses import Responses
from rlhf_core.models.store import ScalarModel, load_scalar_model, load_tokenizer
from rlhf_core.models.tokens import Messages, encode_whole
from rlhf_core.scoring.rewards import ModelReward


@dataclass(frozen=True)
class ForeignReward:
    """Writes prompt and response with the model's own template, encodes that once, and scores it at its last token.

    context: the most tokens that the model takes; None if its config does not say.
    """

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    rows: int
    clamp: float | None = None
    context: int | None = None

    @torch.no_grad()
    def __call__(self, responses: Responses) -> Tensor:
        """Scores, (B,).

        Raises:
            UserError: the template rejects a prompt, or the model's context is too short.
        """
        texts = zip(responses.prompts, responses.texts, strict=True)
        examples = [self._example(prompt.messages, text) for prompt, text in texts]
        device = next(self.model.parameters()).device
        parts = []
        for start in range(0, len(examples), self.rows):
            batch = collate(examples[start : start + self.rows], pad_id=self.tokenizer.pad_token_id or 0)
            parts.append(scores(self.model, batch.to(device)).to(responses.device))
        judged = torch.cat(parts)
        return judged if self.clamp is None else judged.clamp(-self.clamp, self.clamp)

    def _example(self, messages: Messages, text: str) -> Example:
        example = encode_whole(self.tokenizer, messages, text, f"reward model {self.name}")
        length = len(example.prompt_ids) + len(example.response_ids)
        if self.context is not None and length > self.context:
            raise UserError(
                f"reward model {self.name} takes {self.context} tokens, but a prompt with its response has {length}. "
                "Use another reward model, or lower prepare.max_response_tokens."
            )
        return example


def reward_of(
    model: ScalarModel | ScalarEnsemble,
    own: PreTrainedTokenizerBase | None,
    name: str,
    rows: int,
    clamp: float | None = None,
) -> ModelReward | ForeignReward:
    """The reward of a model of the run: of the policy's token ids, or of texts if the model has its `own` tokenizer."""
    if own is None:
        return ModelReward(model, rows, clamp)
    first = model.models[0] if isinstance(model, ScalarEnsemble) else model
    return ForeignReward(name, model, own, rows, clamp, getattr(first.model.config, "max_position_embeddings", None))


def load_foreign(
    folder: Path, prepare: Callable[[nn.Module], nn.Module], rows: int, clamp: float | None
) -> ForeignReward:
    """Load a sequence-classification model with one score, its tokenizer and its chat template.

    Raises:
        UserError: it is another type of model, has several scores, lacks a chat template, or has fewer embedding rows
            than its tokenizer has tokens.
    """
    name = folder.name
    tokenizer = load_tokenizer(folder)
    if tokenizer.chat_template is None:
        raise UserError(
            f"reward model {name} has no chat template. Add the chat_template.jinja that it was trained with."
        )
    model: ScalarModel = load_scalar_model(folder)
    config: Any = model.model.config
    if config.num_labels != 1:
        raise UserError(f"reward model {name} has {config.num_labels} scores per text. Use a model with one score.")
    embedding: Any = model.model.get_input_embeddings()
    largest = max(tokenizer.get_vocab().values())
    if largest >= embedding.weight.shape[0]:
        raise UserError(
            f"reward model {name}: its tokenizer has ids up to {largest}, but its embedding has only "
            f"{embedding.weight.shape[0]} rows. Use the tokenizer and the weights of the same model."
        )
    context = getattr(config, "max_position_embeddings", None)
    return ForeignReward(name, prepare(model), tokenizer, rows, clamp, context)
