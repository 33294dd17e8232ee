"""Stage `sft`: supervised fine-tuning of the base model on demonstrations."""

from pathlib import Path

from rlhf_core.algorithms.sft import SFT
from rlhf_core.models import fit_vocabulary, load_policy, load_tokenizer
from tasks.rows import demonstration_units
from tasks.source import start_checkpoint
from tasks.stage import main, open_stage
from tasks.train import train_and_save_policy

OUT = "models/sft"


def sft() -> None:
    """Cross-entropy on response tokens only, the end token included."""
    with open_stage("sft") as stage:
        tokenizer = load_tokenizer("data/prepared/tokenizer")
        model = load_policy(start_checkpoint(stage.params.model))
        fit_vocabulary(model, tokenizer)
        train_and_save_policy(
            stage,
            model,
            tokenizer,
            SFT(),
            demonstration_units(Path("data/prepared/demonstrations_train.jsonl"), tokenizer),
            demonstration_units(Path("data/prepared/demonstrations_development.jsonl"), tokenizer),
            stage.params.sft,
            OUT,
        )


if __name__ == "__main__":
    main(sft)
