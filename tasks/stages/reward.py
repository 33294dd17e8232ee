"""Stage `reward`: train a reward model or an ensemble, and a second reward model as the judge if there is no gold."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_core.algorithms.base.rankings import ordered_alike
from rlhf_core.algorithms.base.table import reward_loss
from rlhf_core.algorithms.reward.bradley_terry import BradleyTerry
from rlhf_core.common.batch import Unit, collate_units
from rlhf_core.common.data import Data
from rlhf_core.common.errors import UserError
from rlhf_core.common.fields import from_section
from rlhf_core.common.seeding import seed_everything
from rlhf_core.feedback.form import Form
from rlhf_core.feedback.judgement import PREFERENCES
from rlhf_core.feedback.table import form_feeding, stored_forms
from rlhf_core.loops.common import preflight
from rlhf_core.loops.offline import train_offline
from rlhf_core.maths.metrics import correlation, pair_metrics, root_mean_square
from rlhf_core.models.ensembles import ScalarEnsemble, member_folder, save_reward_model
from rlhf_core.models.forward import score_outputs
from rlhf_core.models.merging import require_trained
from rlhf_core.models.responses import Responses
from rlhf_core.models.store import ScalarModel, load_tokenizer
from rlhf_core.scoring.rewards import ModelReward
from tasks.common.accelerator import accelerator_of
from tasks.common.models import StageModels
from tasks.common.preflight import ROWS, Check, pad_token, prepared, require, row_checks, run_checks, tolerance
from tasks.common.rows import READERS, as_prompts, pair_sources, preference_units, rating_scale
from tasks.common.sampling import make_sampler, sample_responses
from tasks.common.train import write_curve
from tasks.files.jsonl import read_jsonl
from tasks.files.paths import FEEDBACK, JUDGE, NO_MODEL, PREPARED, REWARD, SUMMARY, TOKENIZER, rows
from tasks.params.schema import Params
from tasks.problems.problem import Problem
from tasks.problems.table import prepared_problem
from tasks.runtime.stage import Stage, main, open_stage, write_json


@dataclass(frozen=True)
class Fit:
    """One reward model or ensemble to train. The held-out units have the same form as the training units."""

    name: str
    algorithm: Any
    train: list[Unit]
    held_out: list[Unit]
    rating_scale: tuple[float, float] | None = None  # mean and standard deviation by which scores are standardised
    members: int = 1


def reward() -> None:
    """Train reward models on the feedback, or record why there are none."""
    with open_stage("reward") as stage:
        tokenizer = load_tokenizer(TOKENIZER)
        problem = prepared_problem()
        held_out, judge_train = (
            preference_units(rows(FEEDBACK, PREFERENCES, split), tokenizer) for split in ("development", "judge")
        )
        models = StageModels(stage.params)
        present = [form for form in stored_forms() if _count(form.file)]
        if present:
            _check(problem, held_out, judge_train)
            run_checks("reward", checks(stage.params))
            _fit(stage, models, REWARD, _configured(stage, problem, present))
        else:
            write_json(stage.out(str(REWARD)) / NO_MODEL, {"why": f"no preferences: {problem.no_feedback}"})
        if judge_train:
            _fit(stage, models, JUDGE, Fit("judge", BradleyTerry(), judge_train, held_out))
        else:
            write_json(stage.out(str(JUDGE)) / NO_MODEL, {"why": problem.why_no_judge_model()})


def _count(file: str) -> int:
    """Number of training rows of feedback in a file."""
    path = rows(FEEDBACK, file, "train")
    return len(read_jsonl(path)) if path.is_file() else 0


def checks(params: Params) -> Iterator[Check]:
    """Yield the checks before training. There are none if the data has no preferences."""
    require("reward")
    tokenizer = load_tokenizer(TOKENIZER)
    pairs = preference_units(rows(FEEDBACK, PREFERENCES, "development"), tokenizer, ROWS)
    examples = [example for pair in pairs for example in pair]
    if examples:
        model = prepared(params, StageModels(params).new_reward_model())
        pad, rounding = pad_token(tokenizer), tolerance(params)
        yield from row_checks(examples, tokenizer, is_sampled=True)
        yield "scores in any batch", partial(preflight.check_scores, model, examples, pad, rounding)
        yield "learning rate", partial(preflight.check_learning_rate, model, params.reward.learning_rate)


def _check(problem: Problem, held_out: list[Unit], judge_train: list[Unit]) -> None:
    """Check that there are held-out preferences to measure reward models on and preferences for the judge."""
    if all(unit[0].preference == 0.5 for unit in held_out):
        raise UserError(
            f"{rows(FEEDBACK, PREFERENCES, 'development')} has no pair to measure the reward model on. "
            "Add data, or raise sample.development_prompts or prepare.development_fraction."
        )
    if problem.needs_judge_model and not judge_train:
        raise UserError(
            f"{rows(FEEDBACK, PREFERENCES, 'judge')} is empty, but without gold the judge is trained on it. "
            "Raise prepare.judge_fraction, or add data in which responses to the same prompt differ in quality."
        )


def _configured(stage: Stage, problem: Problem, present: list[Form]) -> Fit:
    """Return the configured loss with the rows that it learns from. `present` lists the forms that have rows.

    Raises:
        UserError: there are no such rows; the message names a setting that makes them, and a loss for the rows present.
    """
    section = stage.params.reward
    algorithm = from_section(reward_loss(section.loss), section)
    form = form_feeding(algorithm.data)
    if form.file not in [other.file for other in present]:
        raise UserError(
            f"reward.loss {section.loss} learns from {form.file}, but {FEEDBACK} has none. "
            f"Set {problem.setting_for(form.name, form.file)}, or reward.loss to {present[0].suggested_loss}."
        )
    tokenizer = load_tokenizer(TOKENIZER)
    read = READERS[algorithm.data]
    train, held_out = (read(FEEDBACK, split, tokenizer, None) for split in ("train", "development"))
    scale = rating_scale(rows(FEEDBACK, form.file, "train")) if algorithm.data is Data.RATINGS else None
    return Fit("reward", algorithm, train, held_out, scale, section.members)


def _fit(stage: Stage, models: StageModels, out: Path, fit: Fit) -> None:
    """Train one reward model or ensemble, centre it on the SFT policy, measure it on held-out feedback, and save it."""
    params = stage.params.reward
    tokenizer = load_tokenizer(TOKENIZER)
    folder = stage.out(str(out))
    members = [_train(stage, models, fit, number, folder) for number in range(1, fit.members + 1)]
    sampled = _sft_responses(stage, models, fit.name)
    model: ScalarModel | ScalarEnsemble = members[0]
    if fit.members > 1:
        for member in members:  # each is known up to a constant, which would dominate the minimum and the spread
            member.set_normalisation(ModelReward(member, params.micro_batch_size)(sampled).mean().item(), 1.0)
        model = ScalarEnsemble(members, params.aggregate, params.std_coef)
    on_sft = ModelReward(model, params.micro_batch_size)(sampled)
    model.set_normalisation(on_sft.mean().item(), on_sft.std(correction=0).item() if params.unit_scale else 1.0)
    summary = {
        **_pair_metrics(stage, model, fit),
        **_native_metrics(stage, model, fit),
        "pairs": 0,  # unless the training units are pairs
        fit.algorithm.data: len(fit.train),
        "length_correlation": correlation(on_sft, sampled.batch.lengths),
        "offset": model.offset,
        "scale": model.scale,
        "members": fit.members,
    }
    write_json(folder / SUMMARY, summary)
    numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    stage.log({f"{fit.name}_model/{key}": value for key, value in numbers.items()})
    save_reward_model(model, tokenizer, folder)


def _train(stage: Stage, models: StageModels, fit: Fit, number: int, folder: Path) -> ScalarModel:
    """Train member `number` of the ensemble; its learning curve is written into the output folder."""
    tokenizer = load_tokenizer(TOKENIZER)
    name = fit.name if number == 1 else f"{fit.name}-{number}"
    seed_everything(stage.params.run.seed, "reward", name, "weights")
    model = models.new_reward_model()
    history = train_offline(
        accelerator_of(stage.params),
        model,
        score_outputs,
        fit.algorithm,
        fit.train,
        fit.held_out,
        stage.params.reward,
        stage.training_run(name),
        tokenizer.pad_token_id,
    )
    require_trained(model.model)
    if fit.rating_scale is not None:
        model.set_rating_scale(*fit.rating_scale)
    own = member_folder(folder, number)
    own.mkdir(parents=True, exist_ok=True)
    write_curve(own, history)
    return model


def _pair_metrics(stage: Stage, model: ScalarModel | ScalarEnsemble, fit: Fit) -> dict[str, Any]:
    """Accuracy, log-loss and calibration on held-out preferences without ties; also separately for each source.

    The loss's own link turns raw scores into probabilities. A loss without a link has only the accuracy.
    """
    path = rows(FEEDBACK, PREFERENCES, "development")
    units = preference_units(path, load_tokenizer(TOKENIZER))
    untied = [index for index, unit in enumerate(units) if unit[0].preference != 0.5]
    scores = _scores(stage, model, [units[index] for index in untied])
    chosen, rejected = scores[0::2], scores[1::2]
    link = fit.algorithm.link
    metrics: dict[str, Any] = pair_metrics(chosen, rejected, link) | {"held_out_pairs": len(untied)}
    sources = [pair_sources(path)[index] for index in untied]
    by_source = {}
    for source in sorted({source for source in sources if source is not None}):
        own = torch.tensor([other == source for other in sources], device=scores.device)
        by_source[source] = pair_metrics(chosen[own], rejected[own], link) | {"held_out_pairs": int(own.sum())}
    return metrics | ({"sources": by_source} if by_source else {})


def _native_metrics(stage: Stage, model: ScalarModel | ScalarEnsemble, fit: Fit) -> dict[str, float]:
    """For ratings, the error on the annotators' scale. For rankings, the share of their pairs in the right order."""
    if not fit.held_out or fit.algorithm.data is Data.PAIRS:
        return {}
    scores = _scores(stage, model, fit.held_out)
    held_out = [row for unit in fit.held_out for row in unit]
    if fit.rating_scale is not None:
        ratings = torch.tensor([row.rating for row in held_out], device=scores.device)
        return {"rmse": fit.rating_scale[1] * root_mean_square(scores + model.offset - ratings)}
    ranks = torch.tensor([row.rank for row in held_out], device=scores.device)
    sizes = [len(unit) for unit in fit.held_out]
    rankings = zip(torch.split(scores, sizes), torch.split(ranks, sizes), strict=True)
    return {"ranking_accuracy": torch.stack([ordered_alike(*ranking) for ranking in rankings]).mean().item()}


