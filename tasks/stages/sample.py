"""Stage `sample`: draw responses to judge from the SFT model and from checkpoints of earlier runs."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_core.common.errors import UserError
from rlhf_core.models.store import load_tokenizer
from tasks.common.models import StageModels
from tasks.common.rows import as_prompts
from tasks.common.sampling import make_sampler, sample_responses
from tasks.common.source import ModelSource
from tasks.files.jsonl import read_jsonl, write_jsonl
from tasks.files.paths import NO_MODEL, PREPARED, SAMPLES, TOKENIZER, rows
from tasks.problems.table import prepared_problem
from tasks.runtime.stage import Stage, main, open_stage, write_json

Row = dict[str, Any]


def sample() -> None:
    """Draw K responses per prompt and checkpoint. If no panel judges the data, record why there are none."""
    with open_stage("sample") as stage:
        folder = stage.out(str(SAMPLES))
        if not prepared_problem().has_panel:
            write_json(folder / NO_MODEL, {"why": "no panel judges responses to this data"})
            return
        section = stage.params.sample
        splits = {"train": section.prompts, "development": section.development_prompts}
        found = {split: _prompts(split, count) for split, count in splits.items()}
        for number, path in enumerate(section.checkpoints, 1):
            _draw(stage, number, Path(path), found)
        for split, prompts in found.items():
            write_jsonl(rows(folder, "samples", split), prompts)


def _prompts(split: str, count: int) -> list[Row]:
    """The first prompts of a split, with their answers if they have any, and with empty lists of responses."""
    found = read_jsonl(rows(PREPARED, "prompts", split))[:count]
    return [{key: row[key] for key in ("prompt", "answer") if key in row} | {"responses": []} for row in found]


def _draw(stage: Stage, number: int, path: Path, found: dict[str, list[Row]]) -> None:
    """Add K responses of one checkpoint to each prompt.

    The first checkpoint's random streams are collect/SPLIT. Each further checkpoint has its own streams.
    """
    params, section = stage.params, stage.params.sample
    tokenizer = _tokenizer(path)
    digest = stage.inputs.get(str(path)) or ModelSource(folder=path).manifest()["weights_sha256"]
    models = StageModels(params)
    policy = models.accelerator.prepare_model(models.checkpoint(path), evaluation_mode=True)
    sampler = make_sampler(policy, tokenizer, params.prepare.max_response_tokens, section.temperature)
    for split, prompts in found.items():
        repeated = [prompt for prompt in as_prompts(prompts, tokenizer) for _ in range(section.responses)]
        name = f"collect/{split}" if number == 1 else f"collect/{split}/{number}"
        drawn = sample_responses(policy, tokenizer, repeated, sampler, (params.run.seed, name))
        for place, response in enumerate(drawn):
            prompts[place // section.responses]["responses"].append(
                {"text": response.text, "tokens": response.ids, "ended": response.ended, "checkpoint": digest}
            )


def _tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the prepared data.

    Raises:
        UserError: the checkpoint does not exist, or it has a different tokenizer.
    """
    if not (path / "config.json").is_file():
        raise UserError(f"sample.checkpoints contains {path}, which is not a checkpoint. Copy a model folder there.")
    tokenizer = load_tokenizer(TOKENIZER)
    if load_tokenizer(path).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"sample.checkpoints: the tokenizer of {path} differs from {TOKENIZER}. "
            "Name a checkpoint that was trained on the same model."
        )
    return tokenizer


if __name__ == "__main__":
    main(sample)
