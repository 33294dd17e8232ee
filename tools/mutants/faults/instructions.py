"""Faults in the task of following instructions, and in the conversion of its model."""

from tools.mutants.fault import Fault, Module

CHECKS = "tests/instructions/test_constraints.py"
CHECKER = "tests/instructions/test_checker.py"
GENERATE = "tests/instructions/test_generate.py"

MODULES = [
    Module(
        "instructions/checker.py",
        CHECKER,
        Fault("Task.strict", "bool(response.strip()) and ", "", "an empty response meets constraints"),
        Fault("Task.score", "if self.is_answer(response) else 0.0", "", "a text that is no answer is rewarded"),
        Fault("Task.is_answer", " and not is_degenerate(response)", "", "repetition passes the guard"),
        Fault("Task._is_on_topic", "not self._content.isdisjoint", "self._content.isdisjoint", "on topic is off topic"),
        Fault("variants", "lines[1:-1]", "lines", "loose keeps first and last line together"),
    ),
    Module(
        "instructions/types/keywords.py",
        CHECKS,
        Fault("ForbiddenWords.check", "\\b{re.escape(word)}\\b", "{re.escape(word)}", "hot is found in shot"),
    ),
    Module(
        "instructions/types/layout.py",
        CHECKS,
        Fault("NumberBulletLists.check", "== self.num_bullets", ">= self.num_bullets", "too many bullets accepted"),
    ),
    Module(
        "instructions/figures.py",
        CHECKER,
        Fault("accuracies", "task.is_answer(text) and is_fluent", "task.is_answer(text)", "perplexity ignored"),
        Fault("accuracies", "part * all(values)", "part * any(values)", "one constraint suffices for a prompt"),
    ),
    Module(
        "instructions/generate.py",
        GENERATE,
        Fault("generate", 'rows("train", train, TRAINED, requests[held:])', 'rows("train", train, TRAINED, requests)',
              "test requests are trained on"),
        Fault("draw_constraints", " & taken", " & frozenset()", "conflicting constraints are combined"),
    ),
    Module(
        "rlhf_core/models/gguf.py",
        "tests/rlhf_core/models/test_gguf.py",
        Fault("_write", "model.load_state_dict(loaded.state_dict())", "loaded.state_dict()", "random weights saved"),
        Fault("convert_gguf", "partial.rename(folder)", "shutil.copytree(partial, folder)", "partial files are left"),
    ),
]  # fmt: skip
