"""Faults in the mathematics and what every package builds on."""

from tools.mutants.fault import Fault, Module

LOSSES = "tests/rlhf_core/maths/test_losses.py"
CREDIT = "tests/rlhf_core/algorithms/test_credit.py"
RATIOS = "tests/rlhf_core/loops/test_ratios.py"
TOKENS = "tests/rlhf_core/models/test_tokens.py"
FORWARD = "tests/rlhf_core/models/test_forward.py"
REWARD_LOSSES = "tests/rlhf_core/algorithms/test_reward_losses.py"
ON_POLICY = "tests/rlhf_core/algorithms/test_algorithms_onpolicy.py"
METHODS = "tests/rlhf_core/loops/test_every_method.py"
LOOPS = "tests/rlhf_core/loops/test_loops.py"
ONLINE = "tests/rlhf_core/loops/test_online_loop.py"
OPTIONS = "tests/rlhf_core/algorithms/test_ratio_options.py"

MODULES = [
    Module(
        "rlhf_core/maths/losses.py",
        LOSSES,
        Fault(
            "token_logprobs",
            "_full_precision(logits) / temperature",
            "_full_precision(logits)",
            "temperature left out of log-probabilities",
            RATIOS,
            11,
        ),
        Fault("token_entropies", "return -(", "return (", "entropy with the wrong sign"),
        Fault("exact_kl", "(logprobs.exp() *", "(ref_logprobs.exp() *", "KL weighted by the reference"),
        Fault("_full_precision", "tensor.float()", "tensor", "log-probabilities computed in bf16", LOSSES, 12),
        Fault(
            "smoothed",
            "(1 - label) * smoothing",
            "label * smoothing",
            "label smoothing has no effect",
            REWARD_LOSSES,
        ),
        Fault(
            "bradley_terry",
            "-F.logsigmoid(chosen - rejected - margin)",
            "(1 + (rejected + margin - chosen).exp()).log()",
            "overflow at a large gap",
            CREDIT,
            22,
        ),
        Fault(
            "bradley_terry",
            "rejected - chosen - margin",
            "rejected - chosen + margin",
            "margin added in one direction",
            REWARD_LOSSES,
        ),
        Fault(
            "bradley_terry",
            "label * forwards + (1 - label) * backwards",
            "(1 - label) * forwards + label * backwards",
            "label flipped",
        ),
        Fault(
            "thurstone",
            "torch.special.log_ndtr(-difference)",
            "torch.special.log_ndtr(difference)",
            "a flipped label counts as the given label",
            REWARD_LOSSES,
        ),
        Fault(
            "plackett_luce",
            "scores.flip(-1).logcumsumexp(-1).flip(-1)",
            "scores.logcumsumexp(-1)",
            "the ranking is read from its end",
            REWARD_LOSSES,
        ),
        Fault("ipo", "1 / (2 * beta)", "1 / beta", "twice the target of the paper", REWARD_LOSSES),
        Fault("kto", "(2 * good - 1)", "(1 - 2 * good)", "good and bad swapped", REWARD_LOSSES),
        Fault(
            "policy_gradient",
            "return -advantages",
            "return advantages",
            "the policy descends on the reward",
            REWARD_LOSSES,
        ),
        Fault("clipped_surrogate", "torch.minimum", "torch.maximum", "optimistic bound instead of the pessimistic one"),
        Fault("clipped_surrogate", "1 + upper", "1 + 2 * upper", "upper clip at twice its distance"),
        Fault(
            "clipped_surrogate", "clip if clip_high is None else clip_high", "clip", "the upper clip ignored", OPTIONS
        ),
        Fault("clipped_surrogate", "advantages < 0", "advantages > 0", "the dual clip on good tokens", OPTIONS),
        Fault("cispo", ".detach()", "", "the weight of log π has a gradient of its own", OPTIONS),
        Fault("truncated_weights", ".clamp(max=cap)", "", "importance weights without a cap", OPTIONS),
        Fault("value_loss", "torch.maximum", "torch.minimum", "the clip hides the larger value error"),
    ),
    Module(
        "rlhf_core/maths/kl.py",
        LOSSES,
        Fault("kl_k2", " / 2", "", "k2 twice too large"),
        Fault(
            "kl_k3",
            "ref_logprobs - logprobs",
            "logprobs - ref_logprobs",
            "k3 of the reverse KL",
        ),
        Fault(
            "adapted_kl_coef", "kl / target - 1.0", "1.0 - kl / target", "the controller moves KL away from the target"
        ),
        Fault(
            "adapted_kl_coef",
            "error * responses / horizon",
            "error / horizon",
            "steps counted, not responses",
            f"{LOSSES} {CREDIT}",
            20,
        ),
        Fault("adapted_kl_coef", "horizon < responses", "horizon < 0", "an unstable controller accepted", CREDIT, 20),
    ),
    Module(
        "rlhf_core/maths/advantages.py",
        LOSSES,
        Fault("token_rewards", "-kl_coef * kl", "kl_coef * kl", "KL rewarded", CREDIT, 16),
        Fault(
            "token_rewards",
            "keepdim=True).long() - 1",
            "keepdim=True).long() - 2",
            "the score before the end token",
            CREDIT,
            16,
        ),
        Fault("gae", "gamma * F.pad(", "F.pad(", "discount left out of the TD residual"),
        Fault("gae", "gamma * lam)", "gamma)", "λ left out"),
        Fault("gae", "    values = values * response_mask\n", "", "the value after the last token"),
        Fault("gae", "(advantages + values)", "advantages", "the critic fitted to advantages"),
        Fault(
            "with_gae",
            "rollout.token_weights",
            "torch.ones_like(advantages)",
            "padding in the whitening",
            "tests/rlhf_core/algorithms/test_algorithms_onpolicy.py",
            19,
        ),
        Fault("returns_to_go", "gamma * following", "following", "discount left out of the returns", ON_POLICY),
        Fault("leave_one_out", "/ (group_size - 1)", "/ group_size", "a response in its own baseline", ON_POLICY),
        Fault(
            "leave_one_out",
            "torch.where(same, groups, others)",
            "others",
            "rounding errors become advantages",
            f"{CREDIT} {ON_POLICY}",
            18,
        ),
        Fault(
            "whiten",
            "((values - mean).square() * weights)",
            "(values - mean).square()",
            "padding in the variance",
            f"{LOSSES} {CREDIT}",
            19,
        ),
        Fault("whiten", "(count - 1).clamp(min=1)", "(count - 1)", "NaN for a single token", CREDIT, 19),
        Fault(
            "whiten",
            "whitened = whitened + mean",
            "pass",
            "the mean is removed although only the scale should change",
            f"{LOSSES} {CREDIT}",
            19,
        ),
        Fault(
            "group_standardize",
            "correction=int(unbiased_std)",
            "correction=1",
            "sample std instead of 1/G",
            f"{LOSSES} {ON_POLICY}",
        ),
        Fault(
            "group_standardize",
            "torch.where(equal_groups(scores, group_size)[:, None], 0.0, centred)",
            "centred",
            "rounding errors of an equal group are amplified",
            CREDIT,
            18,
        ),
        Fault("equal_groups", "1e-6 * groups", "1e-2 * groups", "small differences have no effect", CREDIT, 18),
    ),
    Module(
        "rlhf_core/maths/reductions.py",
        LOSSES,
        Fault("token_mean", "weights / weights.sum()", "weights / response_mask.numel()", "padding in the mean"),
        Fault(
            "sequence_mean",
            "response_mask.sum(-1, keepdim=True) *",
            "response_mask.shape[1] *",
            "a response divided by the padded width",
        ),
        Fault(
            "fixed_length",
            "(length * rows.sum())",
            "(response_mask.sum(-1, keepdim=True) * rows.sum())",
            "the length bias that Dr. GRPO removes",
            f"{LOSSES} {ON_POLICY}",
        ),
        Fault("sequence_sum", "(values * response_mask)", "values", "padding in the sum", f"{LOSSES} {ON_POLICY}"),
        Fault("at_last_token", ".long() - 1", ".long() - 2", "the term before the last token", f"{LOSSES} {ON_POLICY}"),
    ),
    Module(
        "rlhf_core/maths/accuracy.py",
        LOSSES,
        Fault(
            "correct",
            "0.5 * (chosen == rejected).float()",
            "(chosen == rejected).float()",
            "equal scores count as correct",
        ),
    ),
    Module(
        "rlhf_core/maths/metrics.py",
        LOSSES,
        Fault("pair_metrics", "len(margin) ** 0.5", "len(margin)", "standard error of the wrong width"),
        Fault(
            "pair_metrics",
            "torch.special.ndtr(margin) if normal else margin.sigmoid()",
            "margin.sigmoid()",
            "calibration with the wrong link",
            "tests/tasks/stages/test_reward_stage.py::test_thurstones_probabilities_are_normal",
        ),
        Fault("expected_calibration_error", "(gap.abs() *", "(gap *", "errors of opposite sign cancel"),
        Fault("distinct_n", "len(words) - n + 1", "len(words) - n", "the last n-gram left out"),
        Fault("bootstrap_mean", "[0.025, 0.975]", "[0.05, 0.95]", "a 90 % interval called 95 %"),
    ),
    Module(
        "rlhf_core/common/batch.py",
        "tests/rlhf_core/common/test_batch.py",
        Fault(
            "collate",
            "input_ids = torch.full((len(examples), prompt_width + response_width), pad_id)",
            "input_ids = torch.zeros((len(examples), prompt_width + response_width), dtype=torch.long)",
            "padding with token 0",
        ),
        Fault(
            "collate",
            "start = prompt_width - len(example.prompt_ids)",
            "start = 0",
            "prompts not beside their responses",
            FORWARD,
            1,
        ),
        Fault("collate", "if len(ids) == 0:", "if len(ids) < 0:", "rows without a response", TOKENS, 5),
        Fault(
            "not_computed",
            'float("nan")',
            "0.0",
            "values that were not computed count as 0",
        ),
        Fault("Rollout.token_weights", " * self.row_weights[:, None]", "", "enumerated rows have equal weights"),
    ),
    Module(
        "rlhf_core/common/seeding.py",
        f"{ONLINE} {LOOPS}",
        Fault("stream_seed", "(run_seed, *names)", "(run_seed, *names[:1])", "streams share one seed", f"{ONLINE}"),
        Fault(
            "seed_everything",
            "    torch.manual_seed(seed)\n",
            "",
            "torch's generator not seeded",
            f"{METHODS} {ONLINE}",
            25,
        ),
    ),
    Module(
        "rlhf_core/common/fields.py",
        "tests/tasks/params/test_params.py",
        Fault(
            "check_bounds",
            "and not math.isfinite(value)",
            "and math.isinf(value)",
            "NaN as a parameter",
            "tests/tasks/params/test_params.py tests/rlhf_core/algorithms/test_algorithms_offline.py",
        ),
        Fault(
            "_BOUNDS",
            "value > bound",
            "value >= bound",
            "an open bound is treated as closed",
            "tests/tasks/params/test_params.py tests/rlhf_core/algorithms/test_algorithms_offline.py",
        ),
    ),
]
