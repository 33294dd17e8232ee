"""Faults in tasks: parameters, data, files, what runs around stages, the stages, and the report."""

from tools.mutants.fault import Fault, Module, tests_of

PARAMS = "tests/tasks/params/test_params.py"
DATA = "tests/tasks/data/test_data.py"
READERS = "tests/tasks/data/test_readers.py"
BROKEN = "tests/tasks/data/test_broken_rows.py"
TABLES = "tests/tasks/files/test_tables.py"
FINISHED = "tests/tasks/runtime/test_finished.py"
TRACKING = "tests/tasks/runtime/test_tracking.py"
ERRORS = "tests/tasks/stages/test_stage_errors.py"
EVALUATE = "tests/tasks/stages/test_evaluate.py"
REWARD = "tests/tasks/stages/test_reward_stage.py"
FORMS = "tests/rlhf_core/feedback/test_feedback_forms.py"
FINDINGS = "tests/tasks/reporting/test_findings.py"

MODULES = [
    Module(
        "tasks/params/schema.py",
        PARAMS,
        Fault("_Section", '"extra": "forbid"', '"extra": "ignore"', "misspelt parameters ignored", "", 28),
        Fault(
            "overlay",
            "overlay(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value",
            "value",
            "a profile replaces whole sections",
        ),
    ),
    Module(
        "tasks/params/plain_yaml.py",
        PARAMS,
        Fault("_Loader.construct_mapping", "if key.value in seen:", "if False:", "a key given twice"),
        Fault("_Loader", 'not tag.endswith(":timestamp")', "True", "dates in place of text"),
    ),
    Module(
        "tasks/data/clean.py",
        DATA,
        Fault("clean", "            seen.add(identity)\n", "", "duplicates kept"),
        Fault(
            "clean",
            'cleaned.dropped.append({"file": row.file, "line": row.line, "reason": reason})',
            "pass",
            "dropped rows not counted",
        ),
        Fault(
            "_excess",
            "sizes[0][0] + max_response > context",
            "sizes[0][0] + longest > context",
            "no room for a longer response",
            DATA,
            6,
        ),
        Fault("_excess", "longest > max_response", "longest > max_response + 1", "responses one token too long"),
        Fault("check_dropped", 'row["reason"] != DUPLICATE', "True", "duplicates stop a run"),
        Fault(
            "split_by_prompt",
            "groups[prompt_key(row.prompt)]",
            "groups[_canonical([row.prompt, row.responses])]",
            "one prompt in several splits",
        ),
        Fault("split_by_prompt", 'f"{seed}\\n{prompt}"', "prompt", "every seed splits alike"),
        Fault(
            "split_by_prompt",
            "for row in groups[prompt]]",
            "for row in groups[prompt][:1]]",
            "rows of a prompt lost in its split",
        ),
        Fault("prompt_key", ".casefold()", "", "prompts that differ in case in several splits"),
        Fault("_good", "row.label not in (False, 0.5)", "row.label is not False", "ties as demonstrations"),
        Fault("_good", "min(row.ranks)", "max(row.ranks)", "the worst of a ranking as demonstration"),
        Fault("_best_rated", "row.score > middle", "True", "the best of bad ratings as demonstration"),
        Fault("_identity", ", row.label", "", "rows of other labels are duplicates"),
        Fault("_score_fault", "1 <= score <= scale", "score <= scale", "scores below the scale"),
    ),
    Module(
        "tasks/data/formats.py",
        f"{READERS} {TABLES}",
        Fault(
            "_preference",
            "sides if label >= 0.5 else sides[::-1]",
            "sides",
            "the rejected response as the chosen one",
            "",
            38,
        ),
        Fault("_choice", "{1: 1.0, 2: 0.0, 0: 0.5}", "{1: 0.0, 2: 1.0, 0: 0.5}", "1 and 2 swapped"),
        Fault("_choice", "{0: 1.0, 1: 0.0}", "{0: 0.0, 1: 1.0}", "0 and 1 swapped"),
        Fault(
            "_preference", "row if better == 1 else replace(row, label=better)", "row", "soft labels ignored", "", 38
        ),
        Fault("_good_or_bad", "value not in (0, 1)", "False", "any label taken as good", "", 38),
        Fault(
            "_alternating",
            "f\"{merged[-1]['content']}\\n\\n{turn['content']}\"",
            'turn["content"]',
            "a turn of two lost",
        ),
        Fault("_with_system", 'or (turns and turns[0]["role"] == "system")', "", "two system turns"),
        Fault("_instruction", 'f"{text}\\n{extra}" if extra.strip() else text', "text", "the input left out"),
        Fault(
            "_side",
            "if given in (earlier[:count], earlier[-count:]):",
            "if True:",
            "another prompt's messages accepted",
        ),
    ),
    Module(
        "tasks/data/readers.py",
        f"{READERS} {TABLES} {BROKEN}",
        Fault("_files", "files = sorted(", "files = list(", "the order of files left to the disk", READERS),
        Fault("read_rows", "choices <= {0, 1}", "choices <= {0}", "0 and 1 taken without asking", TABLES),
    ),
    Module(
        "tasks/data/text_files.py",
        f"{READERS} {BROKEN}",
        Fault(
            "_json_lines",
            "enumerate(_lines(text, path), 1)",
            "enumerate(_lines(text, path), 0)",
            "lines counted from 0",
        ),
        Fault("_json_lines", 'if not line.endswith(("\\n", "\\r")):', "if False:", "a file cut off is taken as whole"),
        Fault("_table", "elif cells and len(cells) != len(header):", "elif False:", "rows of another width", TABLES),
    ),
    Module(
        "tasks/data/fields.py",
        f"{TABLES} {BROKEN}",
        Fault("is_empty", "or (isinstance(value, float) and math.isnan(value))", "", "NaN as a value"),
        Fault(
            "from_cell",
            "if not cell:\n        return None",
            "if not cell:\n        return cell",
            "an empty cell as a value",
        ),
    ),
    Module(
        "tasks/data/detect.py",
        BROKEN,
        Fault(
            "_spelt",
            "nearest(names, unknown, 0.8) is not None",
            "False",
            "a misspelt field ignored",
            f"{BROKEN} {TABLES}",
        ),
    ),
    Module(
        "tasks/data/data_card.py",
        DATA,
        Fault("data_card", "if any(overlap.values()):", "if False:", "a prompt in two splits"),
        Fault("_overlap", "prompts[a] & prompts[b]", "prompts[a] - prompts[b]", "differences counted as overlap"),
        Fault("_unused", "if row.responses and not any", "if row.responses and any", "used rows listed as unused"),
        Fault("length_summary", "low, high = high + 1, 2 * high", "low, high = high, 2 * high", "edges counted twice"),
    ),
    Module(
        "tasks/common/rows.py",
        FORMS,
        Fault(
            "preference_units",
            'row.get(f"{side}_tokens") or encode_response(tokenizer, row[side])',
            "encode_response(tokenizer, row[side])",
            "sampled ids encoded anew",
            "tests/rlhf_core/models/test_tokens.py",
            2,
        ),
        Fault("preference_units", "label=1.0 - label", "label=label", "both sides have one label", TABLES),
        Fault("rating_scale", "pstdev(scores)", "max(scores) - min(scores)", "scores scaled by their range"),
        Fault("_labelled", "if example.label != 0.5", "", "ties are bad responses", f"{FORMS} {TABLES}"),
        Fault(
            "_labelled",
            "float(example.label > 0.5)",
            "float(example.label)",
            "soft labels as classes",
            f"{FORMS} {TABLES}",
        ),
        Fault("mismatched", "end + place % strangers", "place", "matched pairs in the reference point", FORMS, 23),
        Fault("mismatched", "end + place % strangers", "end", "one response stands for all", FORMS, 23),
        Fault(
            "text_units",
            "Example(ids[:1], ids[1:])",
            "Example(ids[:2], ids[2:])",
            "a token of raw text not trained",
            "tests/rlhf_core/models/test_tokens.py",
        ),
    ),
    Module(
        "tasks/common/best_of_n.py",
        tests_of(EVALUATE, "best_of_n_keeps_the_first_of_the_best"),
        Fault("best_of_n", "argmax(-1)", "argmin(-1)", "the worst of N"),
        Fault("best_of_n", "responses[row * count + choice]", "responses[row + choice]", "another prompt's response"),
    ),
    Module(
        "tasks/common/sampling.py",
        "tests/tasks/common/test_sampling.py",
        Fault(
            "sample_responses",
            "    seed_everything(*stream)\n",
            "",
            "samples depend on what ran before",
        ),
    ),
    Module(
        "tasks/common/feedback.py",
        FORMS,
        Fault("native_row", 'judgement.choice == "good"', 'judgement.choice != "good"', "thumbs turned down"),
        Fault("preferences_from", 'by_source[row.get("source")]', "by_source[None]", "sources mixed"),
        Fault("_judgement", '"good" if choice else "bad"', '"bad" if choice else "good"', "good and bad swapped"),
    ),
    Module(
        "tasks/common/rewards.py",
        "tests/rlhf_core/scoring/test_rewards.py",
        Fault("make_reward", "(term.label, term.weight,", "(term.label, 1.0,", "weights of policy.rewards ignored"),
        Fault("_model", "ModelReward(model, rows, term.clamp)", "ModelReward(model, rows)", "the clamp ignored"),
    ),
    Module(
        "tasks/common/preflight.py",
        "tests/rlhf_core/loops/test_preflight.py",
        Fault("run_checks", "torch.random.fork_rng()", "ExitStack()", "checks move the training's random stream"),
    ),
    Module(
        "tasks/files/jsonl.py",
        f"{DATA} {ERRORS}",
        Fault("read_jsonl", "islice(lines, limit), 1)", "islice(lines, limit), 0)", "lines counted from 0"),
        Fault("write_jsonl", "ensure_ascii=False", "ensure_ascii=True", "text written as escapes"),
    ),
    Module(
        "tasks/files/tables.py",
        "tests/tasks/reporting/test_comparison.py",
        Fault(
            "write_csv",
            "for row in rows for key in row",
            "for row in rows[:1] for key in row",
            "columns of later rows lost",
        ),
    ),
    Module(
        "tasks/runtime/finished.py",
        FINISHED,
        Fault(
            "finished_outputs",
            ' or marker["files"] != _sizes(folder)',
            "",
            "half-written outputs taken as whole",
            tests_of(FINISHED, "nothing_half_written_is_taken_for_finished"),
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
            tests_of(FINISHED, "one_process_works_in_a_key"),
        ),
        Fault(
            "place",
            "shutil.copytree(source, new, copy_function=_link)",
            "shutil.copytree(source, new)",
            "outputs copied, not linked",
            tests_of(FINISHED, "outputs_are_hard_links_and_replace_what_was_there"),
        ),
        Fault(
            "_link",
            "shutil.copy2(source, target)",
            "raise",
            "no outputs where links are impossible",
            tests_of(FINISHED, "outputs_are_copies_where_there_are_no_hard_links"),
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
        tests_of(FINISHED, "one_process_works_in_a_key"),
        Fault("hold", "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "the lock not taken"),
        Fault("hold", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB", "a lock that several hold"),
    ),
    Module(
        "tasks/runtime/stage.py",
        ERRORS,
        Fault(
            "_stage_key",
            "        sorted(inputs.values()),\n",
            "",
            "another input is the same run",
            f"{ERRORS} {TRACKING}",
        ),
        Fault(
            "_stage_key",
            "{key: _portable(value) for key, value in sections.items()}",
            "{}",
            "other parameters are the same run",
            f"{ERRORS} {TRACKING}",
        ),
        Fault("_stage_key", "        name,\n", "", "stages share a key", f"{ERRORS} {TRACKING}"),
        Fault(
            "tracked_name",
            'key.removeprefix("development_")',
            "key",
            "development figures drawn as training",
            "tests/tasks/runtime/test_progress.py",
        ),
    ),
    Module(
        "tasks/runtime/progress.py",
        "tests/tasks/runtime/test_progress.py",
        Fault(
            "Lines.advance", "self.done - self.start", "self.done", "time left reckoned with an earlier start's work"
        ),
    ),
    Module(
        "tasks/runtime/tracking.py",
        TRACKING,
        Fault(
            "is_writer_alive",
            "is_same and process.status()",
            "process.status()",
            "another process with the same number",
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
            "Evaluation._temperature",
            "own_temperature(policy) if chosen is None else chosen",
            "chosen or 1.0",
            "every policy judged at temperature 1",
        ),
        Fault(
            "Evaluation.answers",
            "measured = self._sample(policy, prompts, own,",
            "own = temperature or 1.0; self._sample(policy, prompts, own,",
            "KL on samples of another temperature",
            "",
            33,
        ),
        Fault(
            "_judge_policies",
            'evaluation.prompts("test",',
            'evaluation.prompts("development",',
            "policies judged on the development split",
        ),
        Fault(
            "_judge_snapshots",
            'evaluation.prompts("development",',
            'evaluation.prompts("test",',
            "snapshots chosen on the test split",
        ),
        Fault(
            "_judge_policies",
            "evaluation.win_rate(prompts, given.answers, sft.answers)",
            "evaluation.win_rate(prompts, sft.answers, given.answers)",
            "the opponent's win rate",
        ),
        Fault("Evaluation._proxy", "replace(part, clamp=None)", "part", "the reward model's score clamped"),
        Fault(
            "drop_unlisted",
            "folder.name not in listed",
            "folder.name in listed",
            "listed policies deleted",
            "tests/project/test_real_pipeline.py",
        ),
    ),
    Module(
        "tasks/stages/reward.py",
        REWARD,
        Fault("_fit", "on_sft.std(correction=0).item() if params.unit_scale else 1.0", "1.0", "unit_scale ignored"),
        Fault(
            "_fit",
            "model.set_normalisation(on_sft.mean().item(),",
            "model.set_normalisation(0.0,",
            "rewards not centred on the SFT model",
        ),
        Fault("_pair_metrics", "if unit[0].label != 0.5]", "]", "ties in the accuracy"),
        Fault(
            "_train",
            'seed_everything(stage.params.run.seed, "reward", name, "weights")',
            'seed_everything(stage.params.run.seed, "reward", "weights")',
            "members of an ensemble start alike",
        ),
        Fault(
            "_native_metrics",
            "task.rating_scale[1] * root_mean_square",
            "root_mean_square",
            "the error of ratings on another scale",
        ),
    ),
    Module(
        "tasks/stages/collect.py",
        FORMS,
        Fault(
            "Desk.ask",
            "shown = rng.sample(responses, len(responses))",
            "shown = list(responses)",
            "responses always shown in one order",
        ),
        Fault("Desk.judgements", "if one not in asked", "", "further judgements of the same annotators", REWARD),
        Fault(
            "_agreement_with_gold",
            '(judgement.choice == "A") == (first > second)',
            '(judgement.choice == "A") == (first < second)',
            "disagreement called agreement",
            f"{FORMS} {REWARD}",
        ),
        Fault("_agreement_with_gold", 'judgement.choice != "tie" and ', "", "ties counted as B", f"{FORMS} {REWARD}"),
    ),
    Module(
        "tasks/reporting/findings.py",
        FINDINGS,
        Fault("accuracy_interval", "1.96", "1.64", "a 90 % interval called 95 %"),
        Fault(
            "_overlapping",
            'rate["high"] >= rates[best]["low"]',
            'rate["value"] >= rates[best]["low"]',
            "intervals that overlap not seen",
        ),
        Fault("_best", 'if won["low"] > 0.5:', 'if won["value"] > 0.5:', "better without showing it"),
        Fault("did_not_move", "< STILL", "<= STILL", "the edge of not moving"),
        Fault("ranked", "key=lambda item: -(", "key=lambda item: (", "the worst first"),
        Fault("is_no_better_than_a_coin", "max(2 * error, LEAST_GAIN)", "LEAST_GAIN", "the standard error left out"),
    ),
    Module(
        "tasks/reporting/comparison.py",
        "tests/tasks/reporting/test_comparison.py",
        Fault(
            "comparison",
            '{"_low": "low", "_high": "high"}',
            '{"_low": "high", "_high": "low"}',
            "the interval upside down",
        ),
        Fault("curve_rows", 'judged.get((name, step["step"]))', "judged.get((name, 0))", "win rates at other steps"),
    ),
    Module(
        "tasks/reporting/charts.py",
        "tests/tasks/reporting/test_report.py",
        Fault("running_mean", "index + width + 1", "index + width", "a mean that leans to the left"),
    ),
    Module(
        "tasks/reporting/report_page.py",
        "tests/tasks/reporting/test_report.py",
        Fault("markdown_text", '.replace("<", "&lt;")', "", "sampled text is markup"),
        Fault("_stale", '["key"] != stage["key"]', '["key"] == ""', "outputs of another run not named"),
    ),
]
