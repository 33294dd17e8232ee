"""Stage `reward`: the reward model or an ensemble, and a second one as judge where there is no gold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_core.algorithms.base.table import reward_loss
from rlhf_core.algorithms.reward.bradley_terry import BradleyTerry
from rlhf_core.algorithms.reward.ranking import ordered_alike
from rlhf_core.common.batch import Unit, collate_units
from rlhf_core.common.errors import UserError
from rlhf_core.common.seeding import seed_everything
from rlhf_core.loops.common import preflight
from rlhf_core.loops.offline import train_offline
from rlhf_core.maths.metrics import correlation, pair_metrics, root_mean_square
from rlhf_core.models.ensembles import ScalarEnsemble, member_folder, save_reward_model
from rlhf_core.models.forward import score_outputs
from rlhf_core.models.sampling import sampled_batch
from rlhf_core.models.store import ScalarModel, load_policy, load_tokenizer, new_scalar_model
from rlhf_core.scoring.rewards import ModelReward, Sampled
from tasks.common.accelerator import accelerator_of
from tasks.common.preflight import ROWS, Check, pad_token, prepared, require, row_checks, run_checks, tolerance
from tasks.common.rows import (
    as_prompts,
    pair_sources,
    preference_units,
    prepared_kind,
    ranking_units,
    rating_scale,
    rating_units,
)
from tasks.common.sampling import make_sampler, sample_responses
from tasks.common.train import write_curve
from tasks.data.kinds import ANSWERS
from tasks.files.jsonl import read_jsonl
from tasks.params.schema import Params
from tasks.runtime.stage import Stage, main, open_stage, write_json

OUT, JUDGE_OUT = "models/reward", "models/judge"
FEEDBACK = Path("data/feedback")
FILES = {"pairs": "preferences", "ratings": "ratings", "rankings": "rankings"}  # by an algorithm's `data`
FORMS = {"preferences": "side_by_side", "ratings": "likert", "rankings": "ranking"}
LOSSES = {"preferences": "bradley_terry", "ratings": "likert", "rankings": "plackett_luce"}


@dataclass(frozen=True)
class Task:
    """What one reward model learns from; the held-out units are in the same form as the training units."""

    name: str
    algorithm: Any
    train: list[Unit]
    held_out: list[Unit]
    rating_scale: tuple[float, float] | None = None  # mean and standard deviation that scores were standardised with
    members: int = 1


def reward() -> None:
    """Fit reward models to the feedback, or write down why there is none."""
    with open_stage("reward") as stage:
        tokenizer = load_tokenizer("data/prepared/tokenizer")
        held_out, judge_train = _pairs("development", tokenizer), _pairs("judge", tokenizer)
        present = [name for name in LOSSES if _rows(name, "train")]
        if present:
            _check(held_out, judge_train)
            run_checks("reward", checks(stage.params))
            _fit(stage, OUT, _task(stage, present))
        else:
            write_json(stage.out(OUT) / "none.json", {"why": _no_reward_model()})
        if judge_train:
            _fit(stage, JUDGE_OUT, Task("judge", BradleyTerry(), judge_train, held_out))
        else:
            write_json(stage.out(JUDGE_OUT) / "none.json", {"why": _no_judge()})


def _no_reward_model() -> str:
    return f"no preferences: {'rewards are verified answers' if prepared_kind() == ANSWERS else 'the data holds none'}"


def _no_judge() -> str:
    has_gold = prepared_kind() in ("helpdesk", ANSWERS)
    return "evaluation has gold, so no second reward model" if has_gold else "the data holds no feedback to fit one to"


def checks(params: Params) -> Iterator[Check]:
    """What is looked at before training; nothing where the data holds no preferences."""
    require("reward")
    tokenizer = load_tokenizer("data/prepared/tokenizer")
    pairs = preference_units(FEEDBACK / "preferences_development.jsonl", tokenizer, ROWS)
    rows = [example for pair in pairs for example in pair]
    if rows:
        model = prepared(params, new_scalar_model("models/sft"))
        pad, rounding = pad_token(tokenizer), tolerance(params)
        yield from row_checks(rows, tokenizer, is_sampled=True)
        yield "scores in any batch", partial(preflight.check_scores, model, rows, pad, rounding)
        yield "learning rate", partial(preflight.check_learning_rate, model, params.reward.learning_rate)


def _check(held_out: list[Unit], judge_train: list[Unit]) -> None:
    """Whatever the loss, reward models are measured on held-out preferences, and the judge learns from some."""
    if all(unit[0].label == 0.5 for unit in held_out):
        raise UserError(
            f"{FEEDBACK}/preferences_development.jsonl holds no pair to measure the reward model on. Give more data, "
            "or raise sample.development_prompts or prepare.development_fraction."
        )
    if not judge_train and prepared_kind() != "helpdesk":
        raise UserError(
            f"{FEEDBACK}/preferences_judge.jsonl is empty, and without gold the judge is fitted to it. "
            "Raise prepare.judge_fraction, or give data in which responses to one prompt differ in worth."
        )


def _rows(name: str, split: str) -> list[dict[str, Any]]:
    path = FEEDBACK / f"{name}_{split}.jsonl"
    return read_jsonl(path) if path.is_file() else []


def _pairs(split: str, tokenizer: PreTrainedTokenizerBase) -> list[Unit]:
    return preference_units(FEEDBACK / f"preferences_{split}.jsonl", tokenizer)


def _task(stage: Stage, present: list[str]) -> Task:
    """The configured loss with the rows that it learns from; `present` are the forms of feedback there are."""
    section = stage.params.reward
    kind = reward_loss(section.loss)
    algorithm = kind(**{item.name: getattr(section, item.name) for item in fields(kind)})
    name = FILES[algorithm.data]
    if name not in present:
        data = f"collect.form to {FORMS[name]}" if prepared_kind() == "helpdesk" else f"prepare.path to {name}"
        raise UserError(
            f"reward.loss {section.loss} learns from {name}, and {FEEDBACK} holds none. "
            f"Set {data}, or reward.loss to {LOSSES[present[0]]}."
        )
    tokenizer = load_tokenizer("data/prepared/tokenizer")
    train, held_out = (FEEDBACK / f"{name}_{split}.jsonl" for split in ("train", "development"))
    scale = rating_scale(train) if algorithm.data == "ratings" else None
    readers: dict[str, Callable[[Path], list[Unit]]] = {
        "pairs": lambda path: preference_units(path, tokenizer),
        "ratings": lambda path: rating_units(path, tokenizer, *(scale or (0.0, 1.0))),
        "rankings": lambda path: ranking_units(path, tokenizer),
    }
    read = readers[algorithm.data]
    return Task("reward", algorithm, read(train), read(held_out), scale, section.members)


def _fit(stage: Stage, out: str, task: Task) -> None:
    """One reward model or ensemble: trained, centred on the SFT policy, measured on held-out feedback, saved."""
    params = stage.params.reward
    tokenizer = load_tokenizer("data/prepared/tokenizer")
    folder = stage.out(out)
    members = [_train(stage, task, number, folder) for number in range(1, task.members + 1)]
    sampled = _sft_responses(stage, task.name)
    model: ScalarModel | ScalarEnsemble = members[0]
    if task.members > 1:
        for member in members:  # known up to a constant each, which would decide the minimum and the spread
            member.set_normalisation(ModelReward(member, params.micro_batch_size)(sampled).mean().item(), 1.0)
        model = ScalarEnsemble(members, params.aggregate, params.std_coef)
    on_sft = ModelReward(model, params.micro_batch_size)(sampled)
    model.set_normalisation(on_sft.mean().item(), on_sft.std(correction=0).item() if params.unit_scale else 1.0)
    summary = {
        **_pair_metrics(stage, model, task),
        **_native_metrics(stage, model, task),
        "pairs": 0,  # unless it is pairs that were trained on
        task.algorithm.data: len(task.train),
        "length_correlation": correlation(on_sft, sampled.batch.lengths),
        "offset": model.offset,
        "scale": model.scale,
        "members": task.members,
    }
    write_json(folder / "summary.json", summary)
    numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    stage.log({f"{task.name}_model/{key}": value for key, value in numbers.items()})
    save_reward_model(model, tokenizer, folder)


def _train(stage: Stage, task: Task, number: int, folder: Path) -> ScalarModel:
    """Member `number` of the ensemble, its learning curve written beside where it will stand."""
    tokenizer = load_tokenizer("data/prepared/tokenizer")
    name = task.name if number == 1 else f"{task.name}-{number}"
    seed_everything(stage.params.run.seed, "reward", name, "weights")
    model = new_scalar_model("models/sft")
    history = train_offline(
        accelerator_of(stage.params),
        model,
        score_outputs,
        task.algorithm,
        task.train,
        task.held_out,
        stage.params.reward,
        stage.training_run(name),
        tokenizer.pad_token_id,
    )
    if task.rating_scale is not None:
        model.set_rating_scale(*task.rating_scale)
    own = member_folder(folder, number)
    own.mkdir(parents=True, exist_ok=True)
    write_curve(own, history)
    return model


def _pair_metrics(stage: Stage, model: ScalarModel | ScalarEnsemble, task: Task) -> dict[str, Any]:
    """Accuracy, log-loss and calibration on held-out preferences, ties left out; also for each source apart.

    Probabilities are made of raw scores by the loss's own link; a loss without one has the accuracy only.
    """
    path = FEEDBACK / "preferences_development.jsonl"
    units = preference_units(path, load_tokenizer("data/prepared/tokenizer"))
    untied = [index for index, unit in enumerate(units) if unit[0].label != 0.5]
    scores = _scores(stage, model, [units[index] for index in untied])
    chosen, rejected = scores[0::2], scores[1::2]
    link = task.algorithm.link
    metrics: dict[str, Any] = pair_metrics(chosen, rejected, link) | {"held_out_pairs": len(untied)}
    sources = [pair_sources(path)[index] for index in untied]
    by_source = {}
    for source in sorted({source for source in sources if source is not None}):
        own = torch.tensor([other == source for other in sources], device=scores.device)
        by_source[source] = pair_metrics(chosen[own], rejected[own], link) | {"held_out_pairs": int(own.sum())}
    return metrics | ({"sources": by_source} if by_source else {})


def _native_metrics(stage: Stage, model: ScalarModel | ScalarEnsemble, task: Task) -> dict[str, float]:
    """Ratings: the error on the annotators' scale. Rankings: the share of their pairs in the right order."""
    if not task.held_out or task.algorithm.data == "pairs":
        return {}
    scores = _scores(stage, model, task.held_out)
    labels = torch.tensor([row.label for unit in task.held_out for row in unit], device=scores.device)
    if task.rating_scale is not None:
        return {"rmse": task.rating_scale[1] * root_mean_square(scores + model.offset - labels)}
    sizes = [len(unit) for unit in task.held_out]
    rankings = zip(torch.split(scores, sizes), torch.split(labels, sizes), strict=True)
    return {"ranking_accuracy": torch.stack([ordered_alike(*ranking) for ranking in rankings]).mean().item()}


