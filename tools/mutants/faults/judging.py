"""Faults in rewards, judges and feedback."""

from tools.mutants.fault import Fault, Module

LOSSES = "tests/rlhf_core/maths/test_losses.py"
RUNS = "tests/rlhf_core/loops/test_runs.py"
JUDGES = "tests/rlhf_core/scoring/test_judges.py"
PANEL = "tests/rlhf_core/feedback/test_annotators.py"
FORMS = "tests/rlhf_core/feedback/test_feedback_forms.py"

MODULES = [
    Module(
        "rlhf_core/scoring/judges.py",
        JUDGES,
        Fault(
            "win_rate",
            "judge.prefer(prompts, opponent, policy)",
            "judge.prefer(prompts, policy, opponent)",
            "judged in one order",
        ),
        Fault("win_rate", "(a + b) / 2 for a, b", "a for a, b", "one of two verdicts counted", LOSSES),
        Fault("ScoreJudge.prefer", "0.5 if is_tie", "1.0 if is_tie", "ties won"),
        Fault(
            "ScoreJudge.prefer",
            "list(one.ids) == list(two.ids) or",
            "",
            "equal responses do not tie",
            pitfall=32,
        ),
        Fault(
            "ScoreJudge.prefer",
            "_content(one) > _content(two)",
            "False",
            "the order of presentation decides",
            pitfall=32,
        ),
    ),
    Module(
        "rlhf_core/scoring/rewards.py",
        "tests/rlhf_core/scoring/test_rewards.py",
        Fault(
            "ModelReward.__call__",
            "judged.clamp(-self.clamp, self.clamp)",
            "judged.clamp(max=self.clamp)",
            "clamped on one side",
        ),
        Fault("MissingEnd.__call__", "(~sampled.ended)", "sampled.ended", "the end token punished"),
        Fault("WeightedSum.__call__", "total + weight * value", "total + value", "weights ignored"),
        Fault(
            "WeightedSum.__call__",
            "torch.isfinite(value).all()",
            "~torch.isnan(value).any()",
            "an infinite reward accepted",
            f"tests/rlhf_core/scoring/test_rewards.py {RUNS}",
            31,
        ),
        Fault(
            "Format.__call__",
            "matches_whole(self.pattern, text.strip())",
            "format_pattern(self.pattern).search(text)",
            "a part of the response is enough",
        ),
    ),
    Module(
        "rlhf_core/scoring/answers.py",
        "tests/rlhf_core/scoring/test_answers.py",
        Fault("read_answer", "matches[-1][1]", "matches[0][1]", "the first answer in place of the last"),
        Fault("NUMBER", "[0-9]{1,3}(?:,[0-9]{3})+", "[0-9,]+", '"3, 4" read as 34'),
        Fault("_number", '.rstrip("0")', "", "1.50 is not 1.5"),
    ),
    Module(
        "rlhf_core/feedback/panel.py",
        PANEL,
        Fault("judge", 'return "B" if flip else "A"', 'return "A" if flip else "B"', "verdicts swapped"),
        Fault("judge", "+ annotator.position_bias", "- annotator.position_bias", "position bias to the second"),
        Fault("judge", '- annotator.tie_band):\n        return "B"', '):\n        return "B"', "ties go to one side"),
        Fault("panel", 'stream_seed(seed, "panel", number)', 'stream_seed(seed, "panel")', "annotators all alike"),
        Fault("utility", "length / 10", "length", "length counted ten times"),
        Fault("rank", "-noisy[index]", "noisy[index]", "the worst ranked first", FORMS),
        Fault("rate", "2 * annotator.flip_probability", "annotator.flip_probability", "half of the errors", FORMS),
        Fault("_gumbel", "-math.log(-math.log(", "math.log(-math.log(", "noise skewed the other way", FORMS),
        Fault("_share_of_ideal", "- annotator.strictness", "+ annotator.strictness", "the strict are lenient", FORMS),
    ),
    Module(
        "rlhf_core/feedback/judgements.py",
        f"{PANEL} {FORMS}",
        Fault(
            "pairs_from_judgements",
            'judgement.choice == "B" else (0, 1)',
            'judgement.choice == "A" else (0, 1)',
            "chosen and rejected swapped",
        ),
        Fault(
            "pairs_from_judgements",
            'row["chosen_tokens"] = judgement.response_tokens[better]',
            'row["chosen_tokens"] = judgement.response_tokens[worse]',
            "the rejected ids as chosen",
            "",
            2,
        ),
        Fault("pairs_from_judgements", "if first == second:", "if False:", "pairs of equal texts"),
        Fault("pairs_from_judgements", '{"label": 0.5} if tie', "{} if tie", "a tie is a win"),
        Fault("_implied", "ranks[first] < ranks[second]", "ranks[first] > ranks[second]", "ranks read upside down"),
        Fault(
            "agreement",
            "if one != other and first and second:",
            "if first and second:",
            "an annotator agrees with itself",
        ),
        Fault("_verdicts", "verdict = -verdict", "pass", "the order shown decides agreement"),
    ),
]
