"""Names that TRL, verl and OpenRLHF have for our parameters and metrics: one table for each.

The tables make the hint on an unknown key, docs/names.md, and the metrics that MLflow shows under the peers' names.
TRL 1.16 includes the TrainingArguments of transformers; its PPO is that of 1.12, the last with it. Names of verl
0.9 and OpenRLHF 0.8 (0.11 has dotted ones), and of earlier versions where users still write them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """A parameter of another library. ours: our key, "" if there is none; METHOD stands for the name of a method.

    theirs: its name, or the end of its dotted name. The key also exists in other sections that have its last part.
    """

    library: str
    theirs: str
    ours: str
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """A metric of another library that means the same as ours, in the same unit, for these methods."""

    library: str
    theirs: str
    ours: str
    methods: tuple[str, ...]
    note: str = ""


METHOD = "policy.METHOD."
LOOP = "policy.online_loop."
OFFLINE = "policy.offline_loop."
REWARDS = "policy.rewards"

PARAMETERS = [
    # Groups and lengths
    Name("TRL", "num_generations", METHOD + "group_size"),
    Name("verl", "rollout.n", METHOD + "group_size"),
    Name("OpenRLHF", "n_samples_per_prompt", METHOD + "group_size"),
    Name("TRL", "max_completion_length", "prepare.max_response_tokens"),
    Name("TRL", "response_length", "prepare.max_response_tokens", "of PPO"),
    Name("verl", "max_response_length", "prepare.max_response_tokens"),
    Name("OpenRLHF", "generate_max_len", "prepare.max_response_tokens"),
    Name("TRL", "max_prompt_length", "prepare.max_prompt_tokens", "longer prompts are dropped, not truncated"),
    Name("verl", "max_prompt_length", "prepare.max_prompt_tokens"),
    Name("OpenRLHF", "prompt_max_len", "prepare.max_prompt_tokens"),
    # Clip and ratio
    Name("TRL", "epsilon", METHOD + "clip"),
    Name("TRL", "cliprange", METHOD + "clip", "of PPO"),
    Name("verl", "clip_ratio", METHOD + "clip"),
    Name("verl", "clip_ratio_low", METHOD + "clip"),
    Name("OpenRLHF", "eps_clip", METHOD + "clip"),
    Name("TRL", "epsilon_high", METHOD + "clip_high", "for loss_type cispo it is the bound itself, ours is added to 1"),
    Name("verl", "clip_ratio_high", METHOD + "clip_high"),
    Name("OpenRLHF", "eps_clip_low_high", METHOD + "clip_high", "its first value is clip"),
    Name("TRL", "delta", METHOD + "dual_clip"),
    Name("verl", "clip_ratio_c", METHOD + "dual_clip", "3 by default there, off here"),
    Name("TRL", "importance_sampling_level", METHOD + "ratio"),
    Name("verl", "loss_mode", METHOD + "ratio", "gspo is ratio sequence; cispo is surrogate cispo"),
    Name("OpenRLHF", "policy_loss_type", METHOD + "ratio", "gspo is ratio sequence"),
    Name("TRL", "vllm_importance_sampling_cap", METHOD + "importance_cap", "the modes *_truncate"),
    Name("verl", "rollout_is_threshold", METHOD + "importance_cap"),
    Name("verl", "tis_imp_ratio_cap", METHOD + "importance_cap"),
    Name("OpenRLHF", "vllm_is_truncated_threshold", METHOD + "importance_cap", "only its upper value"),
    # Averaging, advantages and groups
    Name(
        "TRL",
        "loss_type",
        METHOD + "averaging",
        "of GRPO: grpo is averaging response, dapo token, dr_grpo fixed_length, cispo surrogate cispo",
    ),
    Name("TRL", "loss_type", "policy.offline", "of DPO: the method; sigmoid is dpo, ipo is ipo"),
    Name(
        "verl",
        "loss_agg_mode",
        METHOD + "averaging",
        "token-mean is averaging token, seq-mean-token-mean response, seq-mean-token-sum fixed_length",
    ),
    Name("TRL", "scale_rewards", METHOD + "std"),
    Name("verl", "norm_adv_by_std_in_grpo", METHOD + "std", "false is std none"),
    Name("verl", "max_num_gen_batches", METHOD + "dynamic_sampling", "counts the first round too, ours does not"),
    Name("verl", "filter_groups.enable", METHOD + "dynamic_sampling"),
    Name("OpenRLHF", "dynamic_filtering", METHOD + "dynamic_sampling", "ours is the number of extra rounds"),
    Name("verl", "adv_estimator", "policy.online", "the method"),
    Name("OpenRLHF", "advantage_estimator", "policy.online", "the method"),
    Name("OpenRLHF", "lambd", METHOD + "lam"),
    Name("TRL", "whiten_rewards", "", "PPO whitens advantages (whiten_advantages), not rewards"),
    # KL and entropy
    Name("TRL", "beta", METHOD + "kl_coef", "of GRPO and RLOO; 0 by default in GRPO there"),
    Name("TRL", "beta", METHOD + "beta", "of DPO, KTO and online DPO"),
    Name("verl", "kl_loss_coef", METHOD + "kl_coef", "with kl_in loss"),
    Name("OpenRLHF", "init_kl_coef", METHOD + "kl_coef"),
    Name("verl", "use_kl_loss", METHOD + "kl_in", "true is kl_in loss"),
    Name("verl", "use_kl_in_reward", METHOD + "kl_in", "true is kl_in reward"),
    Name("OpenRLHF", "use_kl_loss", METHOD + "kl_in", "true is kl_in loss"),
    Name("verl", "kl_loss_type", METHOD + "kl_estimator", "kl is k1, mse k2, low_var_kl k3, full exact"),
    Name("verl", "kl_penalty", METHOD + "kl_estimator", "only k1 in the reward"),
    Name("verl", "target_kl", METHOD + "kl_target", "theirs is per token, ours per response"),
    Name("verl", "horizon", METHOD + "kl_horizon"),
    Name("verl", "entropy_coeff", METHOD + "entropy_coef"),
    Name("OpenRLHF", "entropy_loss_coef", METHOD + "entropy_coef"),
    # Critic
    Name("TRL", "vf_coef", "", "the critic is a separate model, trained at critic_learning_rate"),
    Name("TRL", "cliprange_value", METHOD + "value_clip"),
    Name("verl", "cliprange_value", METHOD + "value_clip"),
    # Batches and steps
    Name("TRL", "num_iterations", LOOP + "epochs"),
    Name("TRL", "num_ppo_epochs", LOOP + "epochs"),
    Name("verl", "ppo_epochs", LOOP + "epochs"),
    Name("OpenRLHF", "max_epochs", LOOP + "epochs"),
    Name("TRL", "generation_batch_size", LOOP + "rollout_size"),
    Name("verl", "train_batch_size", LOOP + "rollout_size", "theirs counts prompts, ours responses"),
    Name("OpenRLHF", "rollout_batch_size", LOOP + "rollout_size", "theirs counts prompts, ours responses"),
    Name("verl", "ppo_mini_batch_size", LOOP + "minibatch_size", "theirs counts prompts, ours responses"),
    Name("OpenRLHF", "train_batch_size", LOOP + "minibatch_size"),
    Name("TRL", "per_device_train_batch_size", LOOP + "micro_batch_size"),
    Name("verl", "ppo_micro_batch_size_per_gpu", LOOP + "micro_batch_size"),
    Name("OpenRLHF", "micro_train_batch_size", LOOP + "micro_batch_size"),
    Name("verl", "ppo_max_token_len_per_gpu", LOOP + "micro_batch_tokens"),
    Name(
        "TRL",
        "gradient_accumulation_steps",
        LOOP + "minibatch_size",
        "minibatch_size (on fixed data batch_size) is this number times micro_batch_size",
    ),
    Name("TRL", "num_mini_batches", LOOP + "minibatch_size", "rollout_size divided by this number"),
    Name("verl", "total_training_steps", LOOP + "steps", "rollouts"),
    Name("TRL", "total_episodes", LOOP + "steps", "responses; ours counts rollouts"),
    Name("TRL", "num_train_epochs", OFFLINE + "epochs"),
    Name("TRL", "eval_steps", OFFLINE + "evaluations", "ours is the number of evaluations"),
    Name("TRL", "save_steps", LOOP + "resume_every", "for resuming; policies are saved by snapshots"),
    # Optimiser
    Name("verl", "optim.lr", LOOP + "learning_rate"),
    Name("OpenRLHF", "actor_learning_rate", LOOP + "learning_rate"),
    Name("TRL", "lr_scheduler_type", LOOP + "schedule"),
    Name("verl", "warmup_style", LOOP + "schedule"),
    Name("TRL", "warmup_ratio", LOOP + "warmup_steps", "a number of optimiser steps, not a ratio"),
    Name("verl", "lr_warmup_steps", LOOP + "warmup_steps"),
    Name("verl", "grad_clip", LOOP + "max_grad_norm"),
    Name("TRL", "adam_epsilon", LOOP + "adam_eps"),
    Name("TRL", "adam_beta1", "", "AdamW's first β is 0.9"),
    Name("TRL", "adam_beta2", "", "AdamW's second β is 0.999"),
    # Rewards, model and run
    Name("TRL", "reward_weights", REWARDS, "each term has a weight"),
    Name("TRL", "missing_eos_penalty", REWARDS, "a term: {name: missing_end, weight: ...}"),
    Name("verl", "overlong_buffer.len", REWARDS, "a term: {name: overlong, cache: ...}"),
    Name("OpenRLHF", "overlong_buffer_len", REWARDS, "a term: {name: overlong, cache: ...}"),
    Name("verl", "overlong_buffer.penalty_factor", REWARDS, "the weight of the term overlong"),
    Name("OpenRLHF", "overlong_penalty_factor", REWARDS, "the weight of the term overlong"),
    Name("TRL", "model_name_or_path", "model.path", "for a Hub id model.hub"),
    Name("OpenRLHF", "pretrain", "model.path", "for a Hub id model.hub"),
    Name("TRL", "dataset_name", "prepare.hub", "for a file prepare.path"),
    Name("TRL", "bf16", "run.precision"),
]

DPO = ("cdpo", "dpo")
GROUPS = ("grpo", "rloo")
SAMPLED = ("grpo", "ppo", "rloo")

METRICS = [
    Metric("TRL", "objective/kl", "kl", ("online_dpo", "ppo"), "nats per response"),
    Metric("TRL", "objective/scores", "score", ("online_dpo", "ppo")),
    Metric("TRL", "reward", "score", GROUPS),
    Metric("verl", "critic/score/mean", "score", SAMPLED),
    Metric("TRL", "objective/rlhf_reward", "return", ("ppo",)),
    Metric("verl", "critic/rewards/mean", "return", SAMPLED),
    Metric("TRL", "completions/mean_length", "response_length", GROUPS, "tokens"),
    Metric("verl", "response_length/mean", "response_length", SAMPLED, "tokens"),
    Metric("TRL", "frac_reward_zero_std", "equal_group_fraction", GROUPS),
    Metric("TRL", "policy/clipfrac_avg", "clip_active_fraction", ("ppo",)),
    Metric("TRL", "clip_ratio/region_mean", "clip_active_fraction", GROUPS, "ours is averaged as the loss"),
    Metric("verl", "actor/pg_clipfrac", "clip_active_fraction", SAMPLED, "ours is averaged as the loss"),
    Metric("TRL", "sampling/sampling_logp_difference/mean", "sampler_gap", GROUPS, "nats per token"),
    Metric("TRL", "sampling/sampling_logp_difference/max", "sampler_gap_max", GROUPS, "nats"),
    Metric("verl", "actor/entropy", "entropy", ("ppo",), "nats per token"),
    Metric("verl", "actor/grad_norm", "grad_norm", SAMPLED, "before clipping"),
    Metric("verl", "critic/grad_norm", "critic_grad_norm", ("ppo",), "before clipping"),
    Metric("verl", "actor/lr", "learning_rate", SAMPLED),
    Metric("TRL", "rewards/chosen", "implicit_reward_chosen", DPO),
    Metric("TRL", "rewards/rejected", "implicit_reward_rejected", DPO),
    Metric("TRL", "rewards/margins", "margin", DPO),
    Metric("TRL", "rewards/accuracies", "accuracy", DPO, "a tie counts half here, 0 there"),
    Metric("TRL", "logps/chosen", "logprobs_chosen", DPO, "nats per response"),
]

# Metrics of the peers that look like ours but are another number; only docs/names.md lists them.
SIMILAR = [
    Metric("TRL", "kl", "kl_term", ("grpo",), "k3 per token there, the same times kl_coef here"),
    Metric("TRL", "policy/approxkl_avg", "update_kl", ("ppo",), "k2 there, k3 here"),
    Metric("verl", "actor/ppo_kl", "update_kl", SAMPLED, "k1 there, k3 here; RLOO: per response here"),
    Metric("TRL", "completions/clipped_ratio", "ended_fraction", GROUPS, "1 minus ours"),
    Metric("verl", "response_length/clip_ratio", "ended_fraction", SAMPLED, "1 minus ours, at the length limit"),
    Metric("TRL", "reward_std", "score_std", GROUPS, "mean over groups there, over the rollout here"),
    Metric("TRL", "loss/value_avg", "value_loss", ("ppo",), "half the clipped error there"),
    Metric("verl", "critic/vf_loss", "value_loss", ("ppo",), "half the clipped error there"),
]


def peer_hint(key: str, keys: Iterable[str]) -> str | None:
    """Our name of an unknown dotted key if its end is a peer's name, as a sentence; else None.

    keys: every existing key.
    """
    known = sorted(keys)
    rows = [row for row in PARAMETERS if f".{key}".endswith(f".{row.theirs}")]
    if not rows:
        return None
    beside = [row for row in rows if _beside(key, row) in known]  # ours in the section that has the peer's name
    rows = beside or rows
    libraries = " and ".join(dict.fromkeys(row.library for row in rows))
    if not rows[0].ours:
        return f"It is {libraries}'s name and has no counterpart: {rows[0].note}."
    found = {_beside(key, row) if beside else _example(row.ours, known): row.note for row in reversed(rows)}
    ours = [name + (f" ({note})" if note else "") for name, note in reversed(found.items())]
    return f"It is {libraries}'s name; ours is {', or '.join(ours)}."


def _beside(key: str, row: Name) -> str:
    return key.removesuffix(row.theirs) + row.ours.rpartition(".")[2]


def _example(ours: str, keys: Iterable[str]) -> str:
    first = next(keys_behind(ours, keys))
    return ours if first == ours else f"{ours}, such as {first}"


def keys_behind(ours: str, keys: Iterable[str]) -> Iterator[str]:
    """The existing keys that a key stands for, such as policy.grpo.group_size for policy.METHOD.group_size."""
    before, found, after = ours.partition("METHOD")
    for key in keys:
        middle = key.removeprefix(before).removesuffix(after)
        if key == ours or (found and key == before + middle + after and "." not in middle):
            yield key


def peer_metrics(method: str, ours: str) -> list[str]:
    """The names of a metric of `method` in MLflow under the peers' names; TRL marks development metrics with eval_."""
    name = ours.removeprefix("development_")
    rows = [row for row in METRICS if row.ours == name and method in row.methods]
    if name == ours:
        return [f"{row.library.lower()}/{row.theirs}" for row in rows]
    return [f"trl/eval_{row.theirs}" for row in rows if row.library == "TRL"]
