"""Stage `prepare`: data and tokenizer. Text becomes rows once; what is dropped is counted and listed."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_core.bpe import train_tokenizer
from rlhf_core.helpdesk.generate import generate
from rlhf_core.helpdesk.world import World
from rlhf_core.models import load_tokenizer
from rlhf_core.tokens import encode_prompt, encode_response, ready_tokenizer
from tasks.jsonl import write_jsonl
from tasks.params import Params
from tasks.source import ModelSource, model_source
from tasks.stage import main, open_stage

OUT = "data/prepared"
Row = dict[str, Any]


def prepare() -> None:
    """Build or load the data, split it by prompt, make or load the tokenizer, write the data card."""
    with open_stage("prepare") as stage:
        source = model_source(stage.params.model)
        files = _help_desk(stage.params)
        tokenizer = _tokenizer(source, files, stage.params.model.vocabulary)
        folder = stage.out(OUT)
        for name, rows in files.items():
            write_jsonl(folder / f"{name}.jsonl", rows)
        tokenizer.save_pretrained(str(folder / "tokenizer"))


def _help_desk(params: Params) -> dict[str, list[Row]]:
    world = World.load(Path(params.prepare.path))
    rows = generate(
        world, params.run.seed, threads=params.prepare.threads, demonstrations=params.prepare.demonstrations
    )
    return {
        "threads": rows.threads,
        "demonstrations_train": rows.demonstrations,
        "demonstrations_development": rows.prompts_development,
        "prompts_train": rows.prompts_train,
        "prompts_development": rows.prompts_development,
        "prompts_test": rows.prompts_test,
    }


def _tokenizer(source: ModelSource, files: dict[str, list[Row]], vocabulary: int) -> PreTrainedTokenizerBase:
    if source.folder is not None:
        return ready_tokenizer(load_tokenizer(source.folder))
    texts = [text for row in files["threads"] for text in (*(m["content"] for m in row["prompt"]), row["response"])]
    return ready_tokenizer(train_tokenizer(texts, vocabulary))


if __name__ == "__main__":
    main(prepare)
