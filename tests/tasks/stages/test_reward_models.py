"""Several reward models on named sources, and reward models that start from another model: tiny real runs."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from checkout import make_checkout, write_params
from rlhf_core.common.errors import UserError
from rlhf_core.models.bpe import train_tokenizer
from rlhf_core.models.store import (
    load_config,
    load_scalar_model,
    load_tokenizer,
    new_policy,
    save_policy,
    save_tokenizer,
)
from rlhf_core.models.tokens import ready_tokenizer
from tasks.common.models import StageModels
from tasks.common.rows import OwnTokenizer, preference_units
from tasks.common.source import reward_base
from tasks.files.jsonl import read_jsonl, write_jsonl
from tasks.params.load import merged
from tasks.runtime.stage import Restored
from tasks.stages.base import base
from tasks.stages.collect import collect
from tasks.stages.evaluate import evaluate
from tasks.stages.offline import offline
from tasks.stages.online import online
from tasks.stages.params import params as effective_params
from tasks.stages.prepare import prepare
from tasks.stages.report import report
from tasks.stages.reward import reward
from tasks.stages.rewards import rewards
from tasks.stages.sample import sample
from tasks.stages.sft import sft

THINGS = ("oven", "lamp", "chair", "book", "kettle", "radio")
WANTED = {
    "prepare": {
        "format": "auto",
        "path": "data-of-mine",
        "file_sources": True,
        "development_fraction": 0.2,
        "test_fraction": 0.2,
        "max_response_tokens": 24,
    },
    "reward_models": {"names": ["helpful", "harmless"]},
    "reward": {"max_steps": 2, "centre_prompts": 4, "batch_size": 4},
    "sft": {"max_steps": 2},
    "base": {"max_steps": 2},
    "policy": {
        "online": ["ppo"],
        "offline": ["dpo"],
        "rewards": [{"name": "model", "model": "helpful"}, {"name": "model", "model": "harmless", "weight": 0.5}],
        "ppo": {"steps": 1, "rollout_size": 4, "minibatch_size": 4, "micro_batch_size": 4, "snapshots": 0},
        "dpo": {"max_steps": 1, "batch_size": 4, "snapshots": 0},
    },
    "evaluate": {"prompts": 4, "development_prompts": 4},
}


def pairs(kind):
    """Pairs of 40 prompts; in `helpful` the longer response is better, in `harmless` the shorter one."""
    rows = []
    for number in range(40):
        thing = THINGS[number % len(THINGS)]
        texts = [f"Please send the {thing} back to us.", "No."]
        chosen, rejected = texts if kind == "helpful" else texts[::-1]
        rows.append({"prompt": f"{kind} {number}: my {thing} broke", "chosen": chosen, "rejected": rejected})
    return rows


@pytest.fixture(scope="module")
def checkout(module_patch, tmp_path_factory):
    """A checkout with two files of preferences, an SFT model and the feedback."""
    folder = make_checkout(tmp_path_factory.mktemp("sources"), WANTED)
    (folder / "data-of-mine").mkdir()
    for kind in ("helpful", "harmless"):
        write_jsonl(folder / f"data-of-mine/{kind}.jsonl", pairs(kind))
    module_patch.chdir(folder)
    for stage in (effective_params, prepare, base, sft, sample, collect):
        stage()
    return folder


@pytest.fixture
def stages(checkout, monkeypatch):
    """A runner of stages in that checkout with changed parameters."""
    monkeypatch.chdir(checkout)
    unchanged = yaml.safe_load((checkout / "params.yaml").read_text())

    def run(*work, **changes):
        write_params(checkout, merged(unchanged, changes))
        try:
            for stage, *arguments in work:
                with suppress(Restored):
                    stage(*arguments)
        finally:
            write_params(checkout, unchanged)

    return run


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_rows_have_the_source_of_their_file(checkout):
    for split, name in (("train", "preferences"), ("development", "preferences")):
        rows = read_jsonl(Path(f"data/feedback/{name}_{split}.jsonl"))
        assert {row["source"] for row in rows} == {"helpful", "harmless"}
        assert all(row["prompt"][0]["content"].startswith(row["source"]) for row in rows)


@pytest.mark.slow
def test_two_reward_models_are_trained_combined_and_reported_apart(stages):
    stages((reward,), (rewards, "helpful"), (rewards, "harmless"), (online, "ppo"))
    assert "reward_models" in read("models/reward/none.json")["why"]
    rows = read_jsonl(Path("data/feedback/preferences_train.jsonl"))
    held_out = read_jsonl(Path("data/feedback/preferences_development.jsonl"))
    for name in ("helpful", "harmless"):
        summary = read(f"models/rewards/{name}/summary.json")
        assert summary["trained_on"] == [name]
        assert summary["pairs"] == sum(row["source"] == name for row in rows)
        assert summary["held_out_pairs"] == sum(row["source"] == name for row in held_out)
        assert summary["held_out_pairs"] == summary["sources"][name]["held_out_pairs"]
        assert summary["accuracy"] == summary["sources"][name]["accuracy"]
        assert set(summary["sources"]) == {"helpful", "harmless"}
        model = load_scalar_model(f"models/rewards/{name}")
        assert (model.offset, model.scale) == (summary["offset"], summary["scale"])
    weights = [Path(f"models/rewards/{name}/model.safetensors").read_bytes() for name in ("helpful", "harmless")]
    assert weights[0] != weights[1]
    step = read_jsonl(Path("models/policies/ppo/metrics.jsonl"))[0]
    assert step["score"] == pytest.approx(step["reward_helpful"] + 0.5 * step["reward_harmless"], abs=1e-5)


@pytest.mark.slow
def test_the_evaluation_and_the_report_show_each_model(stages):
    """Each model has an accuracy on its own and on the other source, and a mean score for each policy."""
    make_policies = [(reward,), (rewards, "helpful"), (rewards, "harmless"), (online, "ppo"), (offline, "dpo")]
    stages(*make_policies, (evaluate,), (report,))
    figures = read("reports/report.json")
    assert set(figures["reward_models"]) == {"helpful", "harmless"}
    ppo = figures["policies"]["ppo"]
    assert ppo["reward"] == pytest.approx(
        ppo["reward_model_scores"]["helpful"]["value"] + 0.5 * ppo["reward_model_scores"]["harmless"]["value"], abs=1e-5
    )
    metrics = read("reports/metrics.json")
    assert metrics["reward_models"]["helpful"] == figures["reward_models"]["helpful"]["accuracy"]
    assert metrics["score_of_harmless"]["dpo"] == figures["policies"]["dpo"]["reward_model_scores"]["harmless"]["value"]
    assert figures["sources"]["stages"]["rewards@helpful"]["outputs"] == ["models/rewards/helpful"]
    for page in ("reports/report.html", "reports/report.md"):
        text = Path(page).read_text()
        assert "accuracy on harmless" in text and "helpful" in text and "models/rewards/helpful/summary.json" in text


@pytest.mark.slow
def test_the_critic_starts_from_the_first_or_the_named_model_or_from_sft(stages, monkeypatch):
    stages((reward,), (rewards, "helpful"), (rewards, "harmless"))
    started = []
    monkeypatch.setattr(StageModels, "critic", lambda self, folder: started.append(str(folder)) or StopError.now())
    for critic in (None, "harmless"):
        with pytest.raises(StopError):
            stages((online, "ppo"), policy={"critic": critic}, run={"seed": 5})
    assert started == ["models/rewards/helpful", "models/rewards/harmless"]
    with pytest.raises(StopError):
        monkeypatch.setattr(StageModels, "new_reward_model", lambda self: StopError.now())
        stages((online, "ppo"), policy={"critic": "sft"}, run={"seed": 5})


class StopError(Exception):
    """Ends a stage where a test has seen enough."""

    @classmethod
    def now(cls):
        raise cls


def refused(stages, *work, **changes):
    with pytest.raises(UserError) as caught:
        stages(*work, **changes)
    return str(caught.value)


@pytest.mark.slow
def test_unknown_sources_and_sources_without_pairs_are_refused(stages):
    models = {"sources": {"helpful": ["helpfull"]}}
    message = refused(stages, (rewards, "helpful"), reward_models=models)
    assert "has no row of it" in message and "did you mean helpful?" in message
    folder = Path("data/feedback")
    kept = {split: read_jsonl(folder / f"preferences_{split}.jsonl") for split in ("train", "development")}
    try:
        few = [row for row in kept["development"] if row["source"] == "helpful"]
        write_jsonl(folder / "preferences_development.jsonl", few)
        assert "has no pair of harmless to measure reward model harmless on" in refused(stages, (rewards, "harmless"))
        for split, given in kept.items():
            nameless = [{key: row[key] for key in row if key != "source"} for row in given]
            write_jsonl(folder / f"preferences_{split}.jsonl", nameless)
        assert "no row of the feedback names its source" in refused(stages, (rewards, "helpful"))
    finally:
        for split, given in kept.items():
            write_jsonl(folder / f"preferences_{split}.jsonl", given)


@pytest.mark.slow
def test_a_model_that_is_no_longer_listed_is_removed(stages):
    stages((reward,), (rewards, "helpful"), (rewards, "harmless"))
    other = {"policy": {"rewards": [{"name": "model", "model": "helpful"}]}}
    stages((reward,), reward_models={"names": ["helpful"]}, **other)
    assert Path("models/rewards/helpful/config.json").is_file() and not Path("models/rewards/harmless").exists()


# --- reward.base ---


def place_base(checkout, template=None, size=300):
    """A tiny language model with a tokenizer of its own in inputs/rewards/other."""
    folder = checkout / "inputs/rewards/other"
    tokenizer = ready_tokenizer(train_tokenizer([row["chosen"] for row in pairs("helpful")] * 3, size))
    if template is not None:
        tokenizer.chat_template = template
    config = load_config(checkout / "helpdesk/model.json")
    config.vocab_size = len(tokenizer)
    torch.manual_seed(1)
    save_policy(new_policy(config), tokenizer, folder, max_new_tokens=8)
    return folder


TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{{ eos_token }}"


@pytest.mark.slow
def test_a_reward_model_with_another_tokenizer_scores_texts_but_starts_no_critic(checkout, stages):
    """The summary names the base; scores follow from the model's own template, and centring makes their mean 0."""
    folder = place_base(checkout, TEMPLATE)
    base_params = {"base": "inputs/rewards/other"}
    one = {"names": ["helpful"]}
    only = {"rewards": [{"name": "model", "model": "helpful"}]}
    stages((reward,), (rewards, "helpful"), reward=base_params, reward_models=one, policy=only)
    summary = read("models/rewards/helpful/summary.json")
    assert summary["base"]["name"] == "other" and len(summary["base"]["weights_sha256"]) == 64
    model = load_scalar_model("models/rewards/helpful")
    tokenizer = load_tokenizer("models/rewards/helpful")
    assert model.has_own_tokenizer and tokenizer.chat_template == TEMPLATE
    assert tokenizer.get_vocab() == load_tokenizer(folder).get_vocab()
    row = read_jsonl(Path("data/feedback/preferences_train.jsonl"))[0]
    text = f"<user> {row['prompt'][0]['content']}\n<assistant> {row['chosen']}\n{tokenizer.eos_token}"
    ids = tokenizer.encode(text, add_special_tokens=False)
    (unit,) = preference_units_of(row, tokenizer)
    assert [*unit[0].prompt_ids, *unit[0].response_ids] == ids
    assert load_scalar_model("models/judge").has_own_tokenizer
    critic = {"policy": only, "reward_models": one, "reward": base_params}
    message = refused(stages, (online, "ppo"), **critic)
    assert "has a tokenizer of its own" in message and "Set policy.critic to sft" in message
    stages((online, "ppo"), **merged(critic, {"policy": {"critic": "sft"}}))
    step = read_jsonl(Path("models/policies/ppo/metrics.jsonl"))[0]
    assert step["score"] == pytest.approx(step["reward_helpful"], abs=1e-6)


