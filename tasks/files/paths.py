"""Where the stages' outputs are, relative to the checkout. No other module spells these paths."""

from pathlib import Path

PREPARED = Path("data/prepared")
TOKENIZER = PREPARED / "tokenizer"
CARD = PREPARED / "card.json"
SAMPLES = Path("data/samples")
FEEDBACK = Path("data/feedback")
BASE = Path("models/base")
SFT = Path("models/sft")
REWARD = Path("models/reward")
JUDGE = Path("models/judge")
POLICIES = Path("models/policies")
EVALUATION = Path("evaluation")
REPORTS = Path("reports")
REPORT = REPORTS / "report.json"

NO_MODEL = "none.json"  # in the folder of a model that was not trained, with the reason


def rows(folder: Path, name: str, split: str) -> Path:
    """The file of a split, such as data/feedback/preferences_train.jsonl."""
    return folder / f"{name}_{split}.jsonl"


def policy(name: str) -> Path:
    """The folder of a trained policy."""
    return POLICIES / name
