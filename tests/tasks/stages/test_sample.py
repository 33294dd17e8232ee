"""Stages sample and collect in real runs: one and two checkpoints, and judging without any model."""

import json
import shutil
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState, PartialState

import tiny
from checkout import make_checkout, write_params
from rlhf_core.common.errors import UserError
from rlhf_core.models import store
from rlhf_core.models.store import load_policy, load_tokenizer, save_policy
from tasks.common.rows import as_prompts
from tasks.common.sampling import make_sampler, sample_responses
from tasks.common.source import ModelSource
from tasks.files.jsonl import read_jsonl
from tasks.params.load import load_params, merged, validate, with_values
from tasks.runtime.stage import Restored
from tasks.stages.base import base
from tasks.stages.collect import collect
from tasks.stages.prepare import prepare
from tasks.stages.sample import sample
from tasks.stages.sft import sft
from tools.closure import ROOT

SAMPLES, FEEDBACK = Path("data/samples"), Path("data/feedback")
SPLITS = {"train": 12, "development": 6}
OTHER = "inputs/checkpoints/round-1"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with a help desk and an SFT model; the base model is the second checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RLHF_PARENT_RUN_ID", "RLHF_FLOW_RUN_ID", "MLFLOW_TRACKING_URI", "RLHF_ROOT"):
            patch.delenv(name, raising=False)
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        AcceleratorState._reset_state(reset_partial_state=True)
        short = {"base": {"max_steps": 2}, "sft": {"max_steps": 2}}
        folder = make_checkout(tmp_path_factory.mktemp("sampled"), short)
        patch.chdir(folder)
        for stage in (prepare, base, sft):
            stage()
        shutil.copytree("models/base", OTHER)
        yield folder
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()


@pytest.fixture
def run(checkout, monkeypatch):
    """A function that runs stages with changed parameters, each without earlier outputs."""
    monkeypatch.chdir(checkout)
    unchanged = yaml.safe_load((checkout / "params.yaml").read_text())

    def stages(*chosen, **changes):
        write_params(checkout, merged(unchanged, changes))
        shutil.rmtree(".resume", ignore_errors=True)
        try:
            for stage in chosen:
                with suppress(Restored):
                    stage()
        finally:
            write_params(checkout, unchanged)

    return stages


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def samples(split):
    return read_jsonl(SAMPLES / f"samples_{split}.jsonl")


def test_a_row_is_a_prompt_with_its_responses_and_runs_repeat_it_byte_for_byte(run):
    """12 and 6 prompts with 3 responses, equal to those drawn directly from the stream collect/SPLIT."""
    run(sample)
    first = contents(SAMPLES)
    assert set(first) == {"samples_train.jsonl", "samples_development.jsonl", "manifest.json"}
    params, tokenizer, policy = load_params(), load_tokenizer("data/prepared/tokenizer"), load_policy("models/sft")
    sampler = make_sampler(policy, tokenizer, 64, 1.0)
    digests = set()
    for split, count in SPLITS.items():
        given = read_jsonl(Path(f"data/prepared/prompts_{split}.jsonl"))[:count]
        repeated = [prompt for prompt in as_prompts(given, tokenizer) for _ in range(3)]
        drawn = sample_responses(policy, tokenizer, repeated, sampler, (params.run.seed, f"collect/{split}"))
        rows = samples(split)
        assert [list(row) for row in rows] == [["prompt", "responses"]] * count
        assert [row["prompt"] for row in rows] == [row["prompt"] for row in given]
        found = [response for row in rows for response in row["responses"]]
        assert [(one["text"], one["tokens"], one["ended"]) for one in found] == [
            (one.text, one.ids, one.ended) for one in drawn
        ]
        digests |= {one["checkpoint"] for one in found}
    manifest = json.loads((SAMPLES / "manifest.json").read_text())
    assert digests == {manifest["inputs"]["models/sft"]}
    shutil.rmtree(SAMPLES)
    run(sample)
    assert contents(SAMPLES) == first


