"""Steps of the stages that train on fixed data: train, save snapshots and the model, and write the learning curve."""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.algorithms.base.algorithm import Algorithm
from rlhf_core.algorithms.base.config import OfflineConfig
from rlhf_core.common.batch import Batch, Unit
from rlhf_core.loops.common.run import Metrics
from rlhf_core.loops.offline import train_offline
from rlhf_core.models.forward import policy_outputs
from rlhf_core.models.merging import require_trained
from rlhf_core.models.store import save_policy
from tasks.common.accelerator import accelerator_of
from tasks.files import paths
from tasks.files.jsonl import write_jsonl
from tasks.files.tables import write_csv
from tasks.runtime.stage import Stage


def write_curve(folder: Path, history: Sequence[Metrics]) -> None:
    """Write metrics.jsonl and the same rows as curve.csv: one row per step, deterministic numbers only."""
    rows = [{"step": step, **metrics} for step, metrics in enumerate(history, 1)]
    write_jsonl(folder / paths.CURVE, rows)
    write_csv(folder / paths.CURVE_TABLE, rows)


def snapshot_saver(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> Callable[[int], None]:
    """Return a callback that saves a snapshot of the current policy in `folder`."""

    def save(step: int) -> None:
        path = paths.snapshot(folder, step)
        save_policy(model, tokenizer, path, max_new_tokens=max_new_tokens, temperature=temperature)

    return save


def train_and_save_policy(
    stage: Stage,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    algorithm: Algorithm[Batch],
    units: Sequence[Unit],
    held_out: Sequence[Unit],
    config: OfflineConfig,
    out: Path,
    snapshots: int = 0,
) -> None:
    """Train a policy on fixed data and save it as the stage's output `out`."""
    folder = stage.out(out)
    longest = stage.params.prepare.max_response_tokens
    history = train_offline(
        accelerator_of(stage.params),
        model,
        policy_outputs,
        algorithm,
        units,
        held_out,
        config,
        stage.training_run(snapshot=snapshot_saver(model, tokenizer, folder, longest)),
        tokenizer.pad_token_id,
        snapshots,
    )
    require_trained(model)
    save_policy(model, tokenizer, folder, max_new_tokens=longest)
    write_curve(folder, history)
