"""Convert rows of files into training examples and prompts."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_core.common.batch import Example, Unit
from rlhf_core.common.data import Data
from rlhf_core.common.errors import UserError
from rlhf_core.models.tokens import Prompt, encode_prompt, encode_response, encode_whole
from tasks.files.jsonl import read_jsonl

Row = dict[str, Any]


@dataclass(frozen=True)
class OwnTokenizer:
    """The tokenizer of a reward model that is not the policy's: it reads texts, and ignores the ids of samples."""

    tokenizer: PreTrainedTokenizerBase
    name: str  # of the model, in messages


Reader = PreTrainedTokenizerBase | OwnTokenizer


def _examples(reader: Reader, messages: Any, texts: Sequence[str], tokens: Sequence[list[int] | None]) -> list[Example]:
    """A prompt with each of its responses, whose token ids are known if the policy's model sampled them."""
    if isinstance(reader, OwnTokenizer):
        return [encode_whole(reader.tokenizer, messages, text, reader.name) for text in texts]
    prompt = encode_prompt(reader, messages)
    given = zip(texts, tokens, strict=True)
    return [Example(prompt, ids or encode_response(reader, text)) for text, ids in given]


def demonstration_units(path: Path, tokenizer: PreTrainedTokenizerBase, limit: int | None = None) -> list[Unit]:
    """Read rows {"prompt", "response"} as units of one example: all rows, or the first `limit`."""
    return [
        (Example(encode_prompt(tokenizer, row["prompt"]), encode_response(tokenizer, row["response"])),)
        for row in read_jsonl(path, limit)
    ]


def text_units(path: Path, tokenizer: PreTrainedTokenizerBase, limit: int | None = None) -> list[Unit]:
    """Read the same rows as raw text: every token is trained, including role tokens and the user's text.

    The first token has no context to predict it from, so it is the prompt.
    """
    rows = [[*row.prompt_ids, *row.response_ids] for (row,) in demonstration_units(path, tokenizer, limit)]
    return [(Example(ids[:1], ids[1:]),) for ids in rows]


def preference_units(path: Path, tokenizer: Reader, limit: int | None = None) -> list[Unit]:
    """Read rows {"prompt", "chosen", "rejected"} as units (chosen, rejected): all rows, or the first `limit`.

    Token ids of sampled responses are used if the row has them. `label` is the probability that chosen is better: 1 by
    default, ½ for a tie. `margin` is optional.
    """
    units: list[Unit] = []
    for row in read_jsonl(path, limit):
        texts, tokens = [row["chosen"], row["rejected"]], [row.get("chosen_tokens"), row.get("rejected_tokens")]
        chosen, rejected = _examples(tokenizer, row["prompt"], texts, tokens)
        label, margin = row.get("label", 1.0), row.get("margin", math.nan)
        chosen = replace(chosen, preference=label, margin=margin)
        units.append((chosen, replace(rejected, preference=1.0 - label, margin=margin)))
    return units


def row_sources(path: Path) -> list[str | None]:
    """The source of each row, in the order of its units; None if the row does not name it."""
    return [row.get("source") for row in read_jsonl(path)]


def rating_scale(path: Path) -> tuple[float, float]:
    """Return mean and population standard deviation of the scores in a file of ratings.

    Raises:
        UserError: all scores are equal, so there is nothing to learn.
    """
    scores = [row["score"] for row in read_jsonl(path)]
    if len(set(scores)) < 2:
        raise UserError(f"{path} has no two different scores, so there is nothing to learn. Add more ratings.")
    return fmean(scores), pstdev(scores)


def rating_units(path: Path, tokenizer: Reader, mean: float, std: float) -> list[Unit]:
    """Read rows {"prompt", "response", "score"} as units of one example with rating (score - mean) / std."""
    return [(_response(row, tokenizer, rating=(row["score"] - mean) / std),) for row in read_jsonl(path)]


def ranking_units(path: Path, tokenizer: Reader) -> list[Unit]:
    """Read rows {"prompt", "responses", "ranks"} as units of K ranked examples. K may differ between rows."""
    units: list[Unit] = []
    for row in read_jsonl(path):
        tokens = row.get("responses_tokens") or [None] * len(row["responses"])
        examples = _examples(tokenizer, row["prompt"], row["responses"], tokens)
        ranked = zip(examples, row["ranks"], strict=True)
        units.append(tuple(replace(example, rank=float(place)) for example, place in ranked))
    return units


