"""Stage `collect`: feedback from a panel of simulated annotators; feedback that the data holds is passed on."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from helpdesk.rubric import GOLD_WEIGHTS, features, gold_score
from helpdesk.world import World
from rlhf_core.common.seeding import stream_seed
from rlhf_core.feedback.judgements import Judgement, agreement, cyclic_triples, pairs_from_judgements, side_by_side
from rlhf_core.feedback.panel import Annotator, approve, judge, panel, pick, rank, rate, utility
from rlhf_core.models.store import load_policy, load_tokenizer
from rlhf_core.models.tokens import Prompt
from tasks.common.accelerator import accelerator_of
from tasks.common.feedback import FORM, NATIVE, native_row, preferences_from
from tasks.common.rows import as_prompts, last_user_text, prepared_kind
from tasks.common.sampling import Response, make_sampler, sample_responses
from tasks.files.jsonl import read_jsonl, write_jsonl
from tasks.runtime.stage import Stage, main, open_stage, write_json

OUT = "data/feedback"
PREPARED = Path("data/prepared")
SPLITS = ("train", "development", "judge")
FORM_NAMES = {
    "side_by_side": "two responses side by side",
    "likert": "scores from 1 to {scale}",
    "ranking": "rankings of {responses}",
    "best_of_n": "the best of {responses}",
    "thumbs": "good or bad",
}


def collect() -> None:
    """Sample K responses per prompt from the SFT model and have them judged; or pass the data's feedback on."""
    with open_stage("collect") as stage:
        if prepared_kind() == "helpdesk":
            _collect(stage)
        else:
            _pass_on(stage)


def _pass_on(stage: Stage) -> None:
    """The data's own rows as they are, and the preferences that those of other forms imply."""
    folder = stage.out(OUT)
    summary: dict[str, dict[str, int]] = {"pairs": {}}
    held: list[str] = []
    for split in SPLITS:
        pairs = _prepared("preferences", split)
        held += ["preferences"] * bool(pairs)
        for name in FORM:
            if rows := _prepared(name, split):
                held.append(name)
                write_jsonl(folder / f"{name}_{split}.jsonl", rows)
                implied, counts = preferences_from(name, rows, keep_ties=stage.params.collect.keep_ties)
                pairs += implied
                for key, count in {name: len(rows), **counts}.items():
                    summary.setdefault(key, {})[split] = count
        write_jsonl(folder / f"preferences_{split}.jsonl", pairs)
        summary["pairs"][split] = len(pairs)
    held = list(dict.fromkeys(held))
    why = f"the data set holds {' and '.join(held)}" if held else "the data set holds none, and there is no panel"
    write_json(folder / "summary.json", {"source": f"passed on: {why}", **summary})


def _prepared(name: str, split: str) -> list[dict[str, Any]]:
    source = PREPARED / f"{name}_{split}.jsonl"
    return read_jsonl(source) if source.is_file() else []


def _collect(stage: Stage) -> None:
    params, asked = stage.params.collect, stage.params.sample
    folder = stage.out(OUT)
    annotators = panel(GOLD_WEIGHTS, params.annotators, stage.params.run.seed)
    desk = Desk(stage)
    judgements: list[Judgement] = []
    again: list[Judgement] = []
    counts: dict[str, dict[str, int]] = {}
    for split, count in (("train", asked.prompts), ("development", asked.development_prompts)):
        rows = read_jsonl(PREPARED / f"prompts_{split}.jsonl")[:count]
        further = max(0, params.development_judgements - params.judgements) if split == "development" else 0
        new, more = desk.judgements(split, rows, annotators, further)
        pairs, found = pairs_from_judgements(new, keep_ties=params.keep_ties)
        write_jsonl(folder / f"preferences_{split}.jsonl", pairs)
        if params.form in NATIVE:
            name = NATIVE[params.form]
            write_jsonl(folder / f"{name}_{split}.jsonl", [native_row(judgement) for judgement in new])
            found[name] = len(new)
        for key, number in found.items():
            counts.setdefault(key, {})[split] = number
        judgements += new
        again += more
    write_jsonl(folder / "preferences_judge.jsonl", [])
    write_jsonl(folder / "judgements.jsonl", [judgement.to_row() for judgement in judgements + again])
    how = FORM_NAMES[params.form].format(scale=params.scale, responses=asked.responses)
    figures = {
        "source": f"a panel of {len(annotators)} simulated annotators, {how}",
        "agreement_with_gold": _agreement_with_gold(judgements, desk.world),
        "agreement_between_annotators": agreement(judgements + again),
        "cyclic_triples": cyclic_triples(judgements),
    }
    write_json(folder / "summary.json", figures | counts)


