"""Speed and memory of SFT, DPO, GRPO and PPO on one GPU, beside its physical limits. Needs rlhf_core alone.

    python -m benchmarks.gpu                             # all: 0.5B and 1.5B, full and LoRA
    python -m benchmarks.gpu --models 0.5B --methods grpo --weights full lora --steps 3
    python -m benchmarks.gpu --tiny                      # a few thousand weights, on the CPU

Models have the shapes of Qwen2.5-0.5B and -1.5B with random weights, which end no response before its limit. bf16
compute; full training has float32 master weights, LoRA (through peft, if it is installed) has frozen bf16 weights. The
reference of DPO and PPO is a bf16 copy. Results go to benchmarks/results/gpu.json and to benchmarks/README.md.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Qwen2Config

from benchmarks import page
from benchmarks.peer import arithmetic
from benchmarks.peer.arithmetic import Size
from benchmarks.peer.cells import END, PAD, Cell
from benchmarks.peer.ours import Setup, train
from benchmarks.stored import RESULTS, add
from rlhf_core.models.attention import use_layouts
from rlhf_core.models.precision import set_compute
from rlhf_core.models.store import ScalarModel, new_policy, parameter_count

OUT = RESULTS / "gpu.json"
METHODS = ("sft", "dpo", "grpo", "ppo")
WEIGHTS = ("full", "lora")
# Dense bf16 operations and bytes per second, by a part of the device's name; the first match counts.
PEAKS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.0e12)}
LORA_RANK = 16


@dataclass(frozen=True)
class Shape:
    """A Qwen2-style model."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def config(self) -> Qwen2Config:
        """Its configuration, with the head tied to the embeddings."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            eos_token_id=END,
            bos_token_id=None,
        )

    @property
    def kv_width(self) -> int:
        """Keys, or values, of one token and layer."""
        return self.kv_heads * self.hidden // self.heads

    @property
    def size(self) -> Size:
        """What a forward pass costs."""
        layer = 2 * self.hidden * (self.hidden + self.kv_width) + 3 * self.hidden * self.feed_forward
        return Size(self.layers * layer, self.vocabulary * self.hidden, self.layers * self.hidden)


SHAPES = {
    "0.5B": Shape(896, 4864, 24, 14, 2, 151_936),
    "1.5B": Shape(1536, 8960, 28, 12, 2, 151_936),
    "tiny": Shape(32, 64, 2, 4, 2, 512),
}
WORK = {  # rows of 256 + 256 tokens
    "sft": {"units": 64},
    "dpo": {"units": 32},
    "grpo": {"units": 16, "group": 8},
    "ppo": {"units": 128},
}


def cell_of(method: str, shape: Shape, *, tiny: bool = False) -> Cell:
    """The work of one step."""
    size = {"hidden": shape.hidden, "layers": shape.layers, "vocabulary": shape.vocabulary}
    cell = Cell(method, **size, prompt=256, shortest=256, longest=256, **WORK[method])
    return replace(cell, prompt=6, shortest=5, longest=5, units=2, group=min(cell.group, 2)) if tiny else cell


class Clock:
    """Wall time of steps and of decoding in them, and the peak of the device's memory after the first step."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.total = device, steps + 1
        self.steps: list[tuple[float, float]] = []  # seconds of the step, and of decoding in it
        self.decoding = self.per_step = 0.0

    def now(self) -> float:
        """Seconds, when all work given to the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def is_loaded(self) -> None:
        """Nothing to note: the peak counts the weights."""

    def begin(self) -> None:
        """The first step begins."""
        self.began = self.now()

    def end_step(self) -> None:
        """A step has ended, and the next begins."""
        ended = self.now()
        self.steps.append((ended - self.began, self.decoding))
        if len(self.steps) == 1 and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.decoding, self.began = 0.0, self.now()

    def timing_decode(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that does the same, and whose time counts as decoding."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self.now()
            found = function(*args, **kwargs)
            self.decoding += self.now() - began
            return found

        return timed

    def once(self, name: str, seconds: float) -> None:
        """Add work that is done once for all steps."""
        self.per_step += seconds / self.total

    def row(self, cell: Cell, shape: Shape, weights: str, limits: "Limits") -> dict[str, float | None]:
        """Tokens per second and shares of the limits, medians over the steps after the first; memory in GiB."""
        kept = self.steps[1:]
        seconds = median(step for step, _ in kept) + self.per_step
        decode = median(decoding for _, decoding in kept)
        flop = arithmetic.training(cell, 0, shape.size, trained=2 if weights == "lora" else 3)
        tokens = cell.rows * (cell.prompt + cell.longest) * cell.epochs
        rest = seconds - decode
        read = decoded_bytes(cell, shape) / decode if decode else None
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        return {
            "step, s": seconds,
            "trained tokens/s": tokens / rest,
            "share of peak": limits.share(flop / rest, limits.peak_flops),
            "share of matmul": flop / rest / limits.matmul,
            "decoded tokens/s": cell.rows * cell.longest / decode if decode else None,
            "share of bandwidth": None if read is None else limits.share(read, limits.peak_bytes),
            "share of copy": None if read is None else read / limits.copy,
            "peak, GiB": peak,
        }


def decoded_bytes(cell: Cell, shape: Shape) -> float:
    """The least bytes read while decoding in bf16: all weights in each step, and the keys and values so far.

    A prompt's keys and values are read once per group.
    """
    weights = shape.size.layers + shape.size.head
    own = cell.rows * cell.longest * (cell.longest - 1) / 2
    prompts = cell.units * cell.prompt * cell.longest
    return 2.0 * (weights * cell.longest + 2 * shape.layers * shape.kv_width * (own + prompts))


@dataclass(frozen=True)
class Limits:
    """Operations and bytes per second: of the data sheet (None if unknown), and as measured."""

    peak_flops: float | None
    peak_bytes: float | None
    matmul: float
    copy: float

    @classmethod
    def measure(cls, device: torch.device, side: int) -> "Limits":
        """A large matrix product in bf16, and a copy, which reads and writes each byte."""
        name = torch.cuda.get_device_name() if device.type == "cuda" else ""
        flops, bandwidth = next((peak for part, peak in PEAKS.items() if part in name), (None, None))
        a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
        source = torch.empty(4 * side * side, device=device, dtype=torch.bfloat16)
        target = torch.empty_like(source)
        product = _fastest(lambda: a @ a, device)
        copied = _fastest(lambda: target.copy_(source), device)
        return cls(flops, bandwidth, 2 * side**3 / product, 4 * source.numel() / copied)

    @staticmethod
    def share(rate: float, limit: float | None) -> float | None:
        """A rate as a share of a limit; None if the limit is unknown."""
        return None if limit is None else rate / limit


def _fastest(work: Callable[[], Any], device: torch.device) -> float:
    clock = Clock(device, 0)
    times = []
    for _ in range(10):
        began = clock.now()
        work()
        times.append(clock.now() - began)
    return min(times)


def setup_of(shape: Shape, weights: str, accelerator: Accelerator, micro: int | None) -> Setup:
    """Models in bf16 compute: trained ones with float32 weights, or LoRA on frozen bf16 weights."""

    def finished(model: Any) -> Any:
        for part in (model, getattr(model, "model", None)):
            if isinstance(part, PreTrainedModel):
                use_layouts(part)
        set_compute(model, "bf16")
        return model

    def trained(model: PreTrainedModel) -> PreTrainedModel:
        return with_lora(model) if weights == "lora" else model

    def policy() -> PreTrainedModel:
        torch.manual_seed(0)
        return finished(trained(new_policy(shape.config)))

    def reference() -> PreTrainedModel:
        torch.manual_seed(0)
        return finished(new_policy(shape.config).to(torch.bfloat16))

    def scalar() -> ScalarModel:
        config = shape.config
        config.num_labels = 1
        factory: Any = AutoModelForSequenceClassification
        return finished(ScalarModel(trained(factory.from_config(config, dtype=torch.float32))))

    return Setup(accelerator, policy, reference, scalar, micro)


def with_lora(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze the weights in bf16 and add an adapter to every linear layer."""
    from rlhf_core.common.lora import Lora
    from rlhf_core.models.adapters import Base, add_adapter

    model.to(torch.bfloat16)
    add_adapter(model, Lora(r=LORA_RANK), Base("random weights", ""))
    return model