def preference_units_of(row, tokenizer):
    path = Path("one.jsonl")
    write_jsonl(path, [row])
    return preference_units(path, OwnTokenizer(tokenizer, "other"))


@pytest.mark.slow
def test_a_base_with_the_policys_tokenizer_reads_token_ids(checkout, stages):
    """The SFT model itself as base trains the same reward model as without a base."""
    one, only = {"names": ["helpful"]}, {"rewards": [{"name": "model", "model": "helpful"}]}
    stages((rewards, "helpful"), reward_models=one, policy=only)
    alone = load_scalar_model("models/rewards/helpful").state_dict()
    shutil.copytree("models/sft", "inputs/rewards/same")
    stages((rewards, "helpful"), reward={"base": "inputs/rewards/same"}, reward_models=one, policy=only)
    model = load_scalar_model("models/rewards/helpful")
    assert not model.has_own_tokenizer
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in alone.items())


@pytest.mark.slow
def test_a_base_whose_tokenizer_exceeds_its_embedding_is_refused(checkout):
    folder = place_base(checkout)
    larger = train_tokenizer([row["prompt"] for row in pairs("helpful")], 400)
    save_tokenizer(ready_tokenizer(larger), folder)
    with pytest.raises(UserError, match=r"reward.base inputs/rewards/other: the tokenizer has ids up to \d+"):
        reward_base("inputs/rewards/other", checkout)
    with pytest.raises(UserError, match=r"reward.base inputs/rewards/none has no config.json"):
        reward_base("inputs/rewards/none", checkout)
