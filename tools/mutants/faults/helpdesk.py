"""Faults in the help desk: its generator and its gold rubric."""

from tools.mutants.fault import Fault, Module

TESTS = "tests/helpdesk/test_helpdesk.py"

MODULES = [
    Module(
        "helpdesk/generate.py",
        TESTS,
        Fault("split_cases", '"train": combinations[held_out:]', '"train": combinations', "test cases in training"),
        Fault(
            "split_cases",
            "combinations[held_out // 2 : held_out]",
            "combinations[: held_out]",
            "development and test overlap",
        ),
        Fault(
            "generate",
            'stream_seed(seed, "helpdesk", key)',
            'stream_seed(seed, "helpdesk")',
            "lists drawn from one stream",
        ),
        Fault(
            "write_reply",
            "rng.random() >= habits.right_fix",
            "rng.random() < habits.right_fix",
            "rates of right and wrong fixes are swapped",
        ),
        Fault("write_reply", "if other != fix", "", "the wrong fix may be the right one"),
        Fault(
            "generate",
            'rows("prompts_test", "test", prompts_test, GOOD_AGENT)',
            'rows("prompts_test", "test", prompts_test, DEMONSTRATOR)',
            "references of a bad agent",
        ),
    ),
    Module(
        "helpdesk/rubric.py",
        TESTS,
        Fault("features", "right in fixes", "bool(fixes)", "any fix is the right one"),
        Fault("features", "len(fixes - {right})", "len(fixes)", "the right fix counted as wrong"),
        Fault(
            "features", "products == {case.product}", "case.product in products", "a second product is not penalised"
        ),
        Fault("features", "max(0, len(words) - WORD_BUDGET)", "len(words) - WORD_BUDGET", "short replies rewarded"),
        Fault("features", "min(float(value), LIMITS.get(key, 1.0))", "float(value)", "no limits"),
        Fault("GOLD_WEIGHTS", '"promises": -0.75', '"promises": 0.75', "promises rewarded"),
        Fault("_opens_fittingly", 'and "grovelling" not in kinds', "", "grovelling fits anywhere"),
        Fault(
            "features",
            "world.phrase_book[sentence] for sentence in sentences if sentence in world.phrase_book",
            "world.phrase_book[sentence] for sentence in set(sentences) if sentence in world.phrase_book",
            "bad features count only once",
        ),
    ),
    Module(
        "helpdesk/world.py",
        TESTS,
        Fault(
            "World.right_fix", "self.families_of[case.product]", "next(iter(self.families))", "one fix for all families"
        ),
    ),
]