@torch.no_grad()
def _scores(stage: Stage, model: ScalarModel | ScalarEnsemble, units: list[Unit]) -> Tensor:
    """Centred scores in the unit of the loss, one per row of the units."""
    pad_id = load_tokenizer(TOKENIZER).pad_token_id
    device = next(model.parameters()).device
    size = stage.params.reward.micro_batch_size
    parts = [collate_units(units[start : start + size], pad_id) for start in range(0, len(units), size)]
    return torch.cat([score_outputs(model, part.to(device)).scores for part in parts]) * model.scale


def _sft_responses(stage: Stage, models: StageModels, name: str) -> Responses:
    """Responses of the SFT policy on training prompts, whose mean reward is set to 0."""
    params = stage.params
    tokenizer = load_tokenizer(TOKENIZER)
    accelerator = models.accelerator
    policy = accelerator.prepare_model(models.reference(), evaluation_mode=True)
    given = read_jsonl(rows(PREPARED, "prompts", "train"))[: params.reward.centre_prompts]
    prompts = as_prompts(given, tokenizer)
    sampler = make_sampler(policy, tokenizer, params.prepare.max_response_tokens, 1.0)
    responses = sample_responses(policy, tokenizer, prompts, sampler, (params.run.seed, f"reward/{name}/centre"))
    return Responses(prompts, responses, tokenizer.pad_token_id, accelerator.device)


if __name__ == "__main__":
    main(reward)
