"""Faults in the training loops."""

from tools.mutants.fault import Fault, Module

CREDIT = "tests/rlhf_core/algorithms/test_credit.py"
RATIOS = "tests/rlhf_core/loops/test_ratios.py"
LESS_WORK = "tests/rlhf_core/loops/test_less_work.py"
METHODS = "tests/rlhf_core/loops/test_every_method.py"
LOOPS = "tests/rlhf_core/loops/test_loops.py"
DYNAMIC = "tests/rlhf_core/loops/test_dynamic_sampling.py"
ONLINE = "tests/rlhf_core/loops/test_online_loop.py"
RUNS = "tests/rlhf_core/loops/test_runs.py"
PREFLIGHT = "tests/rlhf_core/loops/test_preflight.py"
TRUST = "tests/rlhf_core/loops/test_trust_region.py"
KILL = "tests/rlhf_core/loops/test_kill_resume.py"

MODULES = [
    Module(
        "rlhf_core/loops/common/run.py",
        LOOPS,
        Fault(
            "is_mark", "(step - 1) * marks", "step * marks - 1", "evaluations are missing if steps do not divide evenly"
        ),
        Fault(
            "minibatch_indices",
            "shuffled(count, epoch, seed, name)",
            "shuffled(count, 0, seed, name)",
            "the same order in each epoch",
            ONLINE,
        ),
        Fault("minibatch_indices", "-(-count // size)", "(count // size or 1)", "rows at the end left out"),
        Fault(
            "stream_indices",
            "stream[start % count : start % count + size]",
            "stream[start % count : min(start % count + size, count)]",
            "rollouts are shorter at the end of a pass",
            ONLINE,
            34,
        ),
        Fault("stream_indices", "start = step * size", "start = 0", "the same prompts in each step", ONLINE),
    ),
    Module(
        "rlhf_core/loops/common/optimizer.py",
        ONLINE,
        Fault("make_optimizer", "config.adam_eps, ", "1e-8, ", "Adam's ε ignored", ONLINE, 21),
    ),
    Module(
        "rlhf_core/loops/common/update.py",
        LOOPS,
        Fault(
            "GradientStep.__call__",
            "            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)\n",
            "            norm = torch.nn.utils.clip_grad_norm_(parameters, 1e9)\n",
            "gradients not clipped",
            ONLINE,
        ),
        Fault(
            "GradientStep.__call__",
            'self._require_finite(norm, "gradient norm", step)',
            "pass",
            "a NaN gradient reaches the weights",
            RUNS,
            31,
        ),
        Fault(
            "GradientStep.__call__",
            "zip(self.optimizer.param_groups, self.peaks, strict=True)",
            "zip(self.optimizer.param_groups, self.peaks[:1] * len(self.peaks), strict=True)",
            "the critic at the policy's learning rate",
            ONLINE,
        ),
        Fault(
            "GradientStep.accumulate",
            "        self.optimizer.zero_grad()\n",
            "",
            "gradients of earlier steps are added",
            f"{LOOPS} {CREDIT} {METHODS}",
        ),
        Fault(
            "microbatches",
            "weights[rows if by_row else units]",
            "(w := weights[rows if by_row else units]) / w.sum()",
            "the mean of microbatch means",
            CREDIT,
            15,
        ),
        Fault(
            "unit_slices",
            "slice(ends[start], ends[unit - 1])",
            "slice(start, unit - 1)",
            "pairs are split between microbatches",
            LOOPS,
        ),
        Fault("unit_slices", "count > size.tokens", "False", "tokens of a microbatch are not limited", LESS_WORK),
        Fault("with_gradient", "minibatch.select(rows), weights[rows]", "minibatch, weights", "rows kept", LESS_WORK),
        Fault(
            "GradientStep._require_finite",
            "torch.isfinite(value).all()",
            "True",
            "a NaN loss reaches the weights",
            RUNS,
            31,
        ),
    ),
    Module(
        "rlhf_core/loops/common/resume.py",
        KILL,
        Fault("ResumeStore.save", 'self._file.with_suffix(".partial")', "self._file", "a state is half-written"),
    ),
    Module(
        "rlhf_core/loops/common/preflight.py",
        PREFLIGHT,
        Fault("check_padding", "not gap <= tolerance", "gap > tolerance", "NaN is accepted", PREFLIGHT, 1),
        Fault("check_ratio", "    policy.train()\n", "", "dropout is not detected", PREFLIGHT, 10),
        Fault("check_beginning", "if doubled or", "if", "two beginning tokens in a row are accepted", PREFLIGHT, 4),
        Fault(
            "check_end",
            "example.response_ids[-1] not in stop_tokens",
            "pad_token == example.response_ids[-1]",
            "a response without an end token is accepted",
            PREFLIGHT,
            3,
        ),
        Fault("check_learning_rate", "moved < 0.5", "moved < 0.0", "a step without effect is accepted", PREFLIGHT, 24),
        Fault(
            "check_scores",
            "_scores(reward_model, [example], pad_token)[0]",
            "together[row]",
            "a score that depends on its batch is accepted",
            PREFLIGHT,
            27,
        ),
    ),
    Module(
        "rlhf_core/loops/offline.py",
        LOOPS,
        Fault(
            "train_offline", '        history = state["history"]\n', "", "a resumed training starts at step 0", KILL, 25
        ),
        Fault(
            "train_offline",
            '        step_on.load_state_dict(state["optimizer"])\n',
            "",
            "Adam's moments are not restored on resume",
            KILL,
            25,
        ),
        Fault(
            "evaluate_offline",
            "forward_in_parts(lambda part: forward(model, part), whole,",
            "forward_in_parts(lambda part: forward(model, part), whole.select(slice(0, 2)),",
            "the reference point uses only the first rows",
            LOOPS,
        ),
        Fault(
            "with_ref_logprobs",
            "values[: len(key[1])]",
            "values",
            "stored log-probabilities include padding",
            LOOPS,
        ),
    ),
    Module(
        "rlhf_core/loops/dynamic_sampling.py",
        DYNAMIC,
        Fault(
            "replace_dropped",
            "missing = missing[~algorithm.keeps(new.scores)]",
            "missing = missing[:0]",
            "one round whatever it gives",
        ),
        Fault("replace_dropped", "        tokens += sum(", "        tokens = sum(", "only the last round counted"),
        Fault("Scored.with_rows", "index_copy(0, rows, other.scores)", "clone()", "new responses with old scores"),
        Fault("other_prompts", "index in used", "0", "a prompt twice in a rollout"),
    ),
    Module(
        "rlhf_core/loops/online.py",
        ONLINE,
        Fault(
            "OnlineTraining._replace_dropped",
            'chosen, step, "dynamic_sampling", number)',
            'chosen, step, "dynamic_sampling")',
            "every extra round draws the same numbers",
            DYNAMIC,
        ),
        Fault(
            "OnlineTraining.rollout",
            ' + extra.get("sampled_tokens", 0)',
            "",
            "tokens of dropped groups not counted",
            DYNAMIC,
        ),
        Fault(
            "OnlineTraining._old_logprobs",
            "if self.algorithm.needs.sampler_logprobs and not is_known:",
            "if False:",
            "importance_cap without log-probabilities of the sampler",
            DYNAMIC,
            28,
        ),
        Fault(
            "OnlineTraining._learn",
            "self.step_on.algorithm = self.algorithm.at(self.state)",
            "self.step_on.algorithm = self.algorithm",
            "the adapted coefficient only logged",
            ONLINE,
            35,
        ),
        Fault(
            "OnlineTraining.train",
            "self.run.name, self.accelerator.process_index, step)",
            "self.run.name, self.accelerator.process_index)",
            "each rollout draws the same numbers",
            f"{ONLINE} {METHODS}",
        ),
        Fault("OnlineTraining.rollout", "        self.policy.eval()\n", "", "dropout while sampling", ONLINE, 10),
        Fault(
            "OnlineTraining._logprobs",
            "response_logprobs(model, batch, temperature=self.config.temperature)",
            "response_logprobs(model, batch)",
            "the reference ignores the temperature",
            RATIOS,
            11,
        ),
        Fault(
            "OnlineTraining._record",
            "partial(self._logprobs, self.reference)",
            "partial(self._logprobs, self.policy)",
            "KL to the policy itself",
            f"{LOOPS} {ONLINE} {RATIOS}",
        ),
        Fault(
            "OnlineTraining._optimise",
            "first, total = step * updates, self.config.steps * updates",
            "first, total = 0, self.config.steps * updates",
            "the schedule starts again in each rollout",
            ONLINE,
            34,
        ),
        Fault(
            "OnlineTraining._minibatches",
            "stream_seed(self.run.seed, step)",
            "self.run.seed",
            "the same minibatches in each rollout",
            ONLINE,
        ),
        Fault(
            "OnlineTraining._restore",
            'self.state, self.history = saved["state"], saved["history"]',
            'self.history = saved["history"]',
            "the KL controller starts again",
            f"{RUNS} {METHODS}",
            20,
        ),
        Fault(
            "OnlineTraining._restore",
            '            load_trained_state(self.critic, saved["critic"])\n',
            "            pass\n",
            "the critic is not restored on resume",
            METHODS,
            25,
        ),
        Fault(
            "OnlineTraining.draw",
            "for prompt in prompts for _ in range(self.algorithm.group_size)",
            "for _ in range(self.algorithm.group_size) for prompt in prompts",
            "groups of different prompts",
            LOOPS,
        ),
        Fault(
            "OnlineTraining.draw", '"rollout", *stream)', '"rollout")', "every rollout draws the same numbers", ONLINE
        ),
        Fault(
            "_rollout_metrics",
            ".float().mean().item()",
            ".float().sum().item()",
            "a count is logged as a fraction",
            RUNS,
            18,
        ),
    ),
    Module(
        "rlhf_core/loops/trust_region.py",
        TRUST,
        Fault(
            "TrustRegion._line_search",
            "        vector_to_parameters(start, self.parameters)\n",
            "",
            "weights changed by a step that failed",
        ),
        Fault(
            "TrustRegion._line_search", "after > before and kl <= limit", "after > before", "the KL bound is violated"
        ),
        Fault(
            "TrustRegion._line_search", "after > before and kl <= limit", "kl <= limit", "a worse surrogate accepted"
        ),
        Fault(
            "TrustRegion.step",
            "torch.sqrt(2 * limit / curvature)",
            "torch.sqrt(limit / curvature)",
            "steps shorter than the trust region",
        ),
        Fault(
            "TrustRegion.step",
            "        self.old.load_state_dict(self.policy.state_dict())\n",
            "",
            "π_old of the first rollout",
        ),
        Fault(
            "TrustRegion._fisher_product",
            "self.algorithm.cg_damping * vector",
            "torch.zeros_like(vector)",
            "no damping",
        ),
        Fault(
            "conjugate_gradient",
            "squares / last * direction",
            "last / squares * direction",
            "search directions are not conjugate",
        ),
    ),
]
