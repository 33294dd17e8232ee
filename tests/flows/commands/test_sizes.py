"""`rlhf doctor --size`: shapes of models that are not here, and what recipes need on them, worked by hand."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig

from flow_scratch import make_scratch
from flows.commands import doctor, durations
from flows.commands.doctor import Assumed, examine
from flows.commands.durations import START, Speed, seconds, work
from flows.commands.sizes import SIZES, config_of, narrow
from flows.run.changes import Changes
from rlhf_core.algorithms.base.algorithm import Work
from rlhf_core.common.errors import UserError
from tasks.params.load import ROOT
from tasks.params.schema import Params
from tasks.problems.table import problem_of
from tasks.runtime.memory import estimate, model_shape


def params_of(name: str) -> Params:
    return Changes(name).resolve(ROOT).params


# Embeddings V d, once if tied; per layer q and o 2 d², k and v 2 d d_kv, feed-forward 3 d f, two norms d; last norm d.
EXPECTED = {
    "135M": 49152 * 576 + 30 * (2 * 576**2 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576) + 576,
    "0.5B": 151936 * 896 + 24 * (2 * 896**2 + 2 * 896 * 128 + 3 * 896 * 4864 + 2 * 896) + 896,
    "1B": 128256 * 2048 + 16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048) + 2048,
    "3B": 128256 * 3072 + 28 * (2 * 3072**2 + 2 * 3072 * 1024 + 3 * 3072 * 8192 + 2 * 3072) + 3072,
    "8B": 2 * 128256 * 4096 + 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096) + 4096,
}


@pytest.mark.parametrize("size", list(SIZES))
def test_weights_of_a_size_by_hand(size: str) -> None:
    assert model_shape(config_of(size)).weights == EXPECTED[size]
    assert EXPECTED[size] == pytest.approx({"135M": 135e6, "0.5B": 0.494e9}.get(size, EXPECTED[size]), rel=0.01)


def test_an_unknown_size_lists_those_there_are() -> None:
    with pytest.raises(UserError, match=r"--size 7B is not known. Choose the nearest of: 135M, 0.5B, 1B, 3B, 8B\."):
        config_of("7B")


@pytest.mark.parametrize("size", list(SIZES))
def test_what_is_measured_for_a_size_is_small(size: str) -> None:
    """One layer and the embeddings fit in any machine; widths divide into heads."""
    small = narrow(config_of(size))
    small.num_hidden_layers = 1
    assert model_shape(small).weights < 25e6
    assert small.num_attention_heads % small.num_key_value_heads == 0


def test_memory_of_full_training_of_1b_by_hand() -> None:
    """Bytes per weight. Trained: 4 + 4 + 8, and 2 of the bf16 copy. PPO trains policy and critic; the reference and
    the reward model are frozen in bf16: 2 × 18 + 2 × 2. DPO: 18 + 2.
    """
    shape = model_shape(config_of("1B"))
    needs = {need.stage: need.models / shape.weights for need in estimate(shape, params_of("full_1b"), False)}
    assert (needs["sft"], needs["online@ppo"], needs["online@grpo"], needs["offline@dpo"]) == (18, 40, 22, 20)


def test_memory_of_adapters_on_8b_by_hand() -> None:
    """A layer's inputs and outputs: q, o 8192 each; k, v 5120 each; three of 4096 + 14336. Rank 16, 32 layers:
    41.9 M trained weights of 16 bytes, on one base of 2 bytes per weight. PPO has two such adapters, and those of the
    reference and of the reward model in float32.
    """
    adapter = 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * (4096 + 14336))
    assert adapter == 41_943_040
    base = 2 * EXPECTED["8B"]
    needs = {need.stage: need for need in estimate(model_shape(config_of("8B")), params_of("lora_8b"), False)}
    assert needs["sft"].models == base + 16 * adapter
    assert needs["offline@dpo"].models == base + 16 * adapter + 4 * adapter
    assert needs["online@ppo"].models == base + 2 * 16 * adapter + 2 * 4 * adapter
    assert needs["online@ppo"].models == pytest.approx(17.7e9, rel=0.01)


def test_cache_of_shared_keys_by_hand() -> None:
    """Keys and values of 8 heads of 128 in bf16, 128 rows of 768 tokens and 32 layers; two rows of logits; 1 GiB."""
    needs = {need.stage: need for need in estimate(model_shape(config_of("8B")), params_of("lora_8b"), False)}
    assert needs["sample"].activations == 2 * 32 * 128 * 768 * (8 * 128) * 2 + 2 * 128 * 128256 * 4 + 2**30


@pytest.mark.parametrize(("dtype", "frozen"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_measured_model_is_that_of_the_stages(dtype: str, frozen: torch.dtype) -> None:
    """With LoRA only float32 adapters are trained, on frozen weights of model.dtype, with checkpointing if asked."""
    changes = {"model.lora.r": 2, "model.gradient_checkpointing": True, "model.dtype": dtype, "run.precision": dtype}
    params = Changes("default", changes).resolve(ROOT).params
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = durations._model(config, params, "cpu")
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 7 * 2 and all(".lora_" in name for name in trained)
    types = {name in trained: set() for name, _ in model.named_parameters()}
    for name, weight in model.named_parameters():
        types[name in trained].add(weight.dtype)
    assert types == {True: {torch.float32}, False: {frozen}}
    assert all(layer.gradient_checkpointing for layer in model.model.layers)


def test_time_of_dpo_by_hand() -> None:
    """1,000 preferences: 0.1 each for development and test, 0.2 for the judge: 600 to train on. Batches of 64: 10 steps
    of 64 pairs, 1,280 rows of 768 tokens, half of that at least.
    """
    params = params_of("full_1b")
    counts = problem_of("preference").count_rows(params, 1000)
    assert (counts.preferences, counts.judge) == (600, 200)
    item = work(params, counts, False)["offline@dpo"]
    assert item.trained == 2 * 10 * 64
    only = seconds(Work(trained=item.trained), Speed(train=1e-3, read=0, sample=0), params)
    assert only == pytest.approx((START + 1280 * 768e-3 / 2, START + 1280 * 768e-3))


def examined(root: Path, arguments: list[str], assumed: Assumed | None) -> tuple[bool, str]:
    text = StringIO()
    is_well = examine(root, "default", arguments, Console(file=text, width=200, highlight=False), assumed)
    return is_well, text.getvalue()


def test_the_doctor_says_what_it_assumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are shown even if the model does not fit this machine, which then is the only fault."""
    timed: list[Any] = []

    def measure(config: Any, params: Params, device: str, weights: int) -> Speed:
        timed.append((config.hidden_size, weights))
        return Speed(1e-4, 1e-4, 1e-4)

    monkeypatch.setattr(doctor, "measure", measure)
    monkeypatch.setattr(doctor, "free_memory", lambda params: 8e9)
    monkeypatch.chdir(tmp_path)
    is_well, text = examined(make_scratch(tmp_path), ["prepare.path=nowhere.jsonl"], Assumed("8B", 1000))
    assert not is_well
    assert "! model" in text and "no model is read; the estimates are for the shape of Llama-3.1-8B: 8,030.3 M" in text
    assert "the times are for 1,000 rows of kind preference" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith(" ✗")] == ["memory", "disk"][
        : text.count(" ✗")
    ]
    assert timed == [(512, EXPECTED["8B"])]
    assert " time " in text and "for all stages" in text


def test_a_recipe_without_a_model_names_the_way_to_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_scratch(tmp_path)
    (root / "helpdesk").mkdir()
    (root / "helpdesk/model.json").write_text((root / "model.json").read_text())
    monkeypatch.chdir(root)
    is_well, text = examined(root, ["model.path=helpdesk/model.json", "sft.learning_rate=1e-5"], None)
    assert not is_well
    assert "suits only a pretrained model" in text
    assert "For an estimate without a model, choose the nearest size: --size, one of 135M, 0.5B, 1B, 3B, 8B" in text
