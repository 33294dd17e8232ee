"""Stages sample, collect and reward with every form of feedback: tiny real runs in this process."""

import json
import math
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

import tiny
from checkout import make_checkout, write_params
from rlhf_core.algorithms.base.table import reward_loss, reward_losses
from rlhf_core.common.batch import collate, collate_units
from rlhf_core.common.errors import UserError
from rlhf_core.loops.common.run import minibatch_indices
from rlhf_core.maths.metrics import pair_metrics, root_mean_square
from rlhf_core.models.ensembles import ScalarEnsemble, load_reward_model
from rlhf_core.models.forward import response_logprobs, scores
from rlhf_core.models.store import (
    ScalarModel,
    load_policy,
    load_scalar_model,
    load_tokenizer,
)
from rlhf_core.models.tokens import encode_prompt, encode_response
from rlhf_core.scoring.rewards import ModelReward
from tasks.common.models import StageModels
from tasks.common.rows import preference_units, rating_scale, rating_units, text_units
from tasks.files.jsonl import read_jsonl, write_jsonl
from tasks.params.load import load_params, merged, validate, with_values
from tasks.reward_models.fit import sft_responses
from tasks.runtime.stage import Restored
from tasks.stages.base import base
from tasks.stages.collect import collect
from tasks.stages.prepare import prepare
from tasks.stages.reward import reward
from tasks.stages.sample import sample
from tasks.stages.sft import sft
from tools.closure import ROOT

SHORT = {"base": {"max_steps": 2}, "sft": {"max_steps": 2}}
FEEDBACK, REWARD = Path("data/feedback"), Path("models/reward")


@pytest.fixture(scope="module")
def checkout(module_patch, tmp_path_factory):
    """A checkout with a help desk and an SFT model."""
    folder = make_checkout(tmp_path_factory.mktemp("desk"), SHORT)
    module_patch.chdir(folder)
    for stage in (prepare, base, sft):
        stage()
    return folder


@pytest.fixture
def desk(checkout, monkeypatch):
    """A runner of stages in that checkout with changed parameters."""
    monkeypatch.chdir(checkout)
    return runner(checkout)


def runner(folder):
    unchanged = yaml.safe_load((folder / "params.yaml").read_text())

    def run_stages(*stages, **changes):
        write_params(folder, merged(unchanged, changes))
        try:
            for stage in stages:
                with suppress(Restored):  # it has already run with these parameters
                    stage()
        finally:
            write_params(folder, unchanged)
        return [read_json(path) for path in (FEEDBACK / "summary.json", REWARD / "summary.json") if path.is_file()]

    return run_stages


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def plain_scores(path, units):
    """Raw scores of a model folder, computed only with transformers."""
    model = load_scalar_model(path)
    raw = ScalarModel(AutoModelForSequenceClassification.from_pretrained(str(path)).eval())
    raw.set_normalisation(0.0, 1.0)
    batch = collate_units(units, load_tokenizer(path).pad_token_id)
    with torch.no_grad():
        found = scores(raw, batch)
        assert torch.allclose(scores(model, batch), (found - model.offset) / model.scale, atol=1e-5)
    return found


# --- the stages ---


