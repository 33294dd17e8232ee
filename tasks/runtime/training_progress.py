"""Progress of one training: a bar or lines on the terminal, and every step's metrics in MLflow.

Metrics that TRL or verl have too are also logged under their names, as `trl/NAME` and `verl/NAME` (docs/names.md).
"""

import sys
import time
from collections.abc import Mapping

from tasks.params.peers import peer_metrics
from tasks.runtime.progress import Shown, show
from tasks.runtime.tracking import StageRun


class TrainingProgress:
    """Shows the progress of a training and logs every step's metrics; development metrics have their own prefix."""

    def __init__(self, tracker: StageRun, prefix: str, name: str) -> None:
        self.tracker, self.prefix, self.name = tracker, prefix, name
        self.began = time.monotonic()
        self.tokens = 0
        self.shown: Shown | None = None

    def __call__(self, metrics: Mapping[str, float], step: int, total: int, tokens: int) -> None:
        """Report one step."""
        self.tokens += tokens
        speed = self.tokens / max(time.monotonic() - self.began, 1e-9)
        method = self.name.partition("@")[2]
        logged = {self.prefix + tracked_name(key): value for key, value in metrics.items()}
        logged |= {peer: value for key, value in metrics.items() for peer in peer_metrics(method, key)}
        self.tracker.log_metrics({**logged, f"{self.prefix}train/tokens_per_second": speed}, step)
        if self.shown is None:
            if step > 1:
                sys.stderr.write(f"{self.name:12} continues at step {step} of {total}, from its last saved state\n")
            self.shown = show(self.name, total, step - 1, self.began)
        numbers = [f"{key} {metrics[key]:.3g}" for key in ("loss", "score", "kl", "accuracy") if key in metrics]
        self.shown.advance(1, f"{speed:,.0f} tokens/s  {'  '.join(numbers)}")
        if step == total:
            self.shown.close()


def tracked_name(key: str) -> str:
    """Return a metric's name in MLflow, which groups charts by prefix: `train/loss`, `development/loss`."""
    name = key.removeprefix("development_")
    return f"train/{key}" if name == key else f"development/{name}"
