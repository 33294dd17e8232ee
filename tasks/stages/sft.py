"""Stage `sft`: supervised fine-tuning of the base model on demonstrations."""

from collections.abc import Iterator

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.models.store import fit_vocabulary, load_policy, load_tokenizer, save_policy
from tasks.common.models import StageModels
from tasks.common.preflight import ROWS, Check, policy_checks, prepared, require, run_checks
from tasks.common.rows import demonstration_units
from tasks.common.source import model_source, start_checkpoint
from tasks.common.train import train_and_save_policy
from tasks.files import paths
from tasks.params.schema import Params
from tasks.runtime.stage import main, open_stage

TRAIN = paths.rows(paths.PREPARED, "demonstrations", "train")


def sft() -> None:
    """Train by cross-entropy on response tokens, including the end token; without demonstrations, keep the model."""
    with open_stage("sft") as stage:
        if not TRAIN.is_file():  # the data has only prompts
            tokenizer, model = load_tokenizer(paths.TOKENIZER), load_policy(start_checkpoint(stage.params.model))
            fit_vocabulary(model, tokenizer)
            longest = stage.params.prepare.max_response_tokens
            save_policy(model, tokenizer, stage.out(paths.SFT), max_new_tokens=longest)
            return
        run_checks("sft", checks(stage.params))
        tokenizer, model = _start(stage.params)
        train_and_save_policy(
            stage,
            model,
            tokenizer,
            SFT(),
            demonstration_units(TRAIN, tokenizer),
            demonstration_units(paths.rows(paths.PREPARED, "demonstrations", "development"), tokenizer),
            stage.params.sft,
            paths.SFT,
        )


def checks(params: Params) -> Iterator[Check]:
    """Yield the checks before training. There are none without demonstrations."""
    require("sft")
    if not TRAIN.is_file():
        return
    tokenizer, model = _start(params)
    rows = demonstration_units(TRAIN, tokenizer, ROWS)
    yield from policy_checks(params, prepared(params, model), tokenizer, rows, params.sft.learning_rate)


def _start(params: Params) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Return the tokenizer, and the model before fine-tuning, with one embedding row for each token."""
    source = model_source(params.model)
    start, name = (source.folder, source.name) if source.folder else (paths.BASE, str(paths.BASE))
    models = StageModels(params, start, name, paths.TOKENIZER)
    return load_tokenizer(paths.TOKENIZER), models.policy("sft")


if __name__ == "__main__":
    main(sft)