def test_the_base_model_learns_every_token_of_its_text(checkout):
    """All tokens of a row except the first, on training and development split. The end token is the last."""
    tokenizer = load_tokenizer("data/prepared/tokenizer")
    rows = read_jsonl(Path("data/prepared/threads.jsonl"))
    sizes = [len(encode_prompt(tokenizer, r["prompt"]) + encode_response(tokenizer, r["response"])) for r in rows]
    curve = read_jsonl(Path("models/base/metrics.jsonl"))
    for step, metrics in enumerate(curve):
        chosen = minibatch_indices(step, len(rows), 16, load_params().run.seed, "base")
        assert metrics["trained_tokens"] == sum(sizes[index] - 1 for index in chosen)
    units = text_units(Path("data/prepared/demonstrations_development.jsonl"), tokenizer)
    assert {len(row.prompt_ids) for (row,) in units} == {1}
    batch = collate_units(units, tokenizer.pad_token_id)
    loss = -response_logprobs(load_policy("models/base"), batch).sum() / batch.response_mask.sum()
    assert curve[-1]["development_loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_likert_scores_train_a_reward_model_that_stores_the_scale(desk):
    """12 prompts with 3 responses and one score each. Pairs are two responses to a prompt with different scores."""
    feedback, summary = desk(sample, collect, reward, collect={"form": "likert", "scale": 7}, reward={"loss": "likert"})
    rows = read_jsonl(FEEDBACK / "ratings_train.jsonl")
    assert len(rows) == 36 == feedback["ratings"]["train"] == summary["ratings"]
    assert {row["score"] for row in rows} <= set(range(1, 8))
    assert feedback["pairs"]["train"] + feedback["ties"]["train"] + feedback["identical"]["train"] == 12 * 3
    assert len(read_jsonl(FEEDBACK / "preferences_train.jsonl")) == feedback["pairs"]["train"]
    config = read_json(REWARD / "config.json")
    mean, std = rating_scale(FEEDBACK / "ratings_train.jsonl")
    assert (config["rating_mean"], config["rating_std"]) == (mean, std)
    # The error on the scale, recomputed from the raw scores of transformers.
    held_out = rating_units(FEEDBACK / "ratings_development.jsonl", load_tokenizer(REWARD), mean, std)
    errors = plain_scores(REWARD, held_out) * std + mean
    errors -= torch.tensor([row["score"] for row in read_jsonl(FEEDBACK / "ratings_development.jsonl")])
    assert summary["rmse"] == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-4)
    assert {"accuracy", "held_out_pairs"} <= set(summary)
    assert not {"log_loss", "ece"} & set(summary)  # a rating is not a probability
    assert summary["pairs"] == 0


def test_rankings_train_plackett_luce(desk):
    """Every ranking of 3 is one unit and implies 3 verdicts."""
    feedback, summary = desk(sample, collect, reward, collect={"form": "ranking"}, reward={"loss": "plackett_luce"})
    rows = read_jsonl(FEEDBACK / "rankings_train.jsonl")
    assert len(rows) == 12 == summary["rankings"]
    assert all(len(row["responses"]) == len(row["responses_tokens"]) == len(row["ranks"]) == 3 for row in rows)
    assert feedback["pairs"]["train"] + feedback["ties"]["train"] + feedback["identical"]["train"] == 36
    assert 0 <= summary["ranking_accuracy"] <= 1
    assert 0 < feedback["agreement_between_annotators"] < 1
    curve = read_jsonl(REWARD / "metrics.jsonl")
    assert {"accuracy", "loss"} <= set(curve[0])
    assert "development_accuracy" in curve[-1]


def test_the_best_of_n_trains_a_model_of_the_choice(desk):
    """It gets rank 1, the others rank 2. It is better than two others: 24 pairs."""
    feedback, summary = desk(sample, collect, reward, collect={"form": "best_of_n"}, reward={"loss": "best_of_n"})
    assert all(sorted(row["ranks"]) == [1, 2, 2] for row in read_jsonl(FEEDBACK / "rankings_train.jsonl"))
    assert feedback["pairs"]["train"] + feedback["identical"]["train"] == 24
    assert summary["rankings"] == 12


def test_thumbs_make_unpaired_rows_and_pairs_where_a_prompt_has_both(desk):
    (feedback, *_) = desk(sample, collect, collect={"form": "thumbs"})
    rows = read_jsonl(FEEDBACK / "unpaired_train.jsonl")
    assert len(rows) == 36 == feedback["unpaired"]["train"]
    assert all(type(row["label"]) is bool and row["response_tokens"] for row in rows)
    both = [sum(row["label"] for row in rows[start : start + 3]) for start in range(0, 36, 3)]
    pairs = feedback["pairs"]["train"] + feedback["identical"]["train"]
    assert pairs == sum(good * (3 - good) for good in both)