def has_lora() -> bool:
    """Whether peft is installed and this version has adapters."""
    return find_spec("peft") is not None and find_spec("rlhf_core.models.adapters") is not None


def measure(
    method: str, shape: Shape, weights: str, steps: int, device: str, limits: Limits, *, tiny: bool
) -> dict[str, Any]:
    """Train one method for some steps, and return the row of the table; of a run out of memory, only the names."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16")
    cell, clock = cell_of(method, shape, tiny=tiny), Clock(accelerator.device, steps)
    try:
        train(cell, setup_of(shape, weights, accelerator, micro=max(1, cell.units // 4)), clock)
        row = clock.row(cell, shape, weights, limits)
    except torch.cuda.OutOfMemoryError:
        row = {"step, s": None}
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return {"method": method, "weights": weights, **row}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen models and methods; without a GPU, print a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["0.5B", "1.5B"], choices=list(SHAPES))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--weights", nargs="+", default=WEIGHTS, choices=WEIGHTS)
    parser.add_argument("--steps", type=int, default=3, help="measured optimiser steps, after one that is not")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to try the script")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    if not given.tiny and not torch.cuda.is_available():
        print("No CUDA device found; nothing was run. Try the script with --tiny.")
        return
    device = "cpu" if given.tiny else "cuda"
    limits = Limits.measure(torch.device(device), 128 if given.tiny else 8192)
    for model in ["tiny"] if given.tiny else given.models:
        shape = SHAPES[model]
        rows = []
        for weights in given.weights:
            if weights == "lora" and not has_lora():
                print("LoRA is left out: peft is not installed.", file=sys.stderr)
                continue
            for method in given.methods:
                rows.append(measure(method, shape, weights, given.steps, device, limits, tiny=given.tiny))
                print(model, rows[-1], flush=True)
        name = torch.cuda.get_device_name() if device == "cuda" else "the CPU"
        about = f"{parameter_count_of(shape) / 1e9:.2f} billion weights, bf16, on {name}"
        add(given.out, model, {"about": about, "limits": asdict(limits), "rows": rows})
    if given.out == OUT:
        page.write()


def parameter_count_of(shape: Shape) -> int:
    """The weights of a model of this shape, without making them."""
    with torch.device("meta"):
        return parameter_count(new_policy(shape.config))


if __name__ == "__main__":
    main()
