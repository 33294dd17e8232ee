"""Faults in the policy algorithms and the losses of reward models."""

from tools.mutants.fault import Fault, Module

OFFLINE = "tests/rlhf_core/algorithms/test_algorithms_offline.py"
ON_POLICY = "tests/rlhf_core/algorithms/test_algorithms_onpolicy.py"
METHODS = "tests/rlhf_core/loops/test_every_method.py"
CREDIT = "tests/rlhf_core/algorithms/test_credit.py"
OPTIONS = "tests/rlhf_core/algorithms/test_ratio_options.py"
REWARD_LOSSES = "tests/rlhf_core/algorithms/test_reward_losses.py"

MODULES = [
    Module(
        "rlhf_core/algorithms/base/config.py",
        "tests/rlhf_core/loops/test_loops.py",
        Fault(
            "learning_rate_factor",
            "(step + 1) / (config.warmup_steps + 1)",
            "step / (config.warmup_steps + 1)",
            "the first step has learning rate 0",
        ),
        Fault("learning_rate_factor", "total - config.warmup_steps", "total", "the schedule ends above 0"),
        Fault(
            "OfflineConfig.total_steps",
            "-(-units // self.batch_size)",
            "(units // self.batch_size)",
            "the last rows of an epoch left out",
        ),
    ),
    Module(
        "rlhf_core/algorithms/base/algorithm.py",
        "tests/flows/commands/test_flows_commands.py",
        Fault(
            "Algorithm.work",
            "trained=rows * config.visits(feedback)",
            "trained=config.visits(feedback)",
            "only one row of each pair is counted",
        ),
    ),
    Module(
        "rlhf_core/algorithms/base/check.py",
        ON_POLICY,
        Fault(
            "check_loop",
            "algorithm.check_rollouts(config)",
            "pass",
            "old samples are used without a ratio",
            ON_POLICY,
            28,
        ),
    ),
    Module(
        "rlhf_core/algorithms/base/kl_penalty.py",
        ON_POLICY,
        Fault(
            "KLPenalty.token_rewards",
            "kl_k1(rollout.old_logprobs, rollout.ref_logprobs)",
            "kl_k1(rollout.ref_logprobs, rollout.old_logprobs)",
            "KL to the reference rewarded",
            CREDIT,
            16,
        ),
        Fault("KLPenalty.kl_losses", "self.kl_coef * outputs.exact_kl", "outputs.exact_kl", "β left out"),
        Fault(
            "KLPenalty._estimate",
            "logratio.exp() * kl if self.kl_weighted else kl",
            "kl",
            "the weight of the KL estimate is ignored",
        ),
        Fault(
            "KLPenalty._estimate",
            "outputs.logprobs - batch.old_logprobs",
            "outputs.logprobs - batch.ref_logprobs",
            "weighted by the ratio to the reference",
        ),
        Fault(
            "KLPenalty.check_kl",
            'if self.kl_in == "reward" and self.kl_estimator != "k1":',
            "if False:",
            "k3 is allowed in the reward, where training collapses",
            ON_POLICY,
            28,
        ),
    ),
    Module(
        "rlhf_core/algorithms/base/ratio.py",
        OPTIONS,
        Fault(
            "ClippedRatio._of_ratio",
            "sequence_sum(values, batch.response_mask)",
            "values[:, 0]",
            "the ratio of the first token",
            f"{OPTIONS} {ON_POLICY}",
        ),
        Fault("ClippedRatio._of_ratio", "whole / batch.lengths", "whole", "GSPO's ratio without its root"),
        Fault(
            "ClippedRatio.surrogate_losses",
            "old_logprobs, sampler_logprobs, self.importance_cap",
            "logprobs, sampler_logprobs, self.importance_cap",
            "the ratio to the sampler counts twice",
        ),
        Fault(
            "ClippedRatio.check_ratio",
            'self.ratio == "sequence" and',
            "False and",
            "GSPO with a clip that never binds",
            OPTIONS,
            28,
        ),
    ),
    Module(
        "rlhf_core/algorithms/base/groups.py",
        OPTIONS,
        Fault("DynamicSampling.keeps", "~equal_groups", "equal_groups", "the groups to learn from are dropped"),
    ),
    Module(
        "rlhf_core/algorithms/base/pairs.py",
        OFFLINE,
        Fault(
            "PairAlgorithm.logratios",
            "outputs.logprobs - batch.ref_logprobs",
            "outputs.logprobs",
            "the reference left out",
        ),
        Fault(
            "PairAlgorithm.statistics",
            "implicit[0::2], implicit[1::2]",
            "implicit[1::2], implicit[0::2]",
            "chosen and rejected are swapped in the logged values",
        ),
        Fault("PairAlgorithm.weights", "batch.rows // 2", "batch.rows", "the mean over rows, not pairs"),
    ),
    Module(
        "rlhf_core/algorithms/base/sft.py",
        f"{OFFLINE} {CREDIT}",
        Fault(
            "SFT.weights",
            "token_mean(batch.response_mask)",
            "token_mean(batch.response_mask) * 0 + 1 / batch.response_mask.numel()",
            "padding trained",
            "",
            3,
        ),
    ),
    Module(
        "rlhf_core/algorithms/dpo.py",
        OFFLINE,
        Fault(
            "DPO.losses",
            "logratios[0::2], logratios[1::2]",
            "logratios[1::2], logratios[0::2]",
            "chosen and rejected swapped",
        ),
        Fault(
            "DPO.losses",
            ", batch.preferences[0::2]",
            "",
            "labels of ties ignored",
            f"{OFFLINE} tests/tasks/files/test_tables.py tests/tasks/data",
            38,
        ),
    ),
    Module(
        "rlhf_core/algorithms/cdpo.py",
        OFFLINE,
        Fault(
            "CDPO.losses",
            "smoothed(batch.preferences[0::2], self.label_smoothing)",
            "batch.preferences[0::2]",
            "smoothing ignored",
        ),
    ),
    Module(
        "rlhf_core/algorithms/ipo.py",
        OFFLINE,
        Fault(
            "IPO.logratios",
            "logratios / batch.lengths if self.per_token else logratios",
            "logratios / batch.lengths",
            "the per-length form by default",
            OFFLINE,
            22,
        ),
        Fault(
            "IPO.logratios",
            "logratios / batch.lengths",
            "logratios / batch.response_length",
            "divided by the padded width",
            OFFLINE,
            22,
        ),
    ),
    Module(
        "rlhf_core/algorithms/kto.py",
        OFFLINE,
        Fault("KTO.prepare", ".clamp(min=0)", "", "a negative reference point"),
        Fault(
            "KTO.prepare",
            "batch.select(slice(1, None, 2))",
            "batch.select(slice(0, None, 2))",
            "the reference point from matched pairs",
            OFFLINE,
            23,
        ),
        Fault(
            "KTO.losses",
            "values * good * self.desirable_weight + values * ~good * self.undesirable_weight",
            "values * good * self.undesirable_weight + values * ~good * self.desirable_weight",
            "weights swapped",
        ),
        Fault("KTO.statistics", "2 * batch.desirable - 1", "1 - 2 * batch.desirable", "the margin has the wrong sign"),
    ),
    Module(
        "rlhf_core/algorithms/best_of_n.py",
        OFFLINE,
        Fault("BestOfN.kl_bound", "(self.best_of - 1) / self.best_of", "1 / self.best_of", "the value is not a bound"),
    ),
    Module(
        "rlhf_core/algorithms/grpo.py",
        ON_POLICY,
        Fault("GRPO.targets", "self.group_size,", "2,", "groups of the wrong size"),
        Fault("GRPO.targets", "eps=self.std_eps", "eps=1e-8", "the std's ε ignored"),
        Fault("GRPO.losses", " + self.kl_losses(outputs, batch)", "", "no KL to the reference"),
        Fault("GRPO.weights", "sequence_mean if", "token_mean if", "both averaging options give the same result"),
        Fault("GRPO.__post_init__", "        self.check_kl()\n", "", "options without effect accepted", ON_POLICY, 28),
    ),
    Module(
        "rlhf_core/algorithms/online_dpo.py",
        ON_POLICY,
        Fault("OnlineDPO.targets", "margin.sigmoid()", "(-margin).sigmoid()", "labels flipped"),
        Fault(
            "OnlineDPO.targets",
            "torch.stack([first, 1 - first], -1)",
            "torch.stack([first, 1 - first], 0)",
            "labels are assigned to other rows",
        ),
        Fault("OnlineDPO.targets", "torch.bernoulli(first)", "first", "sampled labels are soft labels"),
    ),
    Module(
        "rlhf_core/algorithms/ppo.py",
        ON_POLICY,
        Fault("PPO.at", 'replace(self, kl_coef=state["kl_coef"])', "self", "the adapted coefficient not used", "", 35),
        Fault("PPO.losses", "critic - bonus", "critic + bonus", "entropy punished"),
        Fault(
            "PPO.losses",
            "batch.old_values, batch.returns",
            "batch.old_values, batch.advantages",
            "the critic fitted to advantages",
        ),
        Fault(
            "PPO.next_state",
            'metrics["kl"], self.kl_target',
            'metrics["update_kl"], self.kl_target',
            "the controller reads another KL",
            f"{CREDIT} {METHODS}",
            20,
        ),
        Fault("PPO.needs", 'else "value"', "else None", "no entropies are logged", METHODS),
    ),
    Module(
        "rlhf_core/algorithms/ppo_penalty.py",
        ON_POLICY,
        Fault(
            "PPOPenalty.losses",
            "kl_k3(batch.old_logprobs, outputs.logprobs)",
            "kl_k3(outputs.logprobs, batch.old_logprobs)",
            "the reverse KL",
        ),
        Fault(
            "PPOPenalty.next_state",
            "kl < self.update_target / 1.5",
            "kl < self.update_target * 1.5",
            "the penalty falls too early",
        ),
        Fault("PPOPenalty.next_state", "max(penalty / 2, self.penalty_min)", "penalty / 2", "no lower bound"),
    ),
    Module(
        "rlhf_core/algorithms/reinforce.py",
        ON_POLICY,
        Fault(
            "Reinforce._weights", 'self.lam if self.weight == "advantage" else 0.0', "self.lam", "λ in the TD residual"
        ),
        Fault(
            "Reinforce._weights",
            "to_go[:, :1].expand_as(to_go)",
            "to_go[:, -1:].expand_as(to_go)",
            "the last reward is used as the return",
        ),
        Fault("Reinforce._weights", "psi - self._baseline(rollout, rewards, state)", "psi", "no baseline"),
        Fault("Reinforce.next_state", "(1 - self.momentum)", "self.momentum", "momentum on both terms"),
    ),
    Module(
        "rlhf_core/algorithms/rloo.py",
        ON_POLICY,
        Fault(
            "RLOO.targets",
            "returns - leave_one_out(returns, self.group_size)",
            "returns - returns.mean()",
            "one baseline for all prompts",
        ),
        Fault("RLOO.targets", "self.kl_coef, mask", "0.0, mask", "KL left out of the return"),
    ),
    Module(
        "rlhf_core/algorithms/trpo.py",
        ON_POLICY,
        Fault("TRPO.losses", "batch.returns", "batch.rewards", "the critic fitted to rewards"),
        Fault("TRPO.surrogate_losses", "batch.old_logprobs", "batch.ref_logprobs", "the ratio to the reference"),
    ),
    Module(
        "rlhf_core/algorithms/reward/bradley_terry.py",
        REWARD_LOSSES,
        Fault(
            "BradleyTerry.losses",
            "margins.isnan(), self.margin, margins",
            "margins.isnan(), margins, self.margin",
            "margins of rows ignored",
        ),
        Fault(
            "BradleyTerry.losses",
            "smoothed(batch.preferences[0::2], self.label_smoothing)",
            "batch.preferences[0::2]",
            "smoothing ignored",
        ),
    ),
    Module(
        "rlhf_core/algorithms/reward/thurstone.py",
        REWARD_LOSSES,
        Fault(
            "Thurstone.losses",
            "smoothed(batch.preferences[0::2], self.label_smoothing)",
            "batch.preferences[0::2]",
            "smoothing ignored",
        ),
    ),
    Module(
        "rlhf_core/algorithms/reward/likert.py",
        REWARD_LOSSES,
        Fault("Likert.weights", "batch.rows", "1", "the sum instead of the mean"),
    ),
    Module(
        "rlhf_core/algorithms/base/scored_pairs.py",
        REWARD_LOSSES,
        Fault(
            "ScoredPairs.statistics", "is_tie, 0.5, right", "is_tie, right, 0.5", "accuracy counts ties, and only them"
        ),
    ),
    Module(
        "rlhf_core/algorithms/base/rankings.py",
        REWARD_LOSSES,
        Fault("ranked_pairs", "ranks[i] <= ranks[j]", "ranks[i] >= ranks[j]", "rank 1 is treated as the worst"),
        Fault("RankingLoss.weights", "len(batch.unit_sizes)", "batch.rows", "weights by the size of rankings"),
    ),
    Module(
        "rlhf_core/algorithms/reward/ranking_pairs.py",
        REWARD_LOSSES,
        Fault(
            "RankingPairs.ranking_loss",
            "ranks[better] == ranks[worse], 0.5, 1.0",
            "ranks[better] == ranks[worse], 1.0, 1.0",
            "ties as wins",
        ),
    ),
    Module(
        "rlhf_core/algorithms/reward/best_of_n.py",
        REWARD_LOSSES,
        Fault("BestOfNChoice.ranking_loss", "ranks.min()", "ranks.max()", "the worst is treated as the best"),
    ),
]
