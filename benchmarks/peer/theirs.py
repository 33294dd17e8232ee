"""The peer's side: TRL's trainers. compare.py starts `python -m benchmarks.peer.theirs SPEC` in TRL's environment.

TRL's defaults, except for what the comparison sets equal: fp32, no gradient checkpointing (it costs about 20 % of the
speed), lengths, learning rate, batch, order of the rows. PPO left TRL after 1.12; that release lies in the folder `ppo`
of the environment.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LogitsProcessorList,
    TrainerCallback,
)

from benchmarks.peer.cells import Cell, new_tokenizer, text_of
from benchmarks.peer.lengths import ForcedLengths
from benchmarks.peer.recorder import Recorder, clock, side

RATE = 1e-6
# The options that make TRL faster on these cells, for the second column. Without an entry it has none on a CPU:
# use_liger_kernel and use_kernels need a GPU, vLLM too, gradient checkpointing and activation offloading cost time, and
# the fused head, which is always on, skips prompt positions only on a GPU.
BEST: dict[str, dict[str, Any]] = {
    "sft": {"padding_free": True, "max_length": None},
    "dpo": {"precompute_ref_log_probs": True},
    "grpo": {"cache_implementation": "static"},
}


def main(cell: Cell, folder: Path, recorder: Recorder, best: bool) -> None:
    """Train the cell's method."""
    if cell.method == "ppo":
        sys.path.insert(0, str(Path(sys.prefix) / "ppo"))
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    common = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": RATE,
        "per_device_train_batch_size": cell.units,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10**6,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
    }
    options = common | (BEST.get(cell.method, {}) if best else {})
    trainer = TRAINERS[cell.method](cell, folder, recorder, options)
    trainer.add_callback(Turns(recorder))
    trainer.train()


class Turns(TrainerCallback):
    """Tells the recorder when steps begin and end."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The trainer is about to take its first step."""
        self.recorder.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """An optimiser step is done."""
        self.recorder.end_step()


def sft(cell: Cell, folder: Path, recorder: Recorder, options: dict[str, Any]) -> Any:
    """SFTTrainer on tokenised rows."""
    from trl import SFTConfig, SFTTrainer

    rows = []
    for step in range(recorder.total):
        for prompt, response in zip(cell.prompts(step), cell.responses(step), strict=True):
            rows.append({"input_ids": prompt + response, "labels": [-100] * len(prompt) + response})
    return SFTTrainer(
        model=_policy(folder),
        processing_class=new_tokenizer(cell.vocabulary),
        train_dataset=_dataset(rows),
        args=SFTConfig(max_steps=recorder.total, **options),
    )


def dpo(cell: Cell, folder: Path, recorder: Recorder, options: dict[str, Any]) -> Any:
    """DPOTrainer; reference log-probabilities that are computed beforehand count, once per pair."""
    from trl import DPOConfig, DPOTrainer

    class Trainer(DPOTrainer):
        def compute_ref_log_probs(self, *args: Any, **kwargs: Any) -> Any:
            recorder.is_loaded()
            began = clock()
            found = super().compute_ref_log_probs(*args, **kwargs)
            recorder.once("reference", clock() - began)
            return found

    rows = [
        {"prompt": text_of(prompt), "chosen": f" {text_of(chosen)}", "rejected": f" {text_of(rejected)}"}
        for prompt, chosen, rejected in _pairs(cell, recorder.total)
    ]
    return Trainer(
        model=_policy(folder),
        processing_class=new_tokenizer(cell.vocabulary),
        train_dataset=_dataset(rows),
        args=DPOConfig(max_steps=recorder.total, **options),
    )


def reward(cell: Cell, folder: Path, recorder: Recorder, options: dict[str, Any]) -> Any:
    """RewardTrainer."""
    from trl import RewardConfig, RewardTrainer

    rows = [
        {"chosen": f"{text_of(prompt)} {text_of(chosen)}", "rejected": f"{text_of(prompt)} {text_of(rejected)}"}
        for prompt, chosen, rejected in _pairs(cell, recorder.total)
    ]
    return RewardTrainer(
        model=_scalar(folder),
        processing_class=new_tokenizer(cell.vocabulary),
        train_dataset=_dataset(rows),
        args=RewardConfig(max_steps=recorder.total, **options),
    )


def grpo(cell: Cell, folder: Path, recorder: Recorder, options: dict[str, Any]) -> Any:
    """GRPOTrainer with beta 0, its default; the reward is the fraction of odd tokens."""
    from trl import GRPOConfig, GRPOTrainer

    def odd(completions: Any, completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(token % 2 for token in ids) / len(ids) for ids in completion_ids]

    options = options | {"per_device_train_batch_size": cell.rows}
    del options["train_sampling_strategy"]  # GRPO has a sampler of its own
    trainer = GRPOTrainer(
        model=_policy(folder),
        reward_funcs=odd,
        processing_class=new_tokenizer(cell.vocabulary),
        train_dataset=_dataset(
            [{"prompt": text_of(ids)} for step in range(recorder.total) for ids in cell.prompts(step)]
        ),
        args=GRPOConfig(
            max_steps=recorder.total,
            num_generations=cell.group,
            max_completion_length=cell.longest,
            shuffle_dataset=False,
            **options,
        ),
    )
    _force_lengths(trainer.model, cell, recorder)
    return trainer


def ppo(cell: Cell, folder: Path, recorder: Recorder, options: dict[str, Any]) -> Any:
    """PPOTrainer of TRL 1.12 with a reward model and a value model of the policy's size."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    rows = _dataset([{"input_ids": ids} for step in range(recorder.total) for ids in cell.prompts(step)])
    config = PPOConfig(
        total_episodes=recorder.total * cell.units,
        num_ppo_epochs=cell.epochs,
        num_mini_batches=1,
        gradient_accumulation_steps=1,
        response_length=cell.longest,
        temperature=1.0,
        stop_token="eos",
        num_sample_generations=0,
        local_rollout_forward_batch_size=cell.units,
        kl_coef=0.05,
        **options,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=new_tokenizer(cell.vocabulary),
        model=_policy(folder),
        ref_model=_policy(folder),
        reward_model=_scalar(folder),
        value_model=_scalar(folder),
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
    )
    _force_lengths(trainer.accelerator.unwrap_model(trainer.model).policy, cell, recorder)
    return trainer


TRAINERS: dict[str, Callable[[Cell, Path, Recorder, dict[str, Any]], Any]] = {
    "sft": sft,
    "dpo": dpo,
    "reward": reward,
    "grpo": grpo,
    "ppo": ppo,
}


def _policy(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _scalar(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder)
    config.num_labels = 1
    return AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32)


def _dataset(rows: list[dict[str, Any]]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_list(rows)


def _pairs(cell: Cell, steps: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected response of each pair, without end tokens, which TRL adds."""
    found = []
    for step in range(steps):
        bare = [ids[:-1] for ids in cell.responses(step)]
        found += list(zip(cell.prompts(step), bare[0::2], bare[1::2], strict=True))
    return found


def _force_lengths(model: Any, cell: Cell, recorder: Recorder) -> None:
    """Force the cell's lengths in each call of the model's `generate`, whose time counts as decoding."""
    generate, forced = recorder.timing_decode(model.generate), LogitsProcessorList([ForcedLengths(cell)])
    model.generate = lambda *args, **kwargs: generate(*args, logits_processor=forced, **kwargs)


if __name__ == "__main__":
    side(main)
