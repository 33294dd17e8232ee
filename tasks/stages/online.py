"""Stage `online@NAME`: train or select one policy by the rewards of sampled responses (policy.rewards)."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlhf_core.common.batch import Example, Unit
from rlhf_core.common.data import Data
from rlhf_core.common.errors import UserError
from rlhf_core.common.seeding import row_seeds, seed_everything
from rlhf_core.loops.common import preflight
from rlhf_core.loops.online import Critic, Models, OnlineTraining
from rlhf_core.models.merging import require_trained
from rlhf_core.models.responses import Responses
from rlhf_core.models.store import load_tokenizer, save_policy
from rlhf_core.models.tokens import Prompt
from tasks.common.accelerator import accelerator_of
from tasks.common.models import StageModels
from tasks.common.preflight import (
    ROWS,
    Check,
    from_sft_checks,
    pad_token,
    prepared,
    require,
    run_checks,
    tolerance,
)
from tasks.common.rows import as_prompts
from tasks.common.sampling import make_sampler
from tasks.common.train import snapshot_saver, train_and_save_policy, write_curve
from tasks.files import paths
from tasks.files.jsonl import read_jsonl
from tasks.params.derived import SFT_CRITIC
from tasks.params.schema import Params, algorithm_of
from tasks.rewards.best_of_n import BEST_OF_N, best_of_n
from tasks.rewards.terms import make_reward
from tasks.runtime.stage import Stage, main, open_stage, write_json

PROMPTS = paths.rows(paths.PREPARED, "prompts", "train")
SFT_TEMPERATURE = 1.0  # of the samples of which the best one is kept


def online(name: str) -> None:
    """Make the policy `name` from the SFT model."""
    with open_stage(f"online@{name}", stream=f"policy@{name}") as stage:
        algorithm, config = algorithm_of(stage.params, name), stage.params.policy.section(name)
        run_checks(stage.name, checks(stage.params, name))
        TRAINERS[algorithm.data].train(stage, name, algorithm, config)


def checks(params: Params, name: str) -> Iterator[Check]:
    """Yield the checks before training. There are none if nothing is trained."""
    require(f"online@{name}")
    algorithm, config = algorithm_of(params, name), params.policy.section(name)
    yield from TRAINERS[algorithm.data].checks(params, config)


def _rollout_checks(params: Params, config: Any) -> Iterator[Check]:
    return _sampled_checks(params, config.learning_rate, config.temperature)


def _best_checks(params: Params, config: Any) -> Iterator[Check]:
    return _sampled_checks(params, config.learning_rate, SFT_TEMPERATURE)


def _sampled_checks(params: Params, learning_rate: float, temperature: float) -> Iterator[Check]:
    tokenizer = load_tokenizer(paths.SFT)
    models = StageModels(params)
    model = prepared(params, models.policy("preflight"))
    pad, rounding = pad_token(tokenizer), tolerance(params)
    prompts = as_prompts(read_jsonl(PROMPTS, ROWS), tokenizer)
    sampler = make_sampler(model, tokenizer, params.prepare.max_response_tokens, temperature)
    seeds = row_seeds(len(prompts), params.run.seed, "checks")
    sampled = sampler.responses(model, tokenizer, prompts, seeds)
    units = [(Example(prompt.ids, response.ids),) for prompt, response in zip(prompts, sampled, strict=True)]
    batch = Responses(prompts, sampled, pad).batch
    yield "ratio 1", partial(preflight.check_ratio, model, batch, temperature, rounding)
    yield from from_sft_checks(params, model, tokenizer, units, learning_rate, models)
    rows = [example for unit in units for example in unit]
    named: Sequence[str | None] = params.reward_models.names or [None]
    for trained in named:
        if paths.has_model(folder := paths.reward_model(trained)):
            judge = prepared(params, models.reward_model(folder))
            if not judge.has_own_tokenizer:  # it scores texts
                yield "scores in any batch", partial(preflight.check_scores, judge, rows, pad, rounding)


def _no_checks(params: Params, config: Any) -> Iterator[Check]:
    return iter(())


def _train_on_rollouts(stage: Stage, name: str, algorithm: Any, config: Any) -> None:
    params = stage.params
    tokenizer = load_tokenizer(paths.SFT)
    models = StageModels(params)
    model = models.policy(stage.stream)
    folder = stage.out(paths.policy(name))
    longest = params.prepare.max_response_tokens
    accelerator = accelerator_of(stage.params)
    training = OnlineTraining(
        accelerator,
        Models(
            policy=model,
            reference=models.reference() if algorithm.needs.any_reference else None,
            critic=_critic(stage, models, algorithm, config) if algorithm.needs.critic else None,
            tokenizer=tokenizer,
        ),
        algorithm,
        make_reward(params, models, config.micro_batch_size),
        _training_prompts(tokenizer),
        make_sampler(model, tokenizer, longest, config.temperature),
        config,
        stage.training_run(snapshot=snapshot_saver(model, tokenizer, folder, longest, config.temperature)),
    )
    history = training.train()
    require_trained(model)
    save_policy(model, tokenizer, folder, max_new_tokens=longest, temperature=config.temperature)
    write_curve(folder, history)


def _critic(stage: Stage, models: StageModels, algorithm: Any, config: Any) -> Critic:
    """Return a critic that starts from a reward model with its centring (docs/pitfalls.md, 21), or from SFT.

    Raises:
        UserError: no reward model was trained, or it has its own tokenizer.
    """
    params, rate = stage.params, algorithm.critic_rate(config)
    if params.policy.critic == SFT_CRITIC:
        seed_everything(params.run.seed, stage.stream, "critic")
        return Critic(models.new_reward_model(), rate)
    folder = paths.reward_model(params.critic)
    if not paths.has_model(folder):
        raise UserError(
            "This method's critic starts from the reward model, but none was trained. "
            f"Choose a method without a critic, or set policy.critic to {SFT_CRITIC}."
        )
    critic = models.critic(folder)
    if critic.has_own_tokenizer:
        raise UserError(
            f"The critic cannot start from {folder}, which has a tokenizer of its own (reward.base), not the policy's. "
            f"Set policy.critic to {SFT_CRITIC}."
        )
    return Critic(critic, rate)


def _train_on_best(stage: Stage, name: str, algorithm: Any, config: Any) -> None:
    """Fine-tune on the best of N samples of the SFT model. The last tenth of the prompts is held out."""
    tokenizer = load_tokenizer(paths.SFT)
    prompts = _training_prompts(tokenizer)[: algorithm.prompts]
    accelerator = accelerator_of(stage.params)
    models = StageModels(stage.params)
    sft = accelerator.prepare_model(models.reference(), evaluation_mode=True)
    sampler = make_sampler(sft, tokenizer, stage.params.prepare.max_response_tokens, SFT_TEMPERATURE)
    reward = make_reward(stage.params, models, config.micro_batch_size)
    stream = (stage.params.run.seed, f"policy/{name}/samples")
    best, sampled_tokens = best_of_n(sft, tokenizer, prompts, sampler, reward, algorithm.best_of, stream)
    units: list[Unit] = [
        (Example(prompt.ids, response.ids),) for prompt, response in zip(prompts, best, strict=True) if response.ended
    ]
    if len(units) < 2:
        raise UserError(
            f"Only {len(units)} of {len(prompts)} best responses ended within prepare.max_response_tokens. "
            "Raise prepare.max_response_tokens or best_of."
        )
    out = paths.policy(name)
    write_json(
        stage.out(out) / paths.SAMPLED,
        {"sampled_tokens": sampled_tokens, "kept": len(units), "cut_off": len(best) - len(units)},
    )
    held_out = max(1, len(units) // 10)
    train_and_save_policy(
        stage,
        models.policy(stage.stream),
        tokenizer,
        algorithm,
        units[:-held_out],
        units[-held_out:],
        config,
        out,
        config.snapshots,
    )


def _write_best_of_n(stage: Stage, name: str, algorithm: Any, config: Any) -> None:
    """Train nothing; record how responses are selected."""
    chosen = {"policy": str(paths.SFT), "best_of": algorithm.best_of, "kl_bound": algorithm.kl_bound}
    write_json(stage.out(paths.policy(name)) / BEST_OF_N, chosen)


def _training_prompts(tokenizer: Any) -> list[Prompt]:
    return as_prompts(read_jsonl(PROMPTS), tokenizer)


@dataclass(frozen=True)
class Trainer:
    """How a policy is checked before training, and how it is made."""

    checks: Callable[[Params, Any], Iterator[Check]]
    train: Callable[[Stage, str, Any, Any], None]


# Keyed by the data that a method learns from.
TRAINERS = {
    Data.ROLLOUTS: Trainer(_rollout_checks, _train_on_rollouts),
    Data.BEST_OF_N: Trainer(_best_checks, _train_on_best),
    Data.NOTHING: Trainer(_no_checks, _write_best_of_n),
}


if __name__ == "__main__":
    main(online, *sys.argv[1:])