class Desk:
    """Where the SFT model's responses are sampled and shown to annotators, in one form of feedback."""

    def __init__(self, stage: Stage) -> None:
        self.params = stage.params
        self.checkpoint = stage.inputs["models/sft"]
        self.world = World.load(Path(self.params.prepare.path))
        self.tokenizer = load_tokenizer("data/prepared/tokenizer")
        self.policy = accelerator_of(stage.params).prepare_model(load_policy("models/sft"), evaluation_mode=True)

    def judgements(
        self, split: str, rows: Sequence[dict[str, Any]], annotators: Sequence[Annotator], further: int
    ) -> tuple[list[Judgement], list[Judgement]]:
        """K responses to each prompt, judged by `collect.judgements` annotators; then by `further` others.

        The others have a random stream of their own: what the first ones say does not depend on them.
        """
        first: list[Judgement] = []
        others: list[Judgement] = []
        seed = self.params.run.seed
        rng = random.Random(stream_seed(seed, "collect", split, "judgements"))
        other_rng = random.Random(stream_seed(seed, "collect", split, "further judgements"))
        for prompt, shown in self._items(split, rows):
            asked = rng.sample(annotators, self.params.collect.judgements)
            for annotator in asked:
                first += self.ask(annotator, prompt, shown, rng)
            for annotator in other_rng.sample([one for one in annotators if one not in asked], further):
                others += self.ask(annotator, prompt, shown, other_rng)
        numbered = [replace(judgement, order=order) for order, judgement in enumerate(first + others)]
        return numbered[: len(first)], numbered[len(first) :]

    def _items(self, split: str, rows: Sequence[dict[str, Any]]) -> list[tuple[Prompt, tuple[Response, ...]]]:
        """What is judged together: every two of a prompt's responses side by side, otherwise all of them."""
        params = self.params
        size = params.sample.responses
        prompts = [prompt for prompt in as_prompts(rows, self.tokenizer) for _ in range(size)]
        longest = params.prepare.max_response_tokens
        sampler = make_sampler(self.policy, self.tokenizer, longest, params.sample.temperature)
        stream = (params.run.seed, f"collect/{split}")
        responses = sample_responses(self.policy, self.tokenizer, prompts, sampler, stream)
        together = 2 if params.collect.form == "side_by_side" else size
        return [
            (prompts[start], shown)
            for start in range(0, len(prompts), size)
            for shown in combinations(responses[start : start + size], together)
        ]

    def ask(
        self, annotator: Annotator, prompt: Prompt, responses: Sequence[Response], rng: random.Random
    ) -> list[Judgement]:
        """What one annotator says about a prompt's responses, shown in random order."""
        shown = rng.sample(responses, len(responses))
        text = last_user_text(prompt.messages)
        seen = [features(self.world, text, response.text) for response in shown]
        sizes = [len(response.ids) for response in shown]
        worth = [utility(annotator, found, size) for found, size in zip(seen, sizes, strict=True)]
        scale = self.params.collect.scale
        choose: dict[str, Callable[[], list[Any]]] = {
            "side_by_side": lambda: [judge(annotator, seen[0], seen[1], sizes[0], sizes[1], rng)],
            "ranking": lambda: [rank(annotator, worth, rng)],
            "best_of_n": lambda: [pick(annotator, worth, rng)],
            "likert": lambda: [rate(annotator, value, scale, rng) for value in worth],
            "thumbs": lambda: ["good" if approve(annotator, value, rng) else "bad" for value in worth],
        }
        choices = choose[self.params.collect.form]()
        groups = [shown] if len(choices) == 1 else [[response] for response in shown]
        return [
            Judgement(
                form=self.params.collect.form,
                prompt=list(prompt.messages),
                responses=[response.text for response in group],
                response_tokens=[response.ids for response in group],
                choice=choice,
                annotator=annotator.id,
                checkpoint=self.checkpoint,
                order=0,  # numbered when all are there
            )
            for group, choice in zip(groups, choices, strict=True)
        ]


def _agreement_with_gold(judgements: Sequence[Judgement], world: World) -> float | None:
    """Share of verdicts that prefer the response with the higher gold score, ties of either left out."""
    right: list[bool] = []
    for judgement in side_by_side(judgements):
        text = last_user_text(judgement.prompt)
        first, second = (gold_score(world, text, response) for response in judgement.responses)
        if judgement.choice != "tie" and first != second:
            right.append((judgement.choice == "A") == (first > second))
    return sum(right) / len(right) if right else None


if __name__ == "__main__":
    main(collect)
