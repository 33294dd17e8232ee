"""The paths of the stages' outputs, relative to the checkout. No other module spells them."""

from pathlib import Path

EFFECTIVE_PARAMS = Path("params.effective.yaml")
PREPARED = Path("data/prepared")
TOKENIZER = PREPARED / "tokenizer"
CARD = PREPARED / "card.json"
SAMPLES = Path("data/samples")
FEEDBACK = Path("data/feedback")
MODELS = Path("models")
BASE = MODELS / "base"
SFT = MODELS / "sft"
REWARD = MODELS / "reward"
JUDGE = MODELS / "judge"
POLICIES = MODELS / "policies"
EVALUATION = Path("evaluation")
RESULTS = EVALUATION / "results.json"
SNAPSHOTS = EVALUATION / "snapshots.jsonl"
EXAMPLES = EVALUATION / "samples.jsonl"
REPORTS = Path("reports")
REPORT = REPORTS / "report.json"
METRICS = REPORTS / "metrics.json"
CURVES = REPORTS / "curves.csv"
PAGE = REPORTS / "report.html"

NO_MODEL = "none.json"  # in the folder of a model that was not trained, with the reason
CURVE = "metrics.jsonl"  # in the folder of a trained model: one row per step
SUMMARY = "summary.json"  # in the folder of a reward model or of feedback
MANIFEST = "manifest.json"  # in every output folder: the stage that made it, and from what


def rows(folder: Path, name: str, split: str) -> Path:
    """The file of a split, such as data/feedback/preferences_train.jsonl."""
    return folder / f"{name}_{split}.jsonl"


def policy(name: str) -> Path:
    """The folder of a trained policy."""
    return POLICIES / name
