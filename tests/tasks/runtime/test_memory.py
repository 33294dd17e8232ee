"""The memory estimate with LoRA, types and checkpointing, against measurements, and the advice when memory runs out."""

import json
import resource
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig

import peak
from rlhf_core.common.errors import UserError
from tasks.params.load import load_params, validate, with_values
from tasks.params.schema import Params
from tasks.runtime.memory import GB, ModelShape, estimate, model_shape
from tasks.runtime.out_of_memory import advice, is_out_of_memory
from tasks.runtime.stage import open_stage
from tools.closure import ROOT

SHAPE = ModelShape(
    weights=1_000_000, layers=2, width=10, heads=3, vocabulary=100, linear=900_000, sides=1000
)  # an adapter of rank 16 has 16,000 weights
LARGE = ModelShape(
    weights=10**9, layers=16, width=2048, heads=16, vocabulary=32_000, linear=9 * 10**8, sides=10**6
)  # an adapter of rank 16 has 16 million weights


def params_of(**changes) -> Params:
    from tasks.params.load import read_yaml

    raw = read_yaml(ROOT / "params.yaml")
    return validate(with_values(raw, {key.replace("__", "."): value for key, value in changes.items()}))


def models(params, shape=SHAPE):
    """Bytes of each stage's models."""
    return {need.stage: need.models for need in estimate(shape, params, is_from_scratch=True)}


def test_lora_by_hand():
    """One frozen base of 4 MB; an adapter has 16,000 weights, 16 bytes each when trained and 4 when frozen."""
    found = models(params_of(model__lora__r=16))
    trained, frozen = 16 * 16_000, 4 * 16_000
    assert found["base"] == 16e6  # trained from scratch
    assert found["sft"] == 4e6 + trained
    assert found["online@ppo"] == 4e6 + 2 * trained + 2 * frozen
    assert found["evaluate"] == 2 * 4e6 + 4 * frozen  # a merged policy beside the base


def test_types_by_hand():
    """bf16: 2 bytes per frozen weight, and 2 more per trained one. 4 bits: 0.5625 per linear weight."""
    low = {"run__precision": "bf16"}
    assert models(params_of(**low, model__dtype="bf16"))["online@grpo"] == (16 + 2 + 2 * 2) * 1e6
    assert models(params_of(**low))["sft"] == (16 + 2) * 1e6
    four = models(params_of(**low, model__dtype="4bit", model__lora__r=16))
    assert four["sft"] == 0.5625 * 900_000 + 2 * 100_000 + 16 * 16_000
    eight = params_of(sft__optimizer="adamw_8bit")
    assert models(eight)["sft"] == 10e6


def test_checkpointing_by_hand():
    """128 tokens, 32 rows: one layer of 32*10 + 3*128 values, the float32 inputs of two layers, and the logits."""
    need = next(n for n in estimate(SHAPE, params_of(model__gradient_checkpointing=True), True) if n.stage == "sft")
    layer, inputs = 128 * 32 * (320 + 384) * 4, 2 * 128 * 32 * 10 * 4
    assert need.activations == layer + inputs + 2 * 32 * 64 * 100 * 4


@pytest.mark.parametrize(("fast", "copies"), [(True, 4e6), (False, 0)])
def test_sampling_by_hand(fast, copies):
    """128 rows: keys and values of 2 layers, 128 tokens and width 10; 2 rows of 100 logits; a copy of all weights."""
    need = next(n for n in estimate(SHAPE, params_of(model__fast=fast), True) if n.stage == "evaluate")
    assert need.activations == copies + 2 * 2 * 128 * 128 * 10 * 4 + 2 * 128 * 100 * 4


