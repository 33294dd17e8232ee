"""Stage `base`: a small language model trained from scratch on raw text, or a manifest naming the user's model."""

from pathlib import Path

from transformers import AutoConfig

from rlhf_core.algorithms.sft import SFT
from rlhf_core.models import load_tokenizer, new_policy
from rlhf_core.seeding import seed_everything
from tasks.rows import demonstration_units
from tasks.source import model_source
from tasks.stage import Stage, main, open_stage, write_json
from tasks.train import train_and_save_policy

OUT = "models/base"


def base() -> None:
    """Train the base model, or record which one is used."""
    with open_stage("base") as stage:
        source = model_source(stage.params.model)
        if source.config is None:
            write_json(stage.out(OUT) / "model.json", source.manifest())
        else:
            _train(stage, source.config)


def _train(stage: Stage, config_file: Path) -> None:
    params = stage.params
    tokenizer = load_tokenizer("data/prepared/tokenizer")
    config = AutoConfig.from_pretrained(
        str(config_file),
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    seed_everything(params.run.seed, "base", "weights")
    train_and_save_policy(
        stage,
        new_policy(config),
        tokenizer,
        SFT(),
        demonstration_units(Path("data/prepared/threads.jsonl"), tokenizer),
        demonstration_units(Path("data/prepared/demonstrations_development.jsonl"), tokenizer),
        params.base,
        OUT,
    )


if __name__ == "__main__":
    main(base)
