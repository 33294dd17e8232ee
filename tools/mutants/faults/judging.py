"""Faults in rewards, judges and feedback."""

from tools.mutants.fault import Fault, Module

RUNS = "tests/rlhf_core/loops/test_runs.py"
JUDGES = "tests/rlhf_core/scoring/test_judges.py"
PANEL = "tests/rlhf_core/feedback/test_annotators.py"
FORMS = "tests/rlhf_core/feedback/test_feedback_forms.py"

MODULES = [
    Module(
        "rlhf_core/scoring/judges.py",
        JUDGES,
        Fault("win_rate", "judge.prefer(opponent, policy)", "judge.prefer(policy, opponent)", "judged in one order"),
        Fault("win_rate", "(a + b) / 2 for a, b", "a for a, b", "only one of two verdicts counts"),
        Fault("ScoreJudge.prefer", "0.5 if is_tie", "1.0 if is_tie", "ties count as wins"),
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
            "scores are clamped on one side only",
        ),
        Fault("WeightedSum.__call__", "total + weight * value", "total + value", "weights ignored"),
        Fault(
            "WeightedSum.__call__",
            "torch.isfinite(value).all()",
            "~torch.isnan(value).any()",
            "an infinite reward accepted",
            f"tests/rlhf_core/scoring/test_rewards.py {RUNS}",
            31,
        ),
    ),
    Module(
        "rlhf_core/scoring/terms/missing_end.py",
        "tests/rlhf_core/scoring/test_rewards.py",
        Fault("MissingEnd.__call__", "(~responses.ended)", "responses.ended", "the end token punished"),
    ),
    Module(
        "rlhf_core/scoring/terms/overlong.py",
        "tests/rlhf_core/scoring/test_rewards.py",
        Fault("OverlongPunishment.__call__", ".clamp(0, 1)", "", "short responses rewarded"),
    ),
    Module(
        "rlhf_core/scoring/terms/format.py",
        "tests/rlhf_core/scoring/test_rewards.py",
        Fault(
            "Format.__call__",
            'matches_whole(self.pattern or "", text.strip())',
            'format_pattern(self.pattern or "").search(text)',
            "a match of part of the response suffices",
        ),
    ),
    Module(
        "rlhf_core/scoring/terms/model.py",
        "tests/tasks/rewards/test_reward_terms.py",
        Fault("Model.make", "self.model, self.clamp", "self.model, None", "the clamp ignored"),
    ),
    Module(
        "rlhf_core/scoring/foreign.py",
        "tests/rlhf_core/scoring/test_foreign.py",
        Fault(
            "ForeignReward.__call__",
            "self._example(prompt.messages, text)",
            'self._example(prompt.messages, "")',
            "an existing reward model does not see the response",
        ),
        Fault("load_foreign", "config.num_labels != 1", "False", "the first of several scores taken"),
        Fault("load_foreign", "largest >= embedding", "largest > embedding", "one token beyond the embedding accepted"),
    ),
    Module(
        "rlhf_core/feedback/opinion.py",
        "tests/rlhf_core/feedback/test_exact_annotator.py",
        Fault("ExactOpinion.verdict", '"tie" if first == second else ', "", "equal responses get a preference"),
        Fault("ExactOpinion.ranks", "reverse=True", "reverse=False", "the worst response ranked first"),
        Fault(
            "ExactOpinion.scores", "min(1 + int(worth * highest), highest)", "1 + int(worth * highest)", "off the scale"
        ),
    ),
    Module(
        "rlhf_core/scoring/answers.py",
        "tests/rlhf_core/scoring/test_answers.py",
        Fault("read_answer", "matches[-1][1]", "matches[0][1]", "the first answer instead of the last"),
        Fault("NUMBER", "[0-9]{1,3}(?:,[0-9]{3})+", "[0-9,]+", '"3, 4" read as 34'),
        Fault("_number", '.rstrip("0")', "", "1.50 is not 1.5"),
    ),
    Module(
        "rlhf_core/feedback/panel.py",
        PANEL,
        Fault("panel", 'stream_seed(seed, "panel", number)', 'stream_seed(seed, "panel")', "all annotators are equal"),
    ),
    Module(
        "rlhf_core/feedback/member.py",
        PANEL,
        Fault("judge", 'return "B" if flip else "A"', 'return "A" if flip else "B"', "verdicts are swapped"),
        Fault("judge", "+ member.position_bias", "- member.position_bias", "position bias towards the second response"),
        Fault("judge", '- member.tie_band):\n        return "B"', '):\n        return "B"', "ties go to one side"),
        Fault("utility", "length / 10", "length", "length counted ten times"),
        Fault("rank", "-noisy[index]", "noisy[index]", "the worst ranked first", FORMS),
        Fault("rate", "2 * member.flip_probability", "member.flip_probability", "only half of the errors", FORMS),
        Fault(
            "_gumbel", "-math.log(-math.log(", "math.log(-math.log(", "noise is skewed in the wrong direction", FORMS
        ),
        Fault("_share_of_ideal", "- member.strictness", "+ member.strictness", "strict annotators are lenient", FORMS),
    ),
    Module(
        "rlhf_core/feedback/judgements.py",
        f"{PANEL} {FORMS}",
        Fault("preferences", "if verdict.responses[0] == verdict.responses[1]:", "if False:", "pairs of equal texts"),
        Fault(
            "agreement",
            "if one != other and first and second:",
            "if first and second:",
            "an annotator agrees with itself",
        ),
        Fault(
            "_by_pair", "first if verdict.responses[0] == low else -first", "first", "the order shown decides agreement"
        ),
        Fault("preferences_of_rows", 'by_source[row.get("source")]', "by_source[None]", "sources mixed"),
    ),
    Module(
        "rlhf_core/feedback/judgement.py",
        f"{PANEL} {FORMS}",
        Fault(
            "preference_row",
            "(0, 1) if verdict.preference >= 0.5 else (1, 0)",
            "(1, 0) if verdict.preference >= 0.5 else (0, 1)",
            "chosen and rejected swapped",
        ),
        Fault(
            "preference_row",
            '"chosen_tokens": verdict.tokens[better]',
            '"chosen_tokens": verdict.tokens[worse]',
            "the rejected ids as chosen",
            "",
            2,
        ),
        Fault("preference_row", "row if label == 1 else", "row if True else", "a tie is a win"),
    ),
    Module(
        "rlhf_core/feedback/form.py",
        f"{PANEL} {FORMS}",
        Fault("Form.verdicts", "float(worth[i] > worth[j])", "float(worth[i] < worth[j])", "worth read upside down"),
        Fault(
            "Form.verdicts",
            "0.5 if worth[i] == worth[j] else",
            "1.0 if worth[i] == worth[j] else",
            "the first of equals wins",
        ),
    ),
    Module(
        "rlhf_core/feedback/forms/thumbs.py",
        FORMS,
        Fault("Thumbs.row", 'judgement.choice == "good"', 'judgement.choice != "good"', "thumbs are inverted"),
        Fault(
            "Thumbs.read",
            '"good" if row["label"] else "bad"',
            '"bad" if row["label"] else "good"',
            "good and bad swapped",
        ),
    ),
]
