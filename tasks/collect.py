"""Stage `collect`: feedback from a panel of simulated annotators; preferences the data holds are passed on."""

import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rlhf_core.annotators import SIDE_BY_SIDE, Annotator, Judgement, agreement, cyclic_triples, judge, panel
from rlhf_core.annotators import pairs_from_judgements as pairs_of
from rlhf_core.helpdesk.rubric import GOLD_WEIGHTS, features, gold_score
from rlhf_core.helpdesk.world import World
from rlhf_core.models import load_policy, load_tokenizer
from rlhf_core.seeding import stream_seed
from rlhf_core.tokens import Prompt
from tasks.accelerator import accelerator_of
from tasks.jsonl import read_jsonl, write_jsonl
from tasks.rows import as_prompts, last_user_text, prepared_kind
from tasks.sampling import Response, make_sampler, sample_responses
from tasks.stage import Stage, main, open_stage, write_json

OUT = "data/feedback"
PREPARED = Path("data/prepared")
SPLITS = ("train", "development", "judge")


def collect() -> None:
    """Sample K responses per prompt from the SFT model and have every pair judged; or pass preferences on."""
    with open_stage("collect") as stage:
        if prepared_kind() == "helpdesk":
            _collect(stage)
        else:
            _pass_on(stage)


def _pass_on(stage: Stage) -> None:
    folder = stage.out(OUT)
    counts = {}
    for split in SPLITS:
        source = PREPARED / f"preferences_{split}.jsonl"
        rows = read_jsonl(source) if source.is_file() else []
        write_jsonl(folder / f"preferences_{split}.jsonl", rows)
        counts[split] = len(rows)
    why = "the data set holds preferences" if any(counts.values()) else "the data set holds none, and there is no panel"
    write_json(folder / "summary.json", {"source": f"passed on: {why}", "pairs": counts})


def _collect(stage: Stage) -> None:
    params = stage.params
    folder = stage.out(OUT)
    world = World.load(Path(params.prepare.path))
    annotators = panel(GOLD_WEIGHTS, params.collect.annotators, params.run.seed)
    judgements: list[Judgement] = []
    counts = {}
    for split, count in (("train", params.collect.prompts), ("development", params.collect.development_prompts)):
        rows = read_jsonl(PREPARED / f"prompts_{split}.jsonl")[:count]
        new = _judge_split(stage, split, rows, annotators, world)
        pairs, counts[split] = pairs_of(new)
        write_jsonl(folder / f"preferences_{split}.jsonl", pairs)
        judgements += new
    write_jsonl(folder / "preferences_judge.jsonl", [])
    write_jsonl(folder / "judgements.jsonl", [judgement.to_row() for judgement in judgements])
    write_json(
        folder / "summary.json",
        {
            "source": f"a panel of {len(annotators)} simulated annotators, side by side",
            "pairs": {split: number["pairs"] for split, number in counts.items()},
            "ties": {split: number["ties"] for split, number in counts.items()},
            "identical": {split: number["identical"] for split, number in counts.items()},
            "agreement_with_gold": _agreement_with_gold(judgements, world),
            "agreement_between_annotators": agreement(judgements),
            "cyclic_triples": cyclic_triples(judgements),
        },
    )


def _judge_split(
    stage: Stage, split: str, rows: Sequence[dict[str, Any]], annotators: Sequence[Annotator], world: World
) -> list[Judgement]:
    """Every pair of the K responses to each prompt, judged by `collect.judgements` annotators in random order."""
    params = stage.params
    tokenizer = load_tokenizer("data/prepared/tokenizer")
    policy = accelerator_of(stage).prepare_model(load_policy("models/sft"), evaluation_mode=True)
    prompts = [prompt for prompt in as_prompts(rows, tokenizer) for _ in range(params.collect.responses)]
    sampler = make_sampler(policy, tokenizer, params.prepare.max_response_tokens, params.collect.temperature)
    responses = sample_responses(policy, tokenizer, prompts, sampler, (params.run.seed, f"collect/{split}"))
    rng = random.Random(stream_seed(params.run.seed, "collect", split, "judgements"))
    judgements: list[Judgement] = []
    size = params.collect.responses
    for start in range(0, len(prompts), size):
        for pair in combinations(responses[start : start + size], 2):
            for annotator in rng.sample(annotators, params.collect.judgements):
                shown = rng.sample(pair, 2)
                judgements.append(_verdict(stage, world, prompts[start], shown, annotator, len(judgements), rng))
    return judgements


def _verdict(
    stage: Stage,
    world: World,
    prompt: Prompt,
    shown: Sequence[Response],
    annotator: Annotator,
    order: int,
    rng: random.Random,
) -> Judgement:
    text = last_user_text(prompt.messages)
    first, second = shown
    choice = judge(
        annotator,
        features(world, text, first.text),
        features(world, text, second.text),
        len(first.ids),
        len(second.ids),
        rng,
    )
    return Judgement(
        form=SIDE_BY_SIDE,
        prompt=list(prompt.messages),
        responses=[first.text, second.text],
        response_tokens=[first.ids, second.ids],
        choice=choice,
        annotator=annotator.id,
        checkpoint=stage.inputs["models/sft"],
        order=order,
    )


def _agreement_with_gold(judgements: Sequence[Judgement], world: World) -> float:
    """Share of verdicts that prefer the response with the higher gold score, ties of either left out."""
    right: list[bool] = []
    for judgement in judgements:
        text = last_user_text(judgement.prompt)
        first, second = (gold_score(world, text, response) for response in judgement.responses)
        if judgement.choice != "tie" and first != second:
            right.append((judgement.choice == "A") == (first > second))
    return sum(right) / len(right)


if __name__ == "__main__":
    main(collect)
