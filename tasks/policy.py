"""Stage `policy@NAME`: one aligned policy, on sampled data or on fixed data as its algorithm needs."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from rlhf_core.algorithms.table import policy_algorithm
from rlhf_core.errors import UserError
from rlhf_core.loops.offline import with_ref_logprobs
from rlhf_core.loops.online import Critic, Models, OnlineTraining
from rlhf_core.models import load_policy, load_scalar_model, load_tokenizer, save_policy
from rlhf_core.rewards import ExactMatch, MissingEnd, ModelReward, WeightedSum
from tasks.accelerator import accelerator_of
from tasks.jsonl import read_jsonl
from tasks.rows import as_prompts, preference_units, prepared_kind
from tasks.sampling import make_sampler
from tasks.stage import Stage, main, open_stage
from tasks.train import snapshot_saver, train_and_save_policy, write_curve

FEEDBACK = Path("data/feedback")


def policy(name: str) -> None:
    """Train the policy `name` from the SFT model."""
    algorithm_class = policy_algorithm(name)
    with open_stage(f"policy@{name}") as stage:
        section = getattr(stage.params.policy, name)
        algorithm = algorithm_class(**{item.name: getattr(section, item.name) for item in fields(algorithm_class)})
        train = _train_on_samples if algorithm_class.on_policy else _train_on_pairs
        train(stage, name, algorithm, section)


def _train_on_pairs(stage: Stage, name: str, algorithm: Any, config: Any) -> None:
    tokenizer = load_tokenizer("models/sft")
    train = preference_units(FEEDBACK / "preferences_train.jsonl", tokenizer)
    held_out = preference_units(FEEDBACK / "preferences_development.jsonl", tokenizer)
    if not train:
        raise UserError(
            f"policy.algorithms names {name}, which learns from preferences, and the data holds none. "
            "Take it off the list, or set prepare.path to preference data."
        )
    reference = load_policy("models/sft")
    accelerator = accelerator_of(stage)
    train_and_save_policy(
        stage,
        load_policy("models/sft"),
        tokenizer,
        algorithm,
        with_ref_logprobs(accelerator, reference, train, config, tokenizer.pad_token_id),
        with_ref_logprobs(accelerator, reference, held_out, config, tokenizer.pad_token_id),
        config,
        f"models/policies/{name}",
        config.snapshots,
    )


def _train_on_samples(stage: Stage, name: str, algorithm: Any, config: Any) -> None:
    params = stage.params
    tokenizer = load_tokenizer("models/sft")
    model = load_policy("models/sft")
    folder = stage.out(f"models/policies/{name}")
    longest = params.prepare.max_response_tokens
    accelerator = accelerator_of(stage)
    training = OnlineTraining(
        accelerator,
        Models(
            policy=model,
            reference=load_policy("models/sft"),
            # The critic starts from the reward model, its centring included (pitfall 21).
            critic=Critic(load_scalar_model("models/reward"), algorithm.critic_learning_rate)
            if "critic" in algorithm.needs
            else None,
            tokenizer=tokenizer,
        ),
        algorithm,
        _reward(stage, config, accelerator),
        as_prompts(read_jsonl(Path("data/prepared/prompts_train.jsonl")), tokenizer),
        make_sampler(model, tokenizer, longest, config.temperature),
        config,
        stage.training_run(snapshot=snapshot_saver(model, tokenizer, folder, longest)),
    )
    history = training.train()
    save_policy(model, tokenizer, folder, max_new_tokens=longest)
    write_curve(folder, history)


def _reward(stage: Stage, config: Any, accelerator: Any) -> WeightedSum:
    """The trained reward model or, for question-answer data, the exact answer; less a penalty for no end token."""
    if prepared_kind() == "question_answer":
        if config.score_clamp is not None:
            raise UserError("score_clamp has no effect on exact-match rewards. Set it to null.")
        judged: Any = ("exact_match", 1.0, ExactMatch(stage.params.prepare.answer_pattern))
    else:
        model = accelerator.prepare_model(load_scalar_model("models/reward"), evaluation_mode=True)
        judged = ("model", 1.0, ModelReward(model, config.micro_batch_size, config.score_clamp))
    return WeightedSum([judged, ("missing_end", 1.0, MissingEnd(config.missing_end_penalty))])


if __name__ == "__main__":
    main(lambda: policy(sys.argv[1]))