def test_an_ensemble_is_a_plain_folder_with_members(desk):
    """Member 1 equals the single model of a run without an ensemble. The score aggregates the members' scores."""
    desk(sample, collect, reward)
    alone = (REWARD / "model.safetensors").read_bytes()
    changes = {"members": 2, "aggregate": "mean_minus_std", "std_coef": 0.5}
    (_, summary) = desk(sample, collect, reward, reward=changes)
    assert (REWARD / "model.safetensors").read_bytes() == alone
    assert (REWARD / "members/2/model.safetensors").read_bytes() != alone
    assert not (REWARD / "members/3").exists()
    assert (REWARD / "members/2/metrics.jsonl").is_file()
    config = read_json(REWARD / "config.json")
    assert [config[f"reward_{key}"] for key in ("members", "aggregate", "std_coef")] == [2, "mean_minus_std", 0.5]
    assert summary["members"] == 2
    model = load_reward_model(REWARD)
    assert isinstance(model, ScalarEnsemble)
    batch = collate(tiny.examples(), load_tokenizer(REWARD).pad_token_id)
    with torch.no_grad():
        first, second = (scores(load_scalar_model(path), batch) for path in (REWARD, REWARD / "members/2"))
        expected = (first + second) / 2 - 0.5 * (first - second).abs() / 2
        assert torch.allclose(scores(model, batch), expected, atol=1e-5)
    plain_scores(REWARD, [(example,) for example in tiny.examples()])


def test_members_of_an_ensemble_start_from_heads_of_their_own(desk):
    """A few steps of 1e-6 leave the heads where they began."""
    desk(sample, collect, reward, reward={"members": 2, "learning_rate": 1e-6})
    first, second = (load_scalar_model(path).model.score.weight for path in (REWARD, REWARD / "members/2"))
    assert (first - second).abs().max() > 1e-3


def onsft_responses(model):
    """Scores of the responses that the stage centres on."""
    params = load_params()
    return ModelReward(model, 16)(sft_responses(SimpleNamespace(params=params), StageModels(params), "reward"))


@pytest.mark.parametrize("unit_scale", [True, False])
def test_rewards_have_mean_0_on_the_sft_model_and_std_1_if_configured(desk, unit_scale):
    (_, summary) = desk(sample, collect, reward, reward={"unit_scale": unit_scale})
    model = load_reward_model(REWARD)
    scored = onsft_responses(model)
    model.set_normalisation(0.0, 1.0)
    raw = onsft_responses(model)
    spread = raw.std(correction=0).item()
    assert abs(raw.mean().item()) > 1e-3  # otherwise there would be nothing to centre
    assert abs(math.log(spread)) > 0.5  # otherwise an inverted scale would not show
    assert scored.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert scored.std(correction=0).item() == pytest.approx(1.0 if unit_scale else spread, rel=1e-3)
    assert (summary["offset"], summary["scale"]) == pytest.approx(
        (raw.mean().item(), spread if unit_scale else 1.0), rel=1e-3
    )


def test_each_member_of_an_ensemble_is_centred_separately(desk):
    """The members' means are equal, so the minimum is not always the same member's. The mean of the minimum is 0."""
    desk(sample, collect, reward, reward={"members": 2, "aggregate": "min"})
    model = load_reward_model(REWARD)
    means = [onsft_responses(member).mean().item() for member in model.models]
    assert means[0] == pytest.approx(means[1], abs=1e-4)
    assert means[0] > 1e-2  # above the mean of the minimum
    assert onsft_responses(model).mean().item() == pytest.approx(0.0, abs=1e-4)


