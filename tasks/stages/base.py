"""Stage `base`: train a small language model from scratch on raw text, or write a manifest of the user's model."""

from collections.abc import Iterator
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.common.seeding import seed_everything
from rlhf_core.models.store import load_tokenizer
from tasks.common.models import model_from_scratch
from tasks.common.preflight import ROWS, Check, policy_checks, prepared, require, run_checks
from tasks.common.rows import text_units
from tasks.common.source import model_source
from tasks.common.train import train_and_save_policy
from tasks.files import paths
from tasks.params.schema import Params
from tasks.runtime.stage import Stage, main, open_stage, write_json

THREADS = paths.PREPARED / "threads.jsonl"


def base() -> None:
    """Train the base model by cross-entropy on every token, or record which model is used."""
    with open_stage("base") as stage:
        source = model_source(stage.params.model)
        if source.config is None:
            write_json(stage.out(paths.BASE) / "model.json", source.manifest())
        else:
            run_checks("base", checks(stage.params))
            _train(stage, source.config)


def checks(params: Params) -> Iterator[Check]:
    """Yield the checks before training. There are none if the user's own model is used."""
    require("base")
    source = model_source(params.model)
    if source.config is not None:
        tokenizer = load_tokenizer(paths.TOKENIZER)
        policy = prepared(params, model_from_scratch(params, _config(source.config, tokenizer)))
        rows = text_units(THREADS, tokenizer, ROWS)
        yield from policy_checks(params, policy, tokenizer, rows, params.base.learning_rate)


def _config(file: Path, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Return the configuration in a file, with the tokenizer's vocabulary size and special tokens."""
    config: PretrainedConfig = AutoConfig.from_pretrained(
        str(file),
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return config


def _train(stage: Stage, config_file: Path) -> None:
    params = stage.params
    tokenizer = load_tokenizer(paths.TOKENIZER)
    config = _config(config_file, tokenizer)
    seed_everything(params.run.seed, "base", "weights")
    train_and_save_policy(
        stage,
        model_from_scratch(params, config),
        tokenizer,
        SFT(),
        text_units(THREADS, tokenizer),
        text_units(paths.rows(paths.PREPARED, "demonstrations", "development"), tokenizer),
        params.base,
        paths.BASE,
    )


if __name__ == "__main__":
    main(base)
