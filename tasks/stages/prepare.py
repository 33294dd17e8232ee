"""Stage `prepare`: data and tokenizer. Text becomes rows once; what is dropped is counted and listed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from helpdesk.generate import generate
from helpdesk.world import World
from rlhf_core.models.bpe import train_tokenizer
from rlhf_core.models.store import load_config, load_tokenizer, save_tokenizer
from rlhf_core.models.tokens import encode_prompt, encode_response, ready_tokenizer
from tasks.common.source import ModelSource, model_source
from tasks.data.clean import PAIRED_KINDS, SURROGATE, Cleaned, check_dropped, clean, split_by_prompt, to_prepared
from tasks.data.data_card import card_markdown, data_card
from tasks.data.fields import Message
from tasks.data.formats import RawRow
from tasks.data.kinds import check_model
from tasks.data.readers import read_rows
from tasks.files.jsonl import write_jsonl
from tasks.params.schema import Params
from tasks.runtime.stage import main, open_stage, write_json

OUT = "data/prepared"
Files = dict[str, list[dict[str, Any]]]


def prepare() -> None:
    """Build or load the data, split it by prompt, make or load the tokenizer, write the data card."""
    datasets.disable_progress_bars()
    with open_stage("prepare") as stage:
        params = stage.params
        source = model_source(params.model)
        work = _help_desk if params.prepare.format == "helpdesk" else _user_data
        tokenizer, files, card = work(params, source)
        folder = stage.out(OUT)
        for name, rows in files.items():
            write_jsonl(folder / f"{name}.jsonl", rows)
        save_tokenizer(tokenizer, folder / "tokenizer")
        write_json(folder / "card.json", card)
        (folder / "card.md").write_text(card_markdown(card), encoding="utf-8")
        stage.log({f"rows/{name}": float(len(rows)) for name, rows in files.items()})


def _help_desk(params: Params, source: ModelSource) -> tuple[PreTrainedTokenizerBase, Files, dict[str, Any]]:
    """The embedded default, generated from the seed."""
    world = World.load(Path(params.prepare.path))
    desk = generate(
        world,
        params.run.seed,
        threads=params.prepare.threads,
        demonstrations=params.prepare.demonstrations,
        prompts_train=params.prepare.prompts,
    )
    files = {
        "threads": desk.threads,
        "demonstrations_train": desk.demonstrations,
        "demonstrations_development": desk.prompts_development,
        "prompts_train": desk.prompts_train,
        "prompts_development": desk.prompts_development,
        "prompts_test": desk.prompts_test,
    }
    tokenizer = _tokenizer(source, _texts(desk.threads), params.model.vocabulary)
    rows = [
        RawRow(file=name, line=line, prompt=row["prompt"], response=row["response"])
        for name in ("threads", "demonstrations_train", "demonstrations_development", "prompts_test")
        for line, row in enumerate(files[name], 1)
    ]
    cleaned = _clean(rows, tokenizer, params, source)
    # Written by us: a row that had to be dropped, other than a repetition, would be a fault of the world file.
    check_dropped(cleaned, max_dropped=0.0)
    return tokenizer, files, data_card("the help desk, generated from run.seed", "helpdesk", cleaned, files)


def _user_data(params: Params, source: ModelSource) -> tuple[PreTrainedTokenizerBase, Files, dict[str, Any]]:
    """The user's own rows: read, cleaned, split by prompt."""
    section = params.prepare
    path = None if section.hub else Path(section.path)
    rows = read_rows(path, section.hub, section.format, section.answer_pattern, section.preference_base)
    rows = rows[: section.limit]
    kind = next((row.kind for row in rows if not row.fault), "")
    check_model(kind, from_scratch=source.config is not None)
    texts = [text for row in rows for text in row.texts if not SURROGATE.search(text)]
    tokenizer = _tokenizer(source, texts, params.model.vocabulary)
    cleaned = _clean(rows, tokenizer, params, source)
    check_dropped(cleaned, section.max_dropped)
    held_out = {"development": section.development_fraction, "test": section.test_fraction}
    if kind in PAIRED_KINDS:
        held_out["judge"] = section.judge_fraction
    splits = split_by_prompt(cleaned.rows, {"train": 1 - sum(held_out.values()), **held_out}, params.run.seed)
    files = to_prepared(splits, kind, params.collect.scale)
    card = data_card(section.hub or Path(section.path).name, kind, cleaned, files)
    if source.config is not None:
        files["threads"] = files["demonstrations_train"]
    return tokenizer, files, card


def _clean(rows: Sequence[RawRow], tokenizer: PreTrainedTokenizerBase, params: Params, source: ModelSource) -> Cleaned:
    def count_tokens(prompt: list[Message], response: str) -> tuple[int, int]:
        return len(encode_prompt(tokenizer, prompt)), len(encode_response(tokenizer, response))

    config = load_config(source.config or source.folder or Path())
    return clean(
        rows,
        count_tokens=count_tokens,
        max_prompt_tokens=params.prepare.max_prompt_tokens,
        max_response_tokens=params.prepare.max_response_tokens,
        context=getattr(config, "max_position_embeddings", None),
        scale=params.collect.scale,
    )


def _texts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [text for row in rows for text in (*(m["content"] for m in row["prompt"]), row["response"])]


def _tokenizer(source: ModelSource, texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """The chosen model's tokenizer, or one fitted to the texts where the model is trained from scratch."""
    if source.folder is not None:
        return ready_tokenizer(load_tokenizer(source.folder))
    return ready_tokenizer(train_tokenizer(texts, vocabulary))


if __name__ == "__main__":
    main(prepare)