def test_further_judgements_measure_agreement_and_change_nothing_else(desk):
    one, three = (
        [desk(sample, collect, collect={"development_judgements": number})[0]]
        + [(FEEDBACK / f"preferences_{split}.jsonl").read_bytes() for split in ("train", "development", "judge")]
        for number in (1, 3)
    )
    assert one[1:] == three[1:]
    assert one[0].pop("agreement_between_annotators") is None
    assert 0 < three[0].pop("agreement_between_annotators") < 1
    assert one[0] == three[0]
    judgements = read_jsonl(FEEDBACK / "judgements.jsonl")
    assert len(judgements) == 12 * 3 + 6 * 3 * 3
    shown = {}
    for row in judgements[12 * 3 :]:
        shown.setdefault((str(row["prompt"]), *sorted(row["responses"])), []).append(row["annotator"])
    assert all(len(set(annotators)) == 3 for annotators in shown.values())


def test_ties_are_kept_if_configured(desk):
    """They are trained with label ½ and excluded from the held-out measures."""
    feedback, summary = desk(
        sample, collect, reward, sample={"prompts": 30, "development_prompts": 20}, collect={"keep_ties": True}
    )
    for split in ("train", "development"):
        rows = read_jsonl(FEEDBACK / f"preferences_{split}.jsonl")
        assert sum(row.get("label") == 0.5 for row in rows) == feedback["ties"][split] > 0
        assert sum("label" not in row for row in rows) == feedback["pairs"][split]
    assert summary["held_out_pairs"] == feedback["pairs"]["development"]
    assert summary["pairs"] == feedback["pairs"]["train"] + feedback["ties"]["train"]


@pytest.mark.parametrize(
    ("form", "loss", "message"),
    [
        ("side_by_side", "likert", "reward.loss likert learns from ratings, but data/feedback has none. "
         "Set collect.form to likert, or reward.loss to bradley_terry."),
        ("likert", "best_of_n", "reward.loss best_of_n learns from rankings, but data/feedback has none. "
         "Set collect.form to ranking, or reward.loss to bradley_terry."),
    ],
)  # fmt: skip
def test_a_loss_without_its_form_of_feedback_is_rejected(desk, form, loss, message):
    with pytest.raises(UserError) as caught:
        desk(sample, collect, reward, collect={"form": form}, reward={"loss": loss})
    assert str(caught.value) == message


# --- a user's own rows ---


def rated_rows():
    """40 prompts, each with a good and a bad answer; two sources. One row is broken."""
    for number in range(40):
        prompt, source = f"What is {number} and one?", ("sums", "riddles")[number % 2]
        yield {"prompt": prompt, "response": f"It is {number + 1}.", "score": 5, "source": source}
        yield {"prompt": prompt, "response": "Who can say?", "score": 2, "source": source}
    yield {"prompt": "What?", "response": "Nothing.", "score": 9}


def test_a_users_ratings_go_through_every_stage_to_a_judge(module_patch, tmp_path, monkeypatch):
    """Ratings, a thurstone model of the implied pairs with figures per source, and a likert model."""
    changes = merged(SHORT, {"prepare": {"format": "auto", "path": "rated.jsonl", "judge_fraction": 0.2}})
    changes["prepare"] |= {"development_fraction": 0.2, "test_fraction": 0.2}
    folder = make_checkout(tmp_path, changes)
    write_jsonl(folder / "rated.jsonl", rated_rows())
    monkeypatch.chdir(folder)
    stages = runner(folder)
    feedback, summary = stages(prepare, base, sft, sample, collect, reward, reward={"loss": "thurstone"})
    card = read_json(Path("data/prepared/card.json"))
    assert card["kind"] == "ratings"
    assert card["dropped_rows"] == [{"file": "rated.jsonl", "line": 81, "reason": "score outside 1 to collect.scale 5"}]
    assert feedback["source"] == "passed on: the data set has ratings"
    assert feedback["ratings"] == {"train": 32, "development": 16, "judge": 16}
    assert feedback["pairs"] == {"train": 16, "development": 8, "judge": 8}
    assert set(summary["sources"]) == {"sums", "riddles"}
    assert sum(figures["held_out_pairs"] for figures in summary["sources"].values()) == 8 == summary["held_out_pairs"]
    weighted = sum(figures["accuracy"] * figures["held_out_pairs"] for figures in summary["sources"].values()) / 8
    assert summary["accuracy"] == pytest.approx(weighted)
    held_out = preference_units(FEEDBACK / "preferences_development.jsonl", load_tokenizer(REWARD))
    raw = plain_scores(REWARD, held_out)
    assert summary["log_loss"] == pytest.approx(-torch.special.log_ndtr(raw[0::2] - raw[1::2]).mean().item(), rel=1e-4)
    assert read_json(Path("models/judge/summary.json"))["pairs"] == 8
    (_, summary) = stages(reward, reward={"loss": "likert"})
    assert summary["ratings"] == 32
    assert read_json(REWARD / "config.json")["rating_mean"] == 3.5
    with pytest.raises(UserError, match=r"Set prepare.path to rankings, or reward.loss to bradley_terry"):
        stages(reward, reward={"loss": "ranking_pairs"})


