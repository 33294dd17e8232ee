"""Train a reward model or an ensemble, centre it, measure it, and save it."""

from pathlib import Path

from rlhf_core.common.seeding import seed_everything
from rlhf_core.loops.offline import train_offline
from rlhf_core.maths.metrics import correlation
from rlhf_core.models.ensembles import ScalarEnsemble, member_folder, save_reward_model
from rlhf_core.models.forward import score_outputs
from rlhf_core.models.merging import require_trained
from rlhf_core.models.responses import Responses
from rlhf_core.models.store import ScalarModel, load_tokenizer
from rlhf_core.scoring.foreign import reward_of
from tasks.common.accelerator import accelerator_of
from tasks.common.models import StageModels
from tasks.common.rows import as_prompts
from tasks.common.sampling import make_sampler, sample_responses
from tasks.common.train import write_curve
from tasks.files.jsonl import read_jsonl
from tasks.files.paths import PREPARED, SUMMARY, TOKENIZER, rows
from tasks.reward_models.feedback import Fit
from tasks.reward_models.measure import native_metrics, pair_metrics_of
from tasks.reward_models.start import Start
from tasks.runtime.stage import Stage, write_json


def fit_model(stage: Stage, begin: Start, out: Path, fit: Fit) -> None:
    """Train one reward model or ensemble, centre it on the SFT policy, measure it on held-out feedback, and save it."""
    params = stage.params.reward
    folder = stage.out(str(out))
    members = [_train(stage, begin, fit, number, folder) for number in range(1, fit.members + 1)]
    models = begin.models if begin.manifest is None else StageModels(stage.params)
    sampled = sft_responses(stage, models, fit.name)
    own = begin.own.tokenizer if begin.own is not None else None
    model: ScalarModel | ScalarEnsemble = members[0]
    if fit.members > 1:
        for member in members:  # each is known up to a constant, which would dominate the minimum and the spread
            alone = reward_of(member, own, fit.name, params.micro_batch_size)
            member.set_normalisation(alone(sampled).mean().item(), 1.0)
        model = ScalarEnsemble(members, params.aggregate, params.std_coef)
    on_sft = reward_of(model, own, fit.name, params.micro_batch_size)(sampled)
    model.set_normalisation(on_sft.mean().item(), on_sft.std(correction=0).item() if params.unit_scale else 1.0)
    summary = {
        **pair_metrics_of(stage, begin, model, fit),
        **native_metrics(stage, begin, model, fit),
        "pairs": 0,  # unless the training units are pairs
        fit.algorithm.data: len(fit.train),
        "length_correlation": correlation(on_sft, sampled.batch.lengths),
        "offset": model.offset,
        "scale": model.scale,
        "members": fit.members,
        **({} if begin.manifest is None else {"base": begin.manifest}),
        **({} if fit.sources is None else {"trained_on": list(fit.sources)}),
    }
    write_json(folder / SUMMARY, summary)
    numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    numbers |= {f"accuracy/{source}": own["accuracy"] for source, own in summary.get("sources", {}).items()}
    stage.log({f"{fit.name}_model/{key}": value for key, value in numbers.items()})
    save_reward_model(model, begin.tokenizer, folder)


def _train(stage: Stage, begin: Start, fit: Fit, number: int, folder: Path) -> ScalarModel:
    """Train member `number` of the ensemble; its learning curve is written into the output folder."""
    name = fit.name if number == 1 else f"{fit.name}-{number}"
    seed_everything(stage.params.run.seed, "reward", name, "weights")
    model = begin.models.new_reward_model()
    if begin.own is not None:
        model.set_own_tokenizer()
    history = train_offline(
        accelerator_of(stage.params),
        model,
        score_outputs,
        fit.algorithm,
        fit.train,
        fit.held_out,
        stage.params.reward,
        stage.training_run(name),
        begin.tokenizer.pad_token_id,
    )
    require_trained(model.model)
    if fit.rating_scale is not None:
        model.set_rating_scale(*fit.rating_scale)
    own = member_folder(folder, number)
    own.mkdir(parents=True, exist_ok=True)
    write_curve(own, history)
    return model


def sft_responses(stage: Stage, models: StageModels, name: str) -> Responses:
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