def unpaired_units(folder: Path, split: str, tokenizer: Reader) -> list[Unit]:
    """Return responses labelled good (1) or bad (0), each with a mismatched row: its prompt, another prompt's response.

    Rows come from unpaired_SPLIT.jsonl if it has any. Otherwise each side of a preference becomes one response, without
    ties (KTO, arXiv:2402.01306, sec. 4). A split without rows gives no units, but the training split must have some.

    Raises:
        UserError: there is nothing to train on, only one class, or only one prompt.
    """
    labelled = _labelled(folder, split, tokenizer)
    where = f"{folder}, split {split},"
    if split == "train":
        if not labelled:
            raise UserError(f"{where} has neither unpaired rows nor preferences. Set prepare.path to such data.")
        if len({example.desirable for example in labelled}) < 2:
            kind = "good" if labelled[0].desirable else "bad"
            raise UserError(
                f"{where} has only {kind} responses, but this method needs both kinds. Add some of the other kind."
            )
    if not labelled:
        return []
    others = mismatched(labelled)
    if others is None:
        raise UserError(f"{where} has responses to only one prompt, but this method needs several. Add other prompts.")
    return [
        (example, Example(example.prompt_ids, other.response_ids))
        for example, other in zip(labelled, others, strict=True)
    ]


def _labelled(folder: Path, split: str, tokenizer: Reader) -> list[Example]:
    unpaired = folder / f"unpaired_{split}.jsonl"
    if unpaired.is_file() and (rows := read_jsonl(unpaired)):
        return [_response(row, tokenizer, desirable=float(row["label"])) for row in rows]
    pairs = preference_units(folder / f"preferences_{split}.jsonl", tokenizer)
    sides = [example for pair in pairs for example in pair if example.preference != 0.5]
    return [Example(side.prompt_ids, side.response_ids, desirable=float(side.preference > 0.5)) for side in sides]


def mismatched(examples: Sequence[Example]) -> list[Example] | None:
    """Return for each example one with a different prompt, or None if all have the same prompt.

    Examples are arranged by prompt. The k-th example of a prompt gets the k-th example after that prompt's last one,
    cyclically. If all prompts have equally many examples, every response is used exactly once, and good and bad
    responses of pairs equally often, so the mean over mismatched pairs is not biased towards either.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        by_prompt[tuple(example.prompt_ids)].append(index)
    if len(by_prompt) < 2:
        return None
    arranged = [index for same in by_prompt.values() for index in same]
    found: dict[int, Example] = {}
    end = 0
    for same in by_prompt.values():
        end += len(same)
        strangers = len(arranged) - len(same)
        for place, index in enumerate(same):
            found[index] = examples[arranged[(end + place % strangers) % len(arranged)]]
    return [found[index] for index in range(len(examples))]


def _response(row: Row, tokenizer: Reader, *, rating: float = math.nan, desirable: float = math.nan) -> Example:
    (example,) = _examples(tokenizer, row["prompt"], [row["response"]], [row.get("response_tokens")])
    return replace(example, rating=rating, desirable=desirable)


def as_prompts(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Convert rows {"prompt"[, "answer"]} into prompts to sample from."""
    return [Prompt(row["prompt"], encode_prompt(tokenizer, row["prompt"]), row.get("answer")) for row in rows]


def _pairs(folder: Path, split: str, tokenizer: Reader, limit: int | None) -> list[Unit]:
    return preference_units(folder / f"preferences_{split}.jsonl", tokenizer, limit)


def _unpaired(folder: Path, split: str, tokenizer: Reader, limit: int | None) -> list[Unit]:
    return unpaired_units(folder, split, tokenizer)[:limit]


def _ratings(folder: Path, split: str, tokenizer: Reader, limit: int | None) -> list[Unit]:
    mean, std = rating_scale(folder / "ratings_train.jsonl")  # held-out ratings are on the scale of training
    return rating_units(folder / f"ratings_{split}.jsonl", tokenizer, mean, std)[:limit]


def _rankings(folder: Path, split: str, tokenizer: Reader, limit: int | None) -> list[Unit]:
    return ranking_units(folder / f"rankings_{split}.jsonl", tokenizer)[:limit]


# What a method learns from -> the reader of data/feedback: the units of a split, all or the first `limit`.
READERS: dict[Data, Callable[[Path, str, Reader, int | None], list[Unit]]] = {
    Data.PAIRS: _pairs,
    Data.UNPAIRED: _unpaired,
    Data.RATINGS: _ratings,
    Data.RANKINGS: _rankings,
}
