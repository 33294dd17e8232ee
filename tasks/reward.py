"""Stage `reward`: the reward model, and a second one as judge where there is no gold."""

from pathlib import Path

import torch

from rlhf_core.algorithms.bradley_terry import BradleyTerry
from rlhf_core.batch import Unit, collate
from rlhf_core.forward import score_outputs
from rlhf_core.loops.offline import train_offline
from rlhf_core.metrics import correlation, pair_metrics
from rlhf_core.models import ScalarModel, load_policy, load_tokenizer, new_scalar_model, save_scalar_model
from rlhf_core.rewards import ModelReward, Sampled
from rlhf_core.sampling import sampled_batch
from rlhf_core.seeding import seed_everything
from tasks.accelerator import accelerator_of
from tasks.jsonl import read_jsonl
from tasks.rows import as_prompts, preference_units
from tasks.sampling import make_sampler, sample_responses
from tasks.stage import Stage, main, open_stage, write_json
from tasks.train import write_curve

OUT, JUDGE_OUT = "models/reward", "models/judge"
FEEDBACK = Path("data/feedback")


def reward() -> None:
    """Fit Bradley-Terry reward models to preferences, or write down why there is none."""
    with open_stage("reward") as stage:
        tokenizer = load_tokenizer("data/prepared/tokenizer")
        train = preference_units(FEEDBACK / "preferences_train.jsonl", tokenizer)
        held_out = preference_units(FEEDBACK / "preferences_development.jsonl", tokenizer)
        judge_train = preference_units(FEEDBACK / "preferences_judge.jsonl", tokenizer)
        if train:
            _fit(stage, OUT, "reward", train, held_out)
        else:
            write_json(stage.out(OUT) / "none.json", {"why": "no preferences: rewards are verified answers"})
        if judge_train:
            _fit(stage, JUDGE_OUT, "judge", judge_train, held_out)
        else:
            write_json(stage.out(JUDGE_OUT) / "none.json", {"why": "evaluation has gold, so no second reward model"})


def _fit(stage: Stage, out: str, name: str, train: list[Unit], held_out: list[Unit]) -> None:
    """One reward model: trained, centred on the SFT policy, measured on held-out pairs, saved."""
    params = stage.params
    tokenizer = load_tokenizer("data/prepared/tokenizer")
    accelerator = accelerator_of(stage)
    seed_everything(params.run.seed, "reward", name, "weights")
    model = new_scalar_model("models/sft")
    folder = stage.out(out)
    history = train_offline(
        accelerator,
        model,
        score_outputs,
        BradleyTerry(),
        train,
        held_out,
        params.reward,
        stage.training_run(name),
        tokenizer.pad_token_id,
    )
    sampled = _sft_responses(stage, name)
    on_sft = ModelReward(model, params.reward.micro_batch_size)(sampled)
    model.set_normalisation(on_sft.mean().item(), on_sft.std(correction=0).item() if params.reward.unit_scale else 1.0)
    summary = _held_out_metrics(stage, model, held_out) | {
        "pairs": len(train),
        "held_out_pairs": len(held_out),
        "length_correlation": correlation(on_sft, sampled.batch.lengths),
        "offset": model.offset,
        "scale": model.scale,
    }
    write_json(folder / "summary.json", summary)
    stage.log({f"{name}/final_{key}": value for key, value in summary.items() if value is not None})
    save_scalar_model(model, tokenizer, folder)
    write_curve(folder, history)


def _held_out_metrics(stage: Stage, model: ScalarModel, held_out: list[Unit]) -> dict[str, float]:
    """Accuracy, log-loss and calibration of raw scores: Bradley-Terry's probabilities are made of those."""
    tokenizer = load_tokenizer("data/prepared/tokenizer")
    size = stage.params.reward.micro_batch_size
    scores = []
    with torch.no_grad():
        for start in range(0, len(held_out), size):
            rows = [example for unit in held_out[start : start + size] for example in unit]
            batch = collate(rows, tokenizer.pad_token_id).to(next(model.parameters()).device)
            scores.append(score_outputs(model, batch).scores * model.scale)
    raw = torch.cat(scores)
    return pair_metrics(raw[0::2], raw[1::2])


def _sft_responses(stage: Stage, name: str) -> Sampled:
    """Responses of the SFT policy on training prompts, on which the mean reward is made 0."""
    params = stage.params
    tokenizer = load_tokenizer("data/prepared/tokenizer")
    accelerator = accelerator_of(stage)
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
