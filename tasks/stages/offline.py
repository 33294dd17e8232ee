"""Stage `offline@NAME`: train one policy on the feedback itself."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_core.common.batch import Unit
from rlhf_core.common.errors import UserError
from rlhf_core.loops.offline import with_ref_logprobs
from rlhf_core.models.store import load_tokenizer
from tasks.common.accelerator import accelerator_of
from tasks.common.models import StageModels
from tasks.common.preflight import ROWS, Check, from_sft_checks, prepared, require, run_checks
from tasks.common.rows import READERS
from tasks.common.train import train_and_save_policy
from tasks.files.paths import FEEDBACK, SFT, policy
from tasks.params.schema import Params, algorithm_of
from tasks.runtime.progress import progress
from tasks.runtime.stage import Stage, main, open_stage


def offline(name: str) -> None:
    """Train the policy `name` from the SFT model."""
    with open_stage(f"offline@{name}", stream=f"policy@{name}") as stage:
        algorithm, config = algorithm_of(stage.params, name), stage.params.policy.section(name)
        run_checks(stage.name, checks(stage.params, name))
        tokenizer = load_tokenizer(SFT)
        read = READERS[algorithm.data]
        train, held_out = (read(FEEDBACK, split, tokenizer, None) for split in ("train", "development"))
        if not train:
            raise UserError(
                f"policy.offline names {name}, which learns from {algorithm.data}, but {FEEDBACK} has none. "
                "Remove it from the list, or set prepare.path to such data."
            )
        _train(stage, name, algorithm, config, train, held_out)


def _train(
    stage: Stage, name: str, algorithm: Any, config: Any, train: Sequence[Unit], held_out: Sequence[Unit]
) -> None:
    """Train on units whose reference log-probabilities are computed once, before training."""
    tokenizer, models, accelerator = load_tokenizer(SFT), StageModels(stage.params), accelerator_of(stage.params)
    reference = models.reference()
    with progress(f"{stage.name} reference", len(train) + len(held_out)) as report:
        train, held_out = (
            with_ref_logprobs(accelerator, reference, units, config, tokenizer.pad_token_id, report)
            for units in (train, held_out)
        )
    train_and_save_policy(
        stage,
        models.policy(stage.stream),
        tokenizer,
        algorithm,
        train,
        held_out,
        config,
        policy(name),
        config.snapshots,
    )


def checks(params: Params, name: str) -> Iterator[Check]:
    """Yield the checks before training."""
    require(f"offline@{name}")
    tokenizer = load_tokenizer(SFT)
    units = READERS[algorithm_of(params, name).data](FEEDBACK, "train", tokenizer, ROWS)
    if units:  # otherwise the stage reports what is missing
        models = StageModels(params)
        model = prepared(params, models.policy(f"policy@{name}"))
        yield from from_sft_checks(params, model, tokenizer, units, params.policy.section(name).learning_rate, models)


if __name__ == "__main__":
    main(offline, *sys.argv[1:])
