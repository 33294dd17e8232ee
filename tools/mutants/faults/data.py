"""Faults in parameters, data and files."""

from tools.mutants.fault import Fault, Module

PARAMS = "tests/tasks/params/test_params.py"
DATA = "tests/tasks/data/test_data.py"
READERS = "tests/tasks/data/test_readers.py"
BROKEN = "tests/tasks/data/test_broken_rows.py"
TABLES = "tests/tasks/files/test_tables.py"
ERRORS = "tests/tasks/stages/test_stage_errors.py"

MODULES = [
    Module(
        "tasks/params/plain_yaml.py",
        PARAMS,
        Fault("_Loader.construct_mapping", "if key.value in seen:", "if False:", "a key given twice"),
        Fault("_Loader", 'not tag.endswith(":timestamp")', "True", "dates instead of text"),
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
        Fault("split_by_prompt", 'f"{seed}\\n{prompt}"', "prompt", "every seed gives the same split"),
        Fault(
            "split_by_prompt",
            "for row in groups[prompt]]",
            "for row in groups[prompt][:1]]",
            "only one row of a prompt is kept in its split",
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
        Fault("_good_or_bad", "value not in (0, 1)", "False", "any label counts as good", "", 38),
        Fault(
            "_alternating",
            "f\"{merged[-1]['content']}\\n\\n{turn['content']}\"",
            'turn["content"]',
            "one of two turns is lost",
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
        Fault("_files", "files = sorted(", "files = list(", "the order of files depends on the disk", READERS),
        Fault("read_rows", "choices <= {0, 1}", "choices <= {0}", "0 and 1 are accepted without a base", TABLES),
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
        Fault("_json_lines", 'if not line.endswith(("\\n", "\\r")):', "if False:", "a truncated file is accepted"),
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
        Fault("dropped_text", "files.total()", "len(files)", "the log counts files, not dropped rows"),
        Fault("data_card", "if any(overlap.values()):", "if False:", "a prompt in two splits"),
        Fault("_overlap", "prompts[a] & prompts[b]", "prompts[a] - prompts[b]", "differences counted as overlap"),
        Fault("_unused", "if row.responses and not any", "if row.responses and any", "used rows listed as unused"),
        Fault("length_summary", "low, high = high + 1, 2 * high", "low, high = high, 2 * high", "edges counted twice"),
    ),
    Module(
        "tasks/files/jsonl.py",
        f"tests/tasks/files/test_jsonl.py {DATA} {ERRORS}",
        Fault("read_jsonl", "islice(lines, limit), 1)", "islice(lines, limit), 0)", "lines counted from 0"),
        Fault("read_jsonl", "islice(lines, limit)", "lines", "the limit ignored", "tests/tasks/files/test_jsonl.py"),
        Fault(
            "write_jsonl",
            "ensure_ascii=False",
            "ensure_ascii=True",
            "text is written with escapes",
            "tests/tasks/files/test_jsonl.py",
        ),
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
        "tasks/params/sections.py",
        PARAMS,
        Fault("Section", '"extra": "forbid"', '"extra": "ignore"', "misspelt parameters ignored", "", 28),
    ),
    Module(
        "tasks/params/peers.py",
        "tests/tasks/params/test_peers.py",
        Fault(
            "peer_hint", 'f".{key}".endswith(f".{row.theirs}")', "key.endswith(row.theirs)", "part of a word is enough"
        ),
        Fault("peer_hint", "rows = beside or rows", "rows = rows", "ours of another section"),
        Fault("peer_metrics", "method in row.methods", "True", "another number under a peer's name"),
        Fault("peer_metrics", "trl/eval_{row.theirs}", "trl/{row.theirs}", "development metrics shown as training"),
    ),
    Module(
        "tasks/params/load.py",
        PARAMS,
        Fault("merged", "for layer in layers", "for layer in layers[-1:]", "a profile replaces everything"),
    ),
    Module(
        "tasks/problems/problem.py",
        "tests/tasks/problems/test_problems.py",
        Fault(
            "Problem.check_rewards",
            'self._need_feedback(f"policy.rewards names {entry.name}")',
            "pass",
            "a reward model may be named without feedback",
        ),
        Fault(
            "Problem.check_rewards",
            "need is not None and not self._has(need)",
            "False",
            "answers are compared although there are none",
        ),
    ),
    Module(
        "tasks/problems/table.py",
        "tests/tasks/problems/test_problems.py",
        Fault("owner_of", "first == (problem.folder,)", "first", "every file belongs to a generated task"),
    ),
]
