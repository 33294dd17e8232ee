"""Faults in flows: commands, runs, servers."""

from tools.mutants.fault import Fault, Module, tests_of

LOCKS = "tests/flows/run/test_locks.py"
GUARD = "tests/flows/servers/test_guard.py"
FLOWS = "tests/flows/run/test_flows.py"
SEEDS = "tests/flows/run/test_run_seeds.py"
COMMANDS = "tests/flows/commands/test_flows_commands.py"
BEFORE = "tests/flows/commands/test_before_a_run.py"

MODULES = [
    Module(
        "flows/servers/guard.py",
        GUARD,
        Fault("Guard._answer", 'headers.get("host") not in self.hosts', "False", "DNS rebinding"),
        Fault("Guard._answer", "not self._is_own(scope, headers)", "False", "requests from other origins are accepted"),
        Fault(
            "Guard._answer",
            'self.login is not None and scope["path"] != "/health" and not _brings(headers, self.login)',
            "False",
            "no password is required",
        ),
        Fault("Guard._is_own", 'return headers["origin"] in self.origins', "return True", "any origin"),
        Fault("Guard._is_own", ' and scope["method"] == "GET"', "", "forms of other pages are accepted"),
        Fault(
            "_brings",
            'hmac.compare_digest(headers.get("authorization", "").encode(), expected.encode())',
            'expected.startswith(headers.get("authorization", ""))',
            "the beginning of a password is enough",
        ),
    ),
    Module(
        "flows/servers/settings.py",
        GUARD,
        Fault("login", "if stat.S_IMODE(path.stat().st_mode) & 0o077:", "if False:", "a password that others can read"),
        Fault("login", "secrets.token_urlsafe(24)", '"rlhf"', "a password that anyone can guess"),
        Fault(
            "set_environment",
            'if "PREFECT_API_URL" not in os.environ:',
            "if True:",
            "the password sent to another server",
        ),
    ),
    Module(
        "flows/servers/services.py",
        GUARD,
        Fault("_require_same", "return\n", "return\n    return\n", "requested ports are ignored"),
        Fault("_require_ports", "port not in PORTS", "False", "invalid ports are accepted"),
    ),
    Module(
        "flows/servers/serve.py",
        GUARD,
        Fault(
            "view",
            "for figure in FIGURES for policy in policies",
            "for figure in FIGURES[:1] for policy in policies",
            "KL left out of the table",
        ),
    ),
    Module(
        "flows/run/locks.py",
        LOCKS,
        Fault(
            "only_one",
            "raise _under_way(what, _read(folder))",
            "handle = os.open(folder, os.O_RDONLY)",
            "two runs in one checkout",
        ),
        Fault(
            "require_idle",
            "(found := holder(folder)) is not None",
            "(found := holder(folder)) is False",
            "a second run is not rejected before it starts",
        ),
        Fault(
            "_dvc_process",
            'psutil.STATUS_ZOMBIE and ("dvc" in line or line.endswith(command))',
            "psutil.STATUS_ZOMBIE",
            "the process id of another process is taken for the run's",
        ),
        Fault(
            "_repository_lock",
            'except BlockingIOError:\n                return [(int(lock.read().split()[0]), "dvc")]',
            "except BlockingIOError:\n                return []",
            "DVC's lock is not detected",
        ),
        Fault("_path_locks", "path.unlink(missing_ok=True)", "pass", "DVC warns of killed processes on each resume"),
        Fault(
            "_path_locks",
            "fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)",
            "guard.flush()",
            "the lock of a command that starts just now is deleted",
        ),
    ),
    Module(
        "flows/commands/doctor.py",
        tests_of(COMMANDS, "doctor_shows_the_stages_of_the_run_it_is_asked_about"),
        Fault(
            "examine",
            "graph_with(root, resolved.raw)",
            "graph_with(root, Changes().resolve(root).raw)",
            "stages of params.yaml, not of --set",
        ),
    ),
    Module(
        "flows/run/graph.py",
        tests_of(
            FLOWS,
            "only_selects_the_stages_that_a_stage_needs",
            "stages_come_after_what_they_need",
            "unknown_stage_suggests_a_similar_one",
        ),
        Fault("select", "wanted.update(stage.upstream)", "pass", "a stage without what it needs"),
        Fault("select", 'stage.name.split("@")[0] == only', "False", "the name of a matrix selects no stage"),
        Fault(
            "_in_order",
            "all(n in ordered for n in needs)",
            "any([True, *(n in ordered for n in needs)])",
            "stages come before the stages they need",
        ),
    ),
    Module(
        "flows/run/changes.py",
        tests_of(FLOWS, "single_values_override_the_profile", "equal_values_are_no_change"),
        Fault("Changes.resolve", "raw = with_values(raw, self.overrides)", "pass", "single values ignored"),
        Fault("Changes.resolve", "params != before", "bool(self.overrides)", "a profile does not count as a change"),
        Fault(
            "require_no_output",
            "(root / value).resolve()",
            "root / value",
            "a link to an output is accepted as input",
            tests_of(FLOWS, "an_output_is_refused_as_input"),
        ),
    ),
    Module(
        "flows/run/stages.py",
        tests_of(FLOWS, "a_users_error_is_distinguished_from_a_bug"),
        Fault(
            "_diagnose",
            "removeprefix(MISTAKE), True",
            "removeprefix(MISTAKE), False",
            "a user's mistake is reported as a bug",
        ),
        Fault("StageRunner.call", "if not outcome.is_mistake:", "if True:", "a user's mistake is shown twice"),
    ),
    Module(
        "flows/servers/supervise.py",
        tests_of(FLOWS, "stage_dies_with_its_parent"),
        Fault(
            "main", "prctl(PR_SET_PDEATHSIG, signal.SIGTERM)", "prctl(PR_SET_PDEATHSIG, 0)", "stages outlive the run"
        ),
    ),
    Module(
        "flows/run/workspace.py",
        tests_of(
            FLOWS,
            "edits_and_untracked_files_are_in_the_clone",
            "failed_run_is_resumed_only_by_the_same_run",
            "name_of_an_experiment_is_unique",
        ),
        Fault("_code", 'edits = git(root, "diff", "HEAD", "--binary")', 'edits = b""', "the user's edits left out"),
        Fault("_refuse_other", "known.read_text() != fingerprint", "False", "a run is resumed with other parameters"),
        Fault(
            "_code",
            "digest(root, untracked), ",
            "",
            "a run continues with an untracked file as it was",
            tests_of(FLOWS, "a_corrected_untracked_file_is_other_code"),
        ),
        Fault(
            "open_workspace",
            "            _link_models(root, checkout)\n",
            "",
            "reward models that git ignores are not in the clone",
            tests_of(FLOWS, "models_that_git_ignores_are_in_the_clone"),
        ),
    ),
    Module(
        "flows/run/experiment.py",
        tests_of(FLOWS, "name_of_an_experiment_is_unique", "experiment_stores_files_without_a_commit"),
        Fault("experiment_refs", "== [name]", "!= []", "any experiment counts as one with this name"),
        Fault("save_experiment", "*included, ", "", "a new method is not in its experiment"),
        Fault("_drop_ignored", 'HEAD").decode', 'HEAD:tasks").decode', "a tracked file that git ignores is lost"),
        Fault(
            "save_experiment",
            "        _drop_ignored(checkout, reference, stored)\n",
            "",
            "DVC's own file is in the commit",
        ),
    ),
    Module(
        "flows/run/untracked.py",
        tests_of(FLOWS, "experiment_stores_files_without_a_commit"),
        Fault("find_untracked", " and not _is_in(name, data)", "", "the user's data is stored in git"),
        Fault(
            "Untracked.stored",
            "(*self.added, *self.copied)",
            "self.copied",
            "files added to git are not in the experiment",
        ),
        Fault("to_store", "name.endswith(CODE) or ", "", "code that was corrected meanwhile is not in the experiment"),
    ),
    Module(
        "flows/run/seeds.py",
        tests_of(SEEDS, "bad_seeds_are_named", "each_seed_is_an_experiment_with_its_seed", "bad_input_is_refused"),
        Fault("_require_distinct", "if seed in seeds[:place]:", "if False:", "a seed counts twice"),
        Fault("plan_seeds", "SEED: seed}", "SEED: seeds[0]}", "all runs have the first seed"),
        Fault("require_seeds", "if SEED in changes.overrides:", "if False:", "a seed of --set is silently replaced"),
        Fault("plan_seeds", 'f"{group}-seed-{seed}"', 'f"{group}-seed"', "seeds share an experiment"),
    ),
    Module(
        "tasks/reporting/seeds.py",
        "tests/tasks/reporting/test_seeds.py",
        Fault("estimate", "(1 + CONFIDENCE) / 2", "CONFIDENCE", "a one-sided interval"),
        Fault("estimate", "t.ppf((1 + CONFIDENCE) / 2, n - 1)", "t.ppf((1 + CONFIDENCE) / 2, n)", "degrees of freedom"),
        Fault("estimate", "/ n**0.5", "", "the interval of one value, not of the mean"),
        Fault(
            "same_but_seed", ".setdefault(int(run.params[SEED]), run)", "[int(run.params[SEED])] = run", "old runs win"
        ),
        Fault("_likeness", "return run.code_and_data, ", 'return "", ', "runs of other code or data are averaged"),
        Fault(
            "code_and_data", "if not any(", "if any([True]) or any(", "what depends on the seed counts as code or data"
        ),
    ),
    Module(
        "tasks/params/load.py",
        "tests/tasks/params/test_recipes.py",
        Fault("load_profile", "if name in within:", "if False:", "profiles that extend each other are read for ever"),
    ),
    Module(
        "flows/run/yaml_edit.py",
        "tests/flows/run/test_yaml_edit.py",
        Fault("_is_same", "bool(old == new) and _flow(old) == _flow(new)", "bool(old == new)", "true is written as 1"),
        Fault("update_yaml", "reverse=True", "reverse=False", "edits are made at shifted positions"),
    ),
    Module(
        "flows/commands/compare.py",
        COMMANDS,
        Fault("distinct", "key=lambda run: -(run.best()", "key=lambda run: (run.best()", "the worst first"),
        Fault(
            "comparable",
            "run.terms.get(key) for key in TERMS",
            'run.terms.get(key) for key in ("prompts",)',
            "win rates of different judges ranked",
        ),
        Fault(
            "Run.not_shown",
            "low is None or low <= 0.5",
            "low is None",
            "a policy is called better than SFT without proof",
        ),
        Fault("claim", ">= low", "> 2", "an order is claimed although intervals overlap"),
    ),
    Module(
        "flows/commands/differences.py",
        COMMANDS,
        Fault("differences", "- NOT_RESULTS", "", "settings that do not affect results are listed"),
        Fault(
            "is_read",
            "any(repr(method) in names for names in listed)",
            "True",
            "options of methods that a run does not train are listed",
        ),
    ),
    Module(
        "flows/commands/durations.py",
        COMMANDS,
        Fault("seconds", "START + full", "START + SHORTEST * full", "the upper bound equals the lower bound"),
    ),
    Module(
        "tasks/runtime/memory.py",
        COMMANDS,
        Fault("_loads", "1 + needs.critic", "1", "the critic needs no memory"),
        Fault("_loads", " + needs.trust_region", "", "π_old needs no memory"),
    ),
    Module(
        "flows/commands/runs.py",
        LOCKS,
        Fault(
            "_state",
            "default=folder.stat().st_mtime",
            "default=0.0",
            "a run without a report ended in 1970",
            tests_of(LOCKS, "a_finished_run_without_a_report_has_its_time_and_no_size"),
        ),
        Fault(
            "_delete", "if handle is None:", "if handle is None and not folder.is_dir():", "a live run's folder deleted"
        ),
        Fault("_size", "len(found) == found[0].st_nlink", "True", "files in DVC's cache counted"),
        Fault("_state", "(folder / FAILED).is_file()", "False", "a failed run called interrupted"),
    ),
    Module(
        "flows/run/lineage.py",
        tests_of(FLOWS, "terms_of_a_win_rate", "comparison_puts_the_best_first"),
        Fault("terms_of", 'if report.get("judge_model"):', "if False:", "judges are distinguished only by name"),
        Fault(
            "terms_of", "hashlib.sha256(test.read_bytes())", 'hashlib.sha256(b"")', "all test prompts count as equal"
        ),
    ),
]
