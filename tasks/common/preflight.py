"""Checks of a training stage's model and data, run before it trains and by `rlhf doctor --stage`.

The script of each training stage has a function `checks(params)`, which reads a few rows of the stage's inputs and
yields named checks. Models are loaded by the first check and freed before the training loads its own.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.common.batch import Example, Unit
from rlhf_core.common.errors import UserError
from rlhf_core.loops.common import preflight
from rlhf_core.models.store import stop_tokens
from rlhf_core.models.tokens import begins_turns
from tasks.common.accelerator import accelerator_of
from tasks.common.models import StageModels
from tasks.files import declared
from tasks.params.schema import Params

ModelT = TypeVar("ModelT", bound=torch.nn.Module)
Check = tuple[str, Callable[[], None]]
ROWS = 4  # rows of each file that are checked


def run_checks(stage: str, checks: Iterable[Check]) -> None:
    """Run a stage's checks before it trains; print how many passed.

    Raises:
        UserError: a check failed; the message names it.
    """
    count = 0
    # Random numbers drawn here must not change the training's random streams.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, check in checks:
            try:
                check()
            except UserError as error:
                raise UserError(f"preflight of {stage}, {name}: {error}") from error
            count += 1
    if count:  # best-of-N sampling trains nothing
        sys.stderr.write(f"{stage:12} preflight: {count} checks passed\n")


def require(stage: str) -> None:
    """Check that the inputs of a stage exist.

    Raises:
        UserError: an input is missing; the message names it and the stage that makes it.
    """
    for folder in declared.of(stage).inputs:
        if not folder.is_dir():
            raise UserError(
                f"stage {stage} reads {folder}, which does not exist. "
                f"Make it with: rlhf run --only {' or '.join(declared.makers(folder))}"
            )


def prepared(params: Params, model: ModelT) -> ModelT:
    """The model on the stage's device and in its precision, in evaluation mode."""
    ready: ModelT = accelerator_of(params).prepare_model(model, evaluation_mode=True)
    return ready.eval()


def tolerance(params: Params) -> float:
    """The difference that rounding may cause in the stage's precision."""
    return preflight.TOLERANCE[params.run.precision]


def policy_checks(
    params: Params,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    units: Sequence[Unit],
    learning_rate: float,
    *,
    is_sampled: bool = False,
) -> Iterator[Check]:
    """Yield the checks of a language model and its rows. A sampled response may have been cut off."""
    rows = [example for unit in units for example in unit]
    pad, stops = pad_token(tokenizer), stop_tokens(policy, tokenizer)
    yield from row_checks(rows, tokenizer, is_sampled=is_sampled)
    if not is_sampled:
        yield "end token", partial(preflight.check_end, rows, stops, pad)
    yield "padding", partial(preflight.check_padding, policy, rows, pad, tolerance(params))
    yield "fast path", partial(preflight.check_fast_path, policy, rows, pad)
    yield "learning rate", partial(preflight.check_learning_rate, policy, learning_rate)


def from_sft_checks(
    params: Params,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    units: Sequence[Unit],
    learning_rate: float,
    models: StageModels,
) -> Iterator[Check]:
    """Yield the checks of a policy that starts from the SFT model: its rows, perhaps sampled, and its reference."""
    yield from policy_checks(params, policy, tokenizer, units, learning_rate, is_sampled=True)
    reference = prepared(params, models.reference())
    rows = [example for unit in units for example in unit]
    pad, rounding = pad_token(tokenizer), tolerance(params)
    yield "reference", partial(preflight.check_reference, policy, reference, rows, pad, rounding)


def row_checks(rows: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, is_sampled: bool) -> Iterator[Check]:
    """Yield the checks of rows alone. A sampled response may contain any token."""
    ids = [[*row.prompt_ids, *([] if is_sampled else row.response_ids)] for row in rows]
    yield "masks", partial(preflight.check_masks, rows)
    yield (
        "beginning token",
        partial(
            preflight.check_beginning,
            ids,
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            begins_turns=begins_turns(tokenizer),
        ),
    )


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The pad token's id. Stage prepare always sets one."""
    assert tokenizer.pad_token_id is not None
    return int(tokenizer.pad_token_id)