@pytest.mark.parametrize(("lora", "checkpointing"), [(False, False), (True, False), (True, True)])
def test_what_layers_keep_is_within_a_factor_of_two_of_the_estimate(lora, checkpointing):
    """Counted: every tensor that autograd saves for the backward pass of 4 rows of 128 tokens."""
    kept = peak.saved_bytes(lora, checkpointing, 4)
    changes = {"sft__micro_batch_size": 4, "model__gradient_checkpointing": checkpointing}
    shape = model_shape(LlamaConfig(**peak.SHAPE))
    need = next(n for n in estimate(shape, params_of(**changes), True) if n.stage == "sft")
    one_layer = need.activations / peak.SHAPE["num_hidden_layers"] if checkpointing else 0
    assert kept <= need.activations <= 2 * kept + 10 * one_layer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "checkpointing", "dtype"),
    [(False, False, "fp32"), (False, True, "bf16"), (True, False, "fp32"), (True, True, "bf16")],
)
def test_the_estimate_is_near_the_measured_peak(lora, checkpointing, dtype):
    given = {"lora": lora, "checkpointing": checkpointing, "dtype": dtype, "rows": 4}
    command = [sys.executable, peak.__file__, json.dumps(given)]
    measured = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    changes = {"sft__micro_batch_size": 4, "model__gradient_checkpointing": checkpointing}
    changes |= {"model__lora__r": 16} if lora else {}
    changes |= {"model__dtype": "bf16", "run__precision": "bf16"} if dtype == "bf16" else {}
    shape = model_shape(LlamaConfig(**peak.SHAPE))
    need = next(n for n in estimate(shape, params_of(**changes), True) if n.stage == "sft")
    assert 0.5 <= measured / (need.models + need.activations) <= 1.6


# Out of memory


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_which_errors_mean_that_memory_ran_out(error, is_it):
    assert is_out_of_memory(error) is is_it


def need(params, stage="sft", shape=LARGE):
    return next(n.total for n in estimate(shape, params, True) if n.stage == stage)


def test_advice_names_every_single_change_that_fits():
    """Weights of 16 GB and activations of 17 GB: only activations or only trained weights have to shrink."""
    params = params_of()
    lines = advice("sft", params, LARGE, 25 * GB).splitlines()
    assert lines[0].startswith("sft ran out of memory. It needs about 3")
    assert lines[0].endswith("GB; 25 GB are available.")
    assert "sft.micro_batch_size " in lines[1] and "model.gradient_checkpointing true" in lines[1]
    size = int(lines[1].partition("sft.micro_batch_size ")[2].partition(";")[0])
    assert need(params_of(sft__micro_batch_size=size)) < 25 * GB <= need(params_of(sft__micro_batch_size=2 * size))
    for text, changes in (
        ("model.gradient_checkpointing true", {"model__gradient_checkpointing": True}),
        ("model.lora.r 16", {"model__lora__r": 16}),
        ("model.dtype bf16 with run.precision bf16", {"model__dtype": "bf16", "run__precision": "bf16"}),
    ):
        assert (text in lines[1]) == (need(params_of(**changes)) < 25 * GB), text


def test_advice_combines_changes_if_none_alone_fits():
    said = advice("policy@x".replace("policy", "online").replace("x", "ppo"), params_of(), LARGE, 9 * GB)
    assert said.splitlines()[1].startswith("These together would fit: policy.ppo.micro_batch_size 1; ")
    assert "No setting would make it fit" in advice("sft", params_of(), LARGE, 1 * GB)


def test_advice_if_the_estimate_is_too_low():
    """By the estimate it would fit; a change must then need less than now."""
    said = advice("sft", params_of(), LARGE, 1000 * GB)
    assert "sft.micro_batch_size 16" in said and "model.lora.r 16" in said
    small = params_of(sft__micro_batch_size=1)  # bf16 copies of trained weights need more than the activations save
    assert "model.dtype" not in advice("sft", small, LARGE, 1000 * GB)
    assert advice("prepare", params_of(), LARGE, GB).endswith("Close other programs, or set run.parallel to 1.")


def test_a_stage_that_runs_out_of_memory_says_what_fits(tmp_path, monkeypatch):
    """A real allocation fails under a limit on the address space; the resume folder is kept."""
    from checkout import make_checkout

    folder = make_checkout(tmp_path)
    monkeypatch.chdir(folder)
    from tasks.stages.prepare import prepare

    prepare()
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match=r"base ran out of memory\. It needs about"), open_stage("base"):
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, before[1]))
        try:
            torch.empty(16 << 30, dtype=torch.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    assert list((folder / ".resume").glob("*"))
    assert load_params() is not None