@torch.no_grad()
def _scores(stage: Stage, model: ScalarModel | ScalarEnsemble, units: list[Unit]) -> Tensor:
    """Centred scores in the unit that the loss gave them, one per row of the units."""
    pad_id = load_tokenizer("data/prepared/tokenizer").pad_token_id
    device = next(model.parameters()).device
    size = stage.params.reward.micro_batch_size
    parts = [collate_units(units[start : start + size], pad_id) for start in range(0, len(units), size)]
    return torch.cat([score_outputs(model, part.to(device)).scores for part in parts]) * model.scale


def _sft_responses(stage: Stage, name: str) -> Sampled:
    """Responses of the SFT policy on training prompts, on which the mean reward is made 0."""
    params = stage.params
    tokenizer = load_tokenizer("data/prepared/tokenizer")
    accelerator = accelerator_of(stage.params)
    policy = accelerator.prepare_model(load_policy("models/sft"), evaluation_mode=True)
    rows = read_jsonl(Path("data/prepared/prompts_train.jsonl"))[: params.reward.centre_prompts]
    prompts = as_prompts(rows, tokenizer)
    sampler = make_sampler(policy, tokenizer, params.prepare.max_response_tokens, 1.0)
    responses = sample_responses(policy, tokenizer, prompts, sampler, (params.run.seed, f"reward/{name}/centre"))
    batch, _ = sampled_batch([p.ids for p in prompts], [r.ids for r in responses], tokenizer.pad_token_id)
    ended = torch.tensor([response.ended for response in responses], device=accelerator.device)
    return Sampled(batch.to(accelerator.device), ended, prompts, [response.text for response in responses])


if __name__ == "__main__":
    main(reward)
