"""Stage `prepare`: data and tokenizer. Text becomes rows once; dropped rows are counted and listed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from rlhf_core.models.bpe import train_tokenizer
from rlhf_core.models.store import load_config, load_tokenizer, save_tokenizer
from rlhf_core.models.tokens import encode_prompt, encode_response, ready_tokenizer
from tasks.common.source import ModelSource, model_source
from tasks.data.clean import SURROGATE, Cleaned, check_dropped, clean, split_by_prompt, to_prepared
from tasks.data.data_card import card_markdown, data_card, dropped_text
from tasks.data.fields import Message
from tasks.data.formats import RawRow
from tasks.data.readers import kind_of, read_rows, with_file_sources
from tasks.files.jsonl import write_jsonl
from tasks.files.paths import CARD, PREPARED, TOKENIZER
from tasks.params.schema import Params
from tasks.problems.material import Files, Generated, Material
from tasks.problems.problem import Problem
from tasks.problems.table import generated_problem, problem_of
from tasks.runtime.stage import main, open_stage, write_json

OUT = str(PREPARED)


def prepare() -> None:
    """Generate or read the data, split it by prompt, make or load the tokenizer, and write the data card."""
    datasets.disable_progress_bars()
    with open_stage("prepare") as stage:
        tokenizer, files, card = _prepared(stage.params, model_source(stage.params.model))
        folder = stage.out(OUT)
        for name, rows in files.items():
            write_jsonl(folder / f"{name}.jsonl", rows)
        save_tokenizer(tokenizer, folder / TOKENIZER.name)
        write_json(folder / CARD.name, card)
        (folder / "card.md").write_text(card_markdown(card), encoding="utf-8")
        stage.log({f"rows/{name}": float(len(rows)) for name, rows in files.items()})


def _prepared(params: Params, source: ModelSource) -> tuple[PreTrainedTokenizerBase, Files, dict[str, Any]]:
    """Return the tokenizer, the files by name, and the data card. Log how many rows were dropped."""
    given = _material(params)
    given.problem.check_model(from_scratch=source.config is not None)
    tokenizer = _tokenizer(source, given.texts, params.model.vocabulary)
    cleaned = _clean(given.rows, tokenizer, params, source)
    check_dropped(cleaned, given.max_dropped)
    files = given.files(cleaned)
    card = data_card(given.source, given.problem.kind, cleaned, files)
    if said := dropped_text(card):
        sys.stdout.write(f"{'prepare':12} {said}. {CARD} lists them.\n")
    if source.config is not None:  # the text that the base model is trained on
        files.setdefault("threads", files["demonstrations_train"])
    return tokenizer, files, card


def _material(params: Params) -> Material:
    """Return the rows of prepare.format: generated, or read from prepare.path or prepare.hub."""
    section = params.prepare
    generated = generated_problem(section.format)
    if isinstance(generated, Generated):
        return generated.generate(params)
    path = None if section.hub else Path(section.path)
    rows = read_rows(path, section.hub, section.format, section.answer_pattern, section.preference_base)
    if section.file_sources:
        rows = with_file_sources(rows)
    problem = problem_of(kind_of(rows))
    rows = rows[: section.limit]
    texts = [text for row in rows for text in row.texts if not SURROGATE.search(text)]
    name = section.hub or Path(section.path).name
    return Material(problem, name, rows, texts, section.max_dropped, lambda cleaned: _split(problem, cleaned, params))


def _split(problem: Problem, cleaned: Cleaned, params: Params) -> Files:
    """Split the user's rows by prompt into training, development and test, and a split for a judge model if needed."""
    section = params.prepare
    held_out = {"development": section.development_fraction, "test": section.test_fraction}
    if problem.needs_judge_model:
        held_out["judge"] = section.judge_fraction
    splits = split_by_prompt(cleaned.rows, {"train": 1 - sum(held_out.values()), **held_out}, params.run.seed)
    return to_prepared(splits, problem.kind, params.collect.scale)


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


def _tokenizer(source: ModelSource, texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Return the chosen model's tokenizer, or a new one trained on the texts for a model trained from scratch."""
    if source.folder is not None:
        return ready_tokenizer(load_tokenizer(source.folder))
    return ready_tokenizer(train_tokenizer(texts, vocabulary))


if __name__ == "__main__":
    main(prepare)
