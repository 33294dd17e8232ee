"""Faults in what stages do, what runs around them, and the report."""

from tools.mutants.fault import Fault, Module, tests_of

TABLES = "tests/tasks/files/test_tables.py"
FINISHED = "tests/tasks/runtime/test_finished.py"
TRACKING = "tests/tasks/runtime/test_tracking.py"
ERRORS = "tests/tasks/stages/test_stage_errors.py"
EVALUATE = "tests/tasks/stages/test_evaluate.py"
REWARD = "tests/tasks/stages/test_reward_stage.py"
SOURCES = "tests/tasks/reward_models/test_feedback_sources.py"
FORMS = "tests/rlhf_core/feedback/test_feedback_forms.py"
FINDINGS = "tests/tasks/reporting/test_findings.py"

MODULES = [
    Module(
        "tasks/common/rows.py",
        FORMS,
        Fault(
            "_examples",
            "ids or encode_response(reader, text)",
            "encode_response(reader, text)",
            "sampled responses are encoded again",
            "tests/rlhf_core/models/test_tokens.py",
            2,
        ),
        Fault(
            "preference_units", "preference=1.0 - label", "preference=label", "both sides have the same label", TABLES
        ),
        Fault("rating_scale", "pstdev(scores)", "max(scores) - min(scores)", "scores scaled by their range"),
        Fault("_labelled", "if example.preference != 0.5", "", "ties are bad responses", f"{FORMS} {TABLES}"),
        Fault(
            "_labelled",
            "float(side.preference > 0.5)",
            "side.preference",
            "soft labels as classes",
            f"{FORMS} {TABLES}",
        ),
        Fault("mismatched", "end + place % strangers", "place", "matched pairs in the reference point", FORMS, 23),
        Fault("mismatched", "end + place % strangers", "end", "one response is used for all", FORMS, 23),
        Fault(
            "text_units",
            "Example(ids[:1], ids[1:])",
            "Example(ids[:2], ids[2:])",
            "one token of raw text is not trained",
            "tests/rlhf_core/models/test_tokens.py",
        ),
    ),
    Module(
        "tasks/rewards/best_of_n.py",
        tests_of(EVALUATE, "best_of_n_keeps_the_first_of_the_best"),
        Fault("best_of_n", "argmax(-1)", "argmin(-1)", "the worst of N"),
        Fault("best_of_n", "responses[row * count + choice]", "responses[row + choice]", "another prompt's response"),
    ),
    Module(
        "tasks/common/sampling.py",
        "tests/tasks/common/test_stage_sampling.py",
        Fault(
            "sample_responses",
            "row_seeds(len(prompts), *stream)",
            "row_seeds(len(prompts), 0)",
            "streams have the same samples",
        ),
    ),
    Module(
        "tasks/rewards/terms.py",
        "tests/tasks/rewards/test_reward_terms.py",
        Fault("make_reward", "(entry.label, entry.weight,", "(entry.label, 1.0,", "weights of policy.rewards ignored"),
    ),
    Module(
        "tasks/common/preflight.py",
        "tests/rlhf_core/loops/test_preflight.py",
        Fault("run_checks", "torch.random.fork_rng()", "ExitStack()", "checks advance the training's random stream"),
    ),
    Module(
        "tasks/runtime/finished.py",
        FINISHED,
        Fault(
            "finished_outputs",
            ' or marker["files"] != _sizes(folder)',
            "",
            "half-written outputs are accepted",
            tests_of(FINISHED, "incomplete_outputs_are_not_finished"),
        ),
        Fault(
            "sweep_superseded",
            'found["stage"] == stage',
            "True",
            "outputs of other stages deleted",
            tests_of(FINISHED, "a_newer_key_of_the_same_stage_supersedes"),
        ),
        Fault(
            "holding",
            "    if handle is None:\n",
            "    if False:\n",
            "two processes in one stage",
            tests_of(FINISHED, "only_one_process_works_in_a_folder"),
        ),
        Fault(
            "place",
            "shutil.copytree(source, new, copy_function=_link)",
            "shutil.copytree(source, new)",
            "outputs copied, not linked",
            tests_of(FINISHED, "outputs_are_hard_links_and_replace_old_outputs"),
        ),
        Fault(
            "_link",
            "shutil.copy2(source, target)",
            "raise",
            "no outputs where links are impossible",
            tests_of(FINISHED, "outputs_are_copies_without_hard_links"),
        ),
        Fault(
            "mark_finished",
            '    shutil.rmtree(folder / "state", ignore_errors=True)\n',
            "",
            "training states left behind",
            tests_of(FINISHED, "kills_in_a_step_and_after_the_last_one"),
            37,
        ),
    ),
    Module(
        "tasks/runtime/hold.py",
        tests_of(FINISHED, "only_one_process_works_in_a_folder"),
        Fault("hold", "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "the lock not taken"),
        Fault(
            "hold",
            "fcntl.LOCK_EX | fcntl.LOCK_NB",
            "fcntl.LOCK_SH | fcntl.LOCK_NB",
            "several processes can hold the lock",
        ),
    ),
    Module(
        "tasks/runtime/progress.py",
        "tests/tasks/runtime/test_progress.py",
        Fault(
            "Lines.advance",
            "self.done - self.start",
            "self.done",
            "the time left includes the work of an earlier start",
        ),
    ),
    Module(
        "tasks/runtime/tracking.py",
        TRACKING,
        Fault(
            "is_writer_alive",
            "is_same and process.status()",
            "process.status()",
            "another process with the same id is taken for the run's",
        ),
        Fault(
            "close_interrupted", " and tags.writer_host = '{socket.gethostname()}'", "", "runs of other hosts closed"
        ),
        Fault(
            "StageRun._begun",
            '            self.client.update_run(run_id, status="RUNNING")\n',
            "",
            "a resumed run is shown as killed",
        ),
        Fault(
            "StageRun.log_metrics",
            "Metric(key, value, now, step)",
            "Metric(key, value, now, 0)",
            "every metric at step 0",
        ),
    ),
    Module(
        "tasks/stages/evaluate.py",
        EVALUATE,
        Fault(
            "Evaluation.policies",
            'self._prompts("test",',
            'self._prompts("development",',
            "policies judged on the development split",
        ),
        Fault(
            "Evaluation.snapshots",
            'self._prompts("development",',
            'self._prompts("test",',
            "snapshots chosen on the test split",
        ),
        Fault(
            "Evaluation.policies",
            "win_rate(sample.responses, sft.responses)",
            "win_rate(sft.responses, sample.responses)",
            "the opponent's win rate",
        ),
        Fault(
            "drop_unlisted",
            "folder.name not in listed",
            "folder.name in listed",
            "listed policies deleted",
            "tests/tasks/stages/test_drop_unlisted.py",
        ),
    ),
    Module(
        "tasks/reward_models/fit.py",
        REWARD,
        Fault(
            "fit_model", "on_sft.std(correction=0).item() if params.unit_scale else 1.0", "1.0", "unit_scale ignored"
        ),
        Fault(
            "fit_model",
            "model.set_normalisation(on_sft.mean().item(),",
            "model.set_normalisation(0.0,",
            "rewards not centred on the SFT model",
        ),
        Fault(
            "_train",
            'seed_everything(stage.params.run.seed, "reward", name, "weights")',
            'seed_everything(stage.params.run.seed, "reward", "weights")',
            "members of an ensemble start with equal weights",
            tests_of(REWARD, "members_of_an_ensemble_start_from_heads_of_their_own"),
        ),
    ),
    Module(
        "tasks/reward_models/measure.py",
        REWARD,
        Fault("pair_metrics_of", "if unit[0].preference != 0.5]", "]", "ties in the accuracy"),
        Fault(
            "native_metrics",
            "fit.rating_scale[1] * root_mean_square",
            "root_mean_square",
            "the error of ratings on another scale",
        ),
    ),
    Module(
        "tasks/reward_models/feedback.py",
        SOURCES,
        Fault("_of_sources", "if source in sources]", "]", "every model learns from all sources"),
        Fault("check_sources", 'row.get("label", 1.0) != 0.5', "True", "a source with only ties is measured"),
    ),
    Module(
        "tasks/data/readers.py",
        SOURCES,
        Fault("_file_source", "parts[1] if len(parts) > 1 else parts[0]", "parts[-1]", "the last part is the source"),
        Fault("with_file_sources", "if row.source is None else row", "", "a row's own source is lost"),
    ),
    Module(
        "rlhf_core/models/tokens.py",
        SOURCES,
        Fault(
            "same_tokens",
            "and first.chat_template == second.chat_template",
            "",
            "a reward model with another template reads the policy's token ids",
        ),
    ),
    Module(
        "tasks/params/schema.py",
        SOURCES,
        Fault("Params.critic", "self.policy.critic or", "", "the named critic is ignored"),
    ),
    Module(
        "tasks/stages/collect.py",
        FORMS,
        Fault(
            "_ask",
            "rng.sample(item.responses, len(item.responses))",
            "item.responses",
            "responses always shown in one order",
        ),
        Fault("_judgements", "if one.id not in busy", "", "further judgements come from the same annotators", REWARD),
        Fault(
            "_agreement_with_gold",
            "(verdict.preference > 0.5) == (first > second)",
            "(verdict.preference > 0.5) == (first < second)",
            "disagreement counts as agreement",
            "tests/tasks/stages/test_agreement.py",
        ),
        Fault(
            "_agreement_with_gold",
            "verdict.preference != 0.5 and ",
            "",
            "ties counted as B",
            "tests/tasks/stages/test_agreement.py",
        ),
    ),
    Module(
        "tasks/reporting/findings.py",
        FINDINGS,
        Fault("accuracy_interval", "1.96", "1.64", "a 90 % interval called 95 %"),
        Fault(
            "_overlapping",
            'rate["high"] >= rates[best]["low"]',
            'rate["value"] >= rates[best]["low"]',
            "overlapping intervals are not detected",
        ),
        Fault("_best", 'if won["low"] > 0.5:', 'if won["value"] > 0.5:', "a policy is called better without proof"),
        Fault("did_not_move", "< STILL", "<= STILL", "the limit for `did not move` is wrong"),
        Fault("ranked", "key=lambda item: -(", "key=lambda item: (", "the worst first"),
        Fault("is_at_chance", "max(2 * error, LEAST_GAIN)", "LEAST_GAIN", "the standard error left out"),
    ),
    Module(
        "tasks/reporting/comparison.py",
        "tests/tasks/reporting/test_comparison.py",
        Fault(
            "comparison",
            '{f"_{end}": end for end in ends}',
            '{f"_{end}": other for end, other in zip(ends, ends[::-1], strict=True)}',
            "the bounds of the interval are swapped",
        ),
        Fault("curve_rows", 'judged.get((name, step["step"]))', "judged.get((name, 0))", "win rates at other steps"),
    ),
    Module(
        "tasks/reporting/charts.py",
        tests_of("tests/tasks/reporting/test_report.py", "running_mean"),
        Fault("running_mean", "index + width + 1", "index + width", "the running mean is not symmetric"),
    ),
    Module(
        "tasks/reporting/report_page.py",
        tests_of(
            "tests/tasks/reporting/test_report.py",
            "sampled_text_is_never_markup",
            "outputs_that_are_not_the_reports_are_named",
        ),
        Fault("markdown_text", '.replace("<", "&lt;")', "", "sampled text is markup"),
    ),
    Module(
        "tasks/common/source.py",
        tests_of("tests/tasks/stages/test_stage_errors.py", "a_hub_id_that_is_not_pinned"),
        Fault("require_pinned", "not name or not revision", "not name", "a hub model without a revision is accepted"),
    ),
    Module(
        "tasks/runtime/key.py",
        f"{ERRORS} {TRACKING}",
        Fault("stage_key", "        sorted(inputs.values()),\n", "", "a changed input gives the same key"),
        Fault(
            "stage_key",
            "{key: portable(value) for key, value in sections.items()}",
            "{}",
            "changed parameters give the same key",
        ),
        Fault("stage_key", "        name,\n", "", "stages share a key"),
    ),
    Module(
        "tasks/runtime/training_progress.py",
        "tests/tasks/runtime/test_progress.py",
        Fault(
            "tracked_name",
            'key.removeprefix("development_")',
            "key",
            "development metrics are shown as training metrics",
        ),
    ),
    Module(
        "tasks/evaluation/policy_samples.py",
        EVALUATE,
        Fault(
            "PolicySampler._judged",
            "own_temperature(policy) if chosen.temperature is None else chosen.temperature",
            "chosen.temperature or 1.0",
            "every policy judged at temperature 1",
        ),
        Fault(
            "PolicySampler.sample",
            "measured = self._sample(policy, prompts, self._sampler(policy, own),",
            "own = sampler.temperature or 1.0; self._sample(policy, prompts, self._sampler(policy, own),",
            "KL on samples of another temperature",
            "",
            33,
        ),
        Fault("PolicySampler.sample", "sampler.truncates or", "", "KL on truncated samples", "", 29),
    ),
    Module(
        "tasks/evaluation/measures.py",
        EVALUATE,
        Fault("_proxy", "replace(part, clamp=None)", "part", "the reward model's score clamped"),
    ),
    Module(
        "tasks/reporting/sources.py",
        tests_of("tests/tasks/reporting/test_report.py", "outputs_that_are_not_the_reports_are_named"),
        Fault("stale_stages", '["key"] != stage["key"]', '["key"] == ""', "outputs of another run are not reported"),
    ),
]
