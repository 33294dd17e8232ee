"""Stage `collect`: let a panel of simulated annotators judge sampled responses, or pass on the data's own feedback."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from rlhf_core.common.responses import Response
from rlhf_core.common.seeding import stream_seed
from rlhf_core.feedback.annotator import Annotator, ask
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import PREFERENCES, Judgement, Message
from rlhf_core.feedback.judgements import agreement, cyclic_triples, preferences, preferences_of_rows, verdicts
from rlhf_core.feedback.table import make_form, stored_forms
from tasks.files.jsonl import read_jsonl, write_jsonl
from tasks.files.paths import FEEDBACK, JUDGEMENTS, PREPARED, SAMPLES, SUMMARY, rows
from tasks.problems.problem import Gold, Problem
from tasks.problems.table import prepared_problem
from tasks.runtime.stage import Stage, main, open_stage, write_json

SPLITS = ("train", "development", "judge")


def collect() -> None:
    """Let simulated annotators judge the samples if the task has some, else pass the data's own feedback on."""
    with open_stage("collect") as stage:
        problem = prepared_problem()
        if problem.has_panel:
            _judge(stage, problem)
        else:
            _pass_on(stage)


def _pass_on(stage: Stage) -> None:
    """Write the data's own rows unchanged, and the preferences that rows of other forms imply."""
    folder = stage.out(str(FEEDBACK))
    summary: dict[str, dict[str, int]] = {"pairs": {}}
    held: list[str] = []
    for split in SPLITS:
        pairs: list[dict[str, Any]] = []
        for form in stored_forms():
            path = rows(PREPARED, form.file, split)
            given = read_jsonl(path) if path.is_file() else []
            held += [form.file] * bool(given)
            if form.file == PREFERENCES:
                pairs += given
            elif given:
                write_jsonl(rows(folder, form.file, split), given)
                implied, counts = preferences_of_rows(form, given, keep_ties=stage.params.collect.keep_ties)
                pairs += implied
                for key, count in {form.file: len(given), **counts}.items():
                    summary.setdefault(key, {})[split] = count
        write_jsonl(rows(folder, PREFERENCES, split), pairs)
        summary["pairs"][split] = len(pairs)
    held = list(dict.fromkeys(held))
    why = f"the data set has {' and '.join(held)}" if held else "the data set has no feedback, and there is no panel"
    write_json(folder / SUMMARY, {"source": f"passed on: {why}", **summary})


def _judge(stage: Stage, problem: Problem) -> None:
    """Write the panel's judgements, the rows of the form, and the preferences that they imply."""
    params = stage.params.collect
    folder = stage.out(str(FEEDBACK))
    form = make_form(params)
    judgements: list[Judgement] = []
    again: list[Judgement] = []
    counts: dict[str, dict[str, int]] = {}
    most = 0
    for split in ("train", "development"):
        samples = read_jsonl(rows(SAMPLES, "samples", split))
        most = max([most, *(len(row["responses"]) for row in samples)])
        further = params.development_judgements - params.judgements if split == "development" else 0
        new, more = _judgements(stage, problem, form, split, samples, further)
        pairs, found = preferences(new, keep_ties=params.keep_ties)
        write_jsonl(rows(folder, PREFERENCES, split), pairs)
        if form.file != PREFERENCES:
            write_jsonl(rows(folder, form.file, split), [form.row(judgement) for judgement in new])
            found[form.file] = len(new)
        for key, number in found.items():
            counts.setdefault(key, {})[split] = number
        judgements += new
        again += more
    write_jsonl(rows(folder, PREFERENCES, "judge"), [])
    write_jsonl(folder / JUDGEMENTS, [judgement.to_row() for judgement in judgements + again])
    figures = {
        "source": f"{problem.panel_title(stage.params)}, {form.question(most)}",
        "agreement_with_gold": _agreement_with_gold(judgements, problem.gold(stage.params.prepare)),
        "agreement_between_annotators": agreement(judgements + again),
        "cyclic_triples": cyclic_triples(judgements),
    }
    write_json(folder / SUMMARY, figures | counts)


def _judgements(
    stage: Stage, problem: Problem, form: Form, split: str, samples: Sequence[dict[str, Any]], further: int
) -> tuple[list[Judgement], list[Judgement]]:
    """Let `collect.judgements` annotators judge each item, then `further` others, or all others if there are fewer.

    The others have a separate random stream, so that they do not change the first judgements.
    """
    params, seed = stage.params.collect, stage.params.run.seed
    rng = random.Random(stream_seed(seed, "collect", split, "judgements"))
    other_rng = random.Random(stream_seed(seed, "collect", split, "further judgements"))
    annotators = problem.annotators(stage.params, rng)
    others = problem.annotators(stage.params, other_rng)
    first: list[Judgement] = []
    second: list[Judgement] = []
    for item in _items(form, samples):
        asked = rng.sample(annotators, min(params.judgements, len(annotators)))
        for annotator in asked:
            first += _ask(annotator, form, item, rng)
        busy = {annotator.id for annotator in asked}
        free = [one for one in others if one.id not in busy]
        for annotator in other_rng.sample(free, min(further, len(free))):
            second += _ask(annotator, form, item, other_rng)
    numbered = [replace(judgement, order=order) for order, judgement in enumerate(first + second)]
    return numbered[: len(first)], numbered[len(first) :]


@dataclass(frozen=True)
class Item:
    """A prompt and the responses that are judged together, each with the digest of the model that sampled it."""

    prompt: list[Message]
    responses: tuple[tuple[Response, str], ...]


def _items(form: Form, samples: Sequence[dict[str, Any]]) -> Iterator[Item]:
    """Yield every combination of responses to a prompt, of the size that the form shows together."""
    for row in samples:
        responses = [
            (Response(one["tokens"], one["text"], one["ended"]), one["checkpoint"]) for one in row["responses"]
        ]
        for shown in combinations(responses, form.shown(len(responses))):
            yield Item(row["prompt"], shown)


def _ask(annotator: Annotator, form: Form, item: Item, rng: random.Random) -> list[Judgement]:
    """Return one annotator's judgements of an item, whose responses are shown in random order."""
    return ask(annotator, form, item.prompt, rng.sample(item.responses, len(item.responses)))


def _agreement_with_gold(judgements: Sequence[Judgement], gold: Gold | None) -> float | None:
    """Share of verdicts that prefer the response with the higher gold score. Ties of either are not counted."""
    if gold is None:
        return None
    right: list[bool] = []
    for verdict in verdicts(judgements):
        first, second = (gold.score(verdict.prompt, response) for response in verdict.responses)
        if verdict.preference != 0.5 and first != second:
            right.append((verdict.preference > 0.5) == (first > second))
    return sum(right) / len(right) if right else None


if __name__ == "__main__":
    main(collect)
