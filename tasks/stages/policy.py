"""Stage `policy@NAME`: one aligned policy, from the data its method learns from."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_core.common.batch import Example, Unit
from rlhf_core.common.errors import UserError
from rlhf_core.loops.common import preflight
from rlhf_core.loops.offline import with_ref_logprobs
from rlhf_core.loops.online import Critic, Models, OnlineTraining
from rlhf_core.models.ensembles import load_reward_model
from rlhf_core.models.sampling import sampled_batch
from rlhf_core.models.store import load_policy, load_scalar_model, load_tokenizer, save_policy
from rlhf_core.models.tokens import Prompt
from tasks.common.accelerator import accelerator_of
from tasks.common.best_of_n import BEST_OF_N, best_of_n
from tasks.common.preflight import ROWS, Check, pad_token, policy_checks, prepared, require, run_checks, tolerance
from tasks.common.rewards import make_reward
from tasks.common.rows import as_prompts, preference_units, unpaired_units
from tasks.common.sampling import make_sampler
from tasks.common.train import snapshot_saver, train_and_save_policy, write_curve
from tasks.files.jsonl import read_jsonl
from tasks.params.schema import Params, algorithm_of
from tasks.runtime.progress import progress
from tasks.runtime.stage import Stage, main, open_stage, write_json

FEEDBACK = Path("data/feedback")
PROMPTS = Path("data/prepared/prompts_train.jsonl")


def policy(name: str) -> None:
    """Train the policy `name` from the SFT model."""
    with open_stage(f"policy@{name}") as stage:
        algorithm = algorithm_of(stage.params, name)
        trainers = {
            "rollouts": _train_on_samples,
            "pairs": _train_on_pairs,
            "unpaired": _train_on_unpaired,
            "best_of_n": _train_on_best,
            "none": _write_best_of_n,
        }
        run_checks(f"policy@{name}", checks(stage.params, name))
        trainers[algorithm.data](stage, name, algorithm, getattr(stage.params.policy, name))


def checks(params: Params, name: str) -> Iterator[Check]:
    """What is looked at before training; nothing where nothing is trained."""
    algorithm, config = algorithm_of(params, name), getattr(params.policy, name)
    require(f"policy@{name}", "data/prepared", "data/feedback", "models/sft", "models/reward")
    if algorithm.data == "none":
        return
    tokenizer = load_tokenizer("models/sft")
    model, reference = (prepared(params, load_policy("models/sft")) for _ in range(2))
    pad, rounding = pad_token(tokenizer), tolerance(params)
    if algorithm.data == "pairs":
        units = preference_units(FEEDBACK / "preferences_train.jsonl", tokenizer, ROWS)
    elif algorithm.data == "unpaired":
        units = unpaired_units(FEEDBACK, "train", tokenizer)[:ROWS]
    else:
        prompts = as_prompts(read_jsonl(PROMPTS, ROWS), tokenizer)
        temperature = getattr(config, "temperature", 1.0)
        sampler = make_sampler(model, tokenizer, params.prepare.max_response_tokens, temperature)
        responses = sampler.responses(model, [prompt.ids for prompt in prompts])
        units = [(Example(prompt.ids, ids),) for prompt, ids in zip(prompts, responses, strict=True)]
        batch, _ = sampled_batch([prompt.ids for prompt in prompts], responses, pad)
        yield "ratio 1", partial(preflight.check_ratio, model, batch, temperature, rounding)
    rows = [example for unit in units for example in unit]
    if not rows:
        return  # the stage says what is missing
    yield from policy_checks(params, model, tokenizer, units, config.learning_rate, is_sampled=True)
    yield "reference", partial(preflight.check_reference, model, reference, rows, pad, rounding)
    reward_model = Path("models/reward")
    if algorithm.data in ("rollouts", "best_of_n") and not (reward_model / "none.json").is_file():
        judge = prepared(params, load_reward_model(reward_model))
        yield "scores in any batch", partial(preflight.check_scores, judge, rows, pad, rounding)


def _train_on_pairs(stage: Stage, name: str, algorithm: Any, config: Any) -> None:
    tokenizer = load_tokenizer("models/sft")
    train = preference_units(FEEDBACK / "preferences_train.jsonl", tokenizer)
    held_out = preference_units(FEEDBACK / "preferences_development.jsonl", tokenizer)
    if not train:
        raise UserError(
            f"policy.algorithms names {name}, which learns from preferences, and the data holds none. "
            "Take it off the list, or set prepare.path to preference data."
        )
    _train_offline(stage, name, algorithm, config, train, held_out)


def _train_on_unpaired(stage: Stage, name: str, algorithm: Any, config: Any) -> None:
    tokenizer = load_tokenizer("models/sft")
    train = unpaired_units(FEEDBACK, "train", tokenizer)
    held_out = unpaired_units(FEEDBACK, "development", tokenizer)
    _train_offline(stage, name, algorithm, config, train, held_out)


def _train_offline(
    stage: Stage, name: str, algorithm: Any, config: Any, train: Sequence[Unit], held_out: Sequence[Unit]
) -> None:
    """Train on units whose reference log-probabilities are computed once, before training."""
    tokenizer = load_tokenizer("models/sft")
    reference = load_policy("models/sft")
    accelerator, pad = accelerator_of(stage.params), tokenizer.pad_token_id
    with progress(f"policy@{name} reference", len(train) + len(held_out)) as report:
        train, held_out = (
            with_ref_logprobs(accelerator, reference, units, config, pad, report) for units in (train, held_out)
        )
    train_and_save_policy(
        stage,
        load_policy("models/sft"),
        tokenizer,
        algorithm,
        train,
        held_out,
        config,
        f"models/policies/{name}",
        config.snapshots,
    )


def _train_on_best(stage: Stage, name: str, algorithm: Any, config: Any) -> None:
    """Supervised fine-tuning on the best of N samples of the SFT model; the last tenth of the prompts is held out."""
    tokenizer = load_tokenizer("models/sft")
    prompts = _training_prompts(tokenizer)[: algorithm.prompts]
    accelerator = accelerator_of(stage.params)
    sft = accelerator.prepare_model(load_policy("models/sft"), evaluation_mode=True)
    sampler = make_sampler(sft, tokenizer, stage.params.prepare.max_response_tokens, 1.0)
    reward = make_reward(stage.params, accelerator, config.micro_batch_size)
    stream = (stage.params.run.seed, f"policy/{name}/samples")
    best, sampled_tokens = best_of_n(sft, tokenizer, prompts, sampler, reward, algorithm.best_of, stream)
    units: list[Unit] = [
        (Example(prompt.ids, response.ids),) for prompt, response in zip(prompts, best, strict=True) if response.ended
    ]
    if len(units) < 2:
        raise UserError(
            f"only {len(units)} of {len(prompts)} best responses ended within prepare.max_response_tokens. "
            "Raise it, or raise best_of."
        )
    write_json(
        stage.out(f"models/policies/{name}") / "samples.json",
        {"sampled_tokens": sampled_tokens, "kept": len(units), "cut_off": len(best) - len(units)},
    )
    held_out = max(1, len(units) // 10)
    train_and_save_policy(
        stage,
        load_policy("models/sft"),
        tokenizer,
        algorithm,
        units[:-held_out],
        units[-held_out:],
        config,
        f"models/policies/{name}",
        config.snapshots,
    )


def _write_best_of_n(stage: Stage, name: str, algorithm: Any, config: Any) -> None:
    """Nothing is trained: write down how the answer is chosen."""
    folder = stage.out(f"models/policies/{name}")
    chosen = {"policy": "models/sft", "best_of": algorithm.best_of, "kl_bound": algorithm.kl_bound}
    write_json(folder / BEST_OF_N, chosen)


def _train_on_samples(stage: Stage, name: str, algorithm: Any, config: Any) -> None:
    params = stage.params
    tokenizer = load_tokenizer("models/sft")
    model = load_policy("models/sft")
    folder = stage.out(f"models/policies/{name}")
    longest = params.prepare.max_response_tokens
    accelerator = accelerator_of(stage.params)
    training = OnlineTraining(
        accelerator,
        Models(
            policy=model,
            reference=load_policy("models/sft"),
            critic=_critic(algorithm, config) if algorithm.needs.critic else None,
            tokenizer=tokenizer,
        ),
        algorithm,
        make_reward(params, accelerator, config.micro_batch_size),
        _training_prompts(tokenizer),
        make_sampler(model, tokenizer, longest, config.temperature),
        config,
        stage.training_run(snapshot=snapshot_saver(model, tokenizer, folder, longest, config.temperature)),
    )
    history = training.train()
    save_policy(model, tokenizer, folder, max_new_tokens=longest, temperature=config.temperature)
    write_curve(folder, history)


def _critic(algorithm: Any, config: Any) -> Critic:
    """It starts from the reward model, its centring included (docs/pitfalls.md, 21)."""
    if (Path("models/reward") / "none.json").is_file():
        raise UserError(
            "this method's critic starts from the reward model, and none was trained. "
            "Choose a method without a critic, such as grpo or rloo."
        )
    # Where AdamW trains the critic alone, learning_rate is the critic's.
    return Critic(load_scalar_model("models/reward"), getattr(algorithm, "critic_learning_rate", config.learning_rate))


def _training_prompts(tokenizer: Any) -> list[Prompt]:
    return as_prompts(read_jsonl(PROMPTS), tokenizer)


if __name__ == "__main__":
    main(lambda: policy(sys.argv[1]))