# --- parameters ---

RAW = yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.mark.pitfall(28)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"collect.scale": 7}, "scale has no effect on form side_by_side"),
        ({"collect.form": "thumbs", "collect.keep_ties": True}, "keep_ties has no effect on form thumbs"),
        ({"collect.judgements": 4}, "development_judgements is smaller than judgements"),
        ({"collect.annotators": 2}, "is 3, but the panel has only 2 annotators"),
        ({"reward.loss": "thurstone", "reward.margin": 0.5}, "margin has no effect on loss thurstone"),
        ({"reward.loss": "likert", "reward.label_smoothing": 0.1}, "label_smoothing has no effect on loss likert"),
        ({"reward.aggregate": "min"}, "aggregate has no effect on a single model"),
        ({"reward.members": 2, "reward.std_coef": 2.0}, "std_coef has no effect on aggregate mean"),
    ],
)
def test_options_of_feedback_and_reward_without_effect_raise(changes, message):
    with pytest.raises(UserError, match=message):
        validate(with_values(RAW, changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"reward.loss": "thurstone", "reward.label_smoothing": 0.1},
        {"reward.margin": 0.5, "reward.label_smoothing": 0.1},
        {"reward.members": 3, "reward.aggregate": "mean_minus_std", "reward.std_coef": 2.0},
        {"collect.form": "likert", "collect.scale": 10, "collect.keep_ties": True},
    ],
)
def test_options_that_have_an_effect_are_accepted(changes):
    validate(with_values(RAW, changes))


# --- figures ---


def test_thurstones_probabilities_are_normal():
    """Φ(1) = 0.841345 and Φ(-1) = 0.158655: confidence is 0.841345 twice, and one is right."""
    found = pair_metrics(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), "normal")
    log_loss = -(math.log(0.841345) + math.log(0.158655)) / 2
    error = (math.log(0.841345) - math.log(0.158655)) / 2 / math.sqrt(2)
    expected = {"accuracy": 0.5, "log_loss": log_loss, "log_loss_se": error, "ece": 0.341345}
    assert found == pytest.approx(expected, abs=1e-5)
    assert math.isfinite(pair_metrics(torch.tensor([0.0]), torch.tensor([30.0]), "normal")["log_loss"])


def test_without_a_link_there_is_only_the_accuracy():
    assert pair_metrics(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), None) == {"accuracy": 0.5}


def test_every_loss_has_its_link():
    assert {name: reward_loss(name).link for name in reward_losses()} == {
        "bradley_terry": "logistic",
        "thurstone": "normal",
        "likert": None,
        "ranking_pairs": "logistic",
        "plackett_luce": "logistic",
        "best_of_n": "logistic",
    }


def test_root_mean_square():
    """√((9 + 16) / 2)."""
    assert root_mean_square(torch.tensor([3.0, -4.0])) == pytest.approx(math.sqrt(12.5))
