"""The paths of the stages' outputs, relative to the checkout, and the names of their files.

No other module spells them.
"""

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
REWARDS = MODELS / "rewards"  # one folder per reward model of section reward_models
REWARDS_NOTE = REWARDS / "README.md"  # so that the folder exists without any
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
MARKDOWN_PAGE = REPORTS / "report.md"

NO_MODEL = "none.json"  # in the folder of a model that was not trained, with the reason
CURVE = "metrics.jsonl"  # in the folder of a trained model: one row per step
CURVE_TABLE = "curve.csv"  # beside it: the same rows as a table
SAMPLED = "samples.json"  # in the folder of a policy trained on its best samples: how many tokens were sampled
JUDGEMENTS = "judgements.jsonl"  # in the folder of feedback: every answer of an annotator
SUMMARY = "summary.json"  # in the folder of a reward model or of feedback
MANIFEST = "manifest.json"  # in every output folder: the stage that made it, and from what


def rows(folder: Path, name: str, split: str) -> Path:
    """The file of a split, such as data/feedback/preferences_train.jsonl."""
    return folder / f"{name}_{split}.jsonl"


def has_model(folder: Path) -> bool:
    """Whether the folder of a reward or judge model contains one; it was trained unless NO_MODEL is there."""
    return not (folder / NO_MODEL).is_file()


def reward_model(name: str | None) -> Path:
    """The folder of a reward model: of the one on all feedback (None), or of one in section reward_models."""
    return REWARD if name is None else REWARDS / name


def policy(name: str) -> Path:
    """The folder of a trained policy."""
    return POLICIES / name


def snapshot(folder: Path, step: int) -> Path:
    """The folder of a policy's snapshot after `step` steps; `folder` is that of the policy."""
    return folder / "snapshots" / f"step-{step:06d}"


def snapshots(folder: Path) -> list[Path]:
    """The folders of a policy's snapshots, the earliest first."""
    return sorted(folder.glob("snapshots/step-*"))


def step_of(snapshot: Path) -> int:
    """The step after which a snapshot was saved."""
    return int(snapshot.name.removeprefix("step-"))