def test_two_checkpoints_are_sampled_each_from_its_own_stream(run):
    """The first draws the same responses as alone; the other's follow. Pairs are formed across both: 15 from 6."""
    run(sample, collect)
    alone = {split: samples(split) for split in SPLITS}
    run(sample, collect, sample={"checkpoints": ["models/sft", OTHER]})
    digest = ModelSource(folder=Path(OTHER)).manifest()["weights_sha256"]
    for split, count in SPLITS.items():
        rows = samples(split)
        assert [row["responses"][:3] for row in rows] == [row["responses"] for row in alone[split]]
        assert [[one["checkpoint"] for one in row["responses"][3:]] for row in rows] == [[digest] * 3] * count
    sft = alone["train"][0]["responses"][0]["checkpoint"]
    judgements = read_jsonl(FEEDBACK / "judgements.jsonl")
    assert len(judgements) == (12 + 6 * 3) * 15
    kinds = [row["checkpoint"] if isinstance(row["checkpoint"], str) else "both" for row in judgements]
    shares = {name: kinds.count(name) / len(kinds) for name in (sft, digest, "both")}
    assert shares == {sft: 3 / 15, digest: 3 / 15, "both": 9 / 15}
    own = {response["text"]: response["checkpoint"] for row in samples("train") for response in row["responses"]}
    mixed = next(row for row in judgements if isinstance(row["checkpoint"], list))
    assert set(mixed["checkpoint"]) == {sft, digest}
    assert set(mixed["responses"]) <= set(own)


def test_equal_weights_in_another_place_draw_other_responses(run):
    """Otherwise a copy of the SFT model would repeat its responses, and pairs across both would be identical."""
    copy = Path("inputs/checkpoints/copy")
    shutil.copytree("models/sft", copy)
    try:
        run(sample, sample={"checkpoints": ["models/sft", str(copy)], "prompts": 4})
        halves = [(row["responses"][:3], row["responses"][3:]) for row in samples("train")]
        texts = [[[one["text"] for one in half] for half in pair] for pair in halves]
        assert all(first != second for first, second in texts)
    finally:
        shutil.rmtree(copy)


def test_feedback_is_collected_without_any_model(run, monkeypatch):
    """The models are removed and loading one fails. Pairs consist of each prompt's responses as sampled."""
    run(sample)

    def refuse(*_, **__):
        raise AssertionError("stage collect loads a model")

    for name in ("load_policy", "load_scalar_model", "load_tokenizer"):
        monkeypatch.setattr(store, name, refuse)
    Path("models").rename("models-away")
    try:
        run(collect)
    finally:
        Path("models-away").rename("models")
    judged = read_jsonl(FEEDBACK / "judgements.jsonl")[: 12 * 3]
    expected = [
        sorted(pair, key=str) for row in samples("train")
        for pair in combinations([one["tokens"] for one in row["responses"]], 2)
    ]  # fmt: skip
    assert [sorted(row["response_tokens"], key=str) for row in judged] == expected


def test_a_folder_that_is_not_a_checkpoint_is_named(run):
    with pytest.raises(UserError, match=r"contains inputs/checkpoints/nothing, which is not a checkpoint"):
        run(sample, sample={"checkpoints": ["models/sft", "inputs/checkpoints/nothing"]})


def test_a_checkpoint_with_another_tokenizer_is_rejected(run):
    folder = Path("inputs/checkpoints/foreign")
    save_policy(tiny.rotary(), tiny.tiny_tokenizer(), folder, max_new_tokens=4)
    try:
        with pytest.raises(UserError, match=r"the tokenizer of inputs/checkpoints/foreign differs from data/prepared"):
            run(sample, sample={"checkpoints": [str(folder)]})
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("checkpoints", [[], ["models/sft"] * 2, ["models/policies/ppo"], ["inputs/checkpoints/../x"]])
def test_checkpoints_outside_the_graph_are_rejected(checkpoints):
    """A policy of this run depends on the feedback, and files elsewhere are not tracked."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    with pytest.raises(UserError, match="checkpoints"):
        validate(with_values(raw, {"sample.checkpoints": checkpoints}))
