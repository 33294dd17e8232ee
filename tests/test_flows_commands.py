"""`rlhf chat`, `rlhf compare` and `rlhf doctor`, each on something small enough to work out by hand."""

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, GPT2Config, LlamaConfig

from flow_scratch import make_scratch
from flows.chat import talk
from flows.compare import Run, differences, distinct
from flows.doctor import examine
from flows.memory import PROCESS, ModelShape, estimate, model_shape
from rlhf_core.bpe import train_tokenizer
from rlhf_core.errors import UserError
from rlhf_core.models import new_policy, new_scalar_model, save_policy, save_scalar_model
from tasks.params import Params, load_params


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy and a reward model, untrained and tiny."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = train_tokenizer(["the oven is late, we are sorry"] * 3, 80)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    save_policy(new_policy(config), tokenizer, folder / "policy", max_new_tokens=8)
    save_scalar_model(new_scalar_model(folder / "policy"), tokenizer, folder / "reward")
    return folder


def console() -> tuple[Console, StringIO]:
    text = StringIO()
    return Console(file=text, width=200, highlight=False), text


def test_chat_answers_once_and_the_same_for_the_same_seed(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for _ in range(2):
        talk(checkpoints / "policy", "the oven", 8, 1.0, 7, console()[0])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""
    assert "<|" not in answers[0]


def test_chat_keeps_the_conversation_until_an_empty_line(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["the oven", "is late", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    out, text = console()
    talk(checkpoints / "policy", None, 4, 0.0, 0, out)
    assert "an empty line ends" in text.getvalue()
    assert next(lines, "read all") == "read all"


@pytest.mark.parametrize(
    ("folder", "prompt", "message"),
    [
        ("nowhere", "a", "not a checkpoint folder"),
        ("reward", "a", "which writes nothing"),
        ("policy", "the oven is late " * 20, r"exceed the model's context of 64"),
    ],
)
def test_chat_names_the_mistake(checkpoints: Path, folder: str, prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        talk(checkpoints / folder, prompt, 8, 1.0, 0, console()[0])


# Comparison of runs


def run(name: str, lock: str, rates: dict[str, float], **params: str) -> Run:
    metrics = {f"policies.{policy}.win_rate_vs_sft": rate for policy, rate in rates.items()}
    return Run(
        name, "2026-01-01 12:00", lock, {key.replace("__", "."): value for key, value in params.items()}, metrics
    )


def test_runs_are_told_apart_by_result_and_parameters() -> None:
    runs = [
        run("again", "l1", {"dpo": 0.7, "ppo": 0.8}, policy__dpo__beta="0.1", run__parallel="3"),
        run("strong", "l2", {"dpo": 0.9, "ppo": 0.8}, policy__dpo__beta="0.2", run__parallel="2"),
        run("first", "l1", {"dpo": 0.7, "ppo": 0.8}, policy__dpo__beta="0.1", run__parallel="2"),
        run("sft only", "l3", {}),
    ]
    kept = distinct(runs)
    assert [item.name for item in kept] == ["strong", "again"]
    assert [item.best() for item in kept] == [("dpo", 0.9), ("ppo", 0.8)]
    assert differences(kept) == ["policy.dpo.beta"]


# Memory


def scratch_params(tmp_path: Path) -> Params:
    return load_params(make_scratch(tmp_path) / "params.yaml")


def test_weights_are_counted_without_allocating_them() -> None:
    llama = LlamaConfig(
        vocab_size=10, hidden_size=4, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    # embeddings 10*4, attention 4*4*4, feed-forward 3*4*6, norms 3*4; the head is the embeddings
    assert model_shape(llama) == ModelShape(weights=40 + 64 + 72 + 12, layers=1, width=4, heads=2, vocabulary=10)
    assert model_shape(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=10, n_positions=4)).layers == 2


def test_memory_of_each_stage_by_hand(tmp_path: Path) -> None:
    params = scratch_params(tmp_path)
    shape = ModelShape(weights=1_000_000, layers=2, width=10, heads=3, vocabulary=100)
    needs = {need.stage: need for need in estimate(shape, params, is_from_scratch=True)}
    assert list(needs) == ["base", "sft", "collect", "reward", "policy@ppo", "policy@grpo", "policy@dpo", "evaluate"]
    # bytes a weight: trained 20, frozen 4. PPO: policy and critic trained, reference and reward model frozen.
    models = {stage: need.models / shape.weights for stage, need in needs.items()}
    assert models == {
        "base": 20, "sft": 20, "collect": 4, "reward": 24,
        "policy@ppo": 48, "policy@grpo": 28, "policy@dpo": 24, "evaluate": 16,
    }  # fmt: skip
    # 128 tokens, 32 rows, 2 layers of 32*10 + 3*128 values; logits of 64 response tokens, 2 copies
    layers = 2 * 128 * 32 * (320 + 384) * 4
    assert needs["sft"].activations == layers + 2 * 32 * 64 * 100 * 4
    assert needs["sft"].total == PROCESS + 20e6 + needs["sft"].activations
    assert "base" not in [need.stage for need in estimate(shape, params, is_from_scratch=False)]


# Doctor


def test_doctor_finds_a_sound_checkout_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out, text = console()
    assert examine(make_scratch(tmp_path), "default", [], out)
    assert "rows.jsonl, 1 rows of kind preference" in text.getvalue()
    assert "✗" not in text.getvalue()
    assert "policy@ppo" in text.getvalue()


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["prepare.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["model.path=nowhere"], "model.path nowhere does not exist"),
        (["model.path=large.json"], "Lower run.parallel, a micro_batch_size"),
        (["policy.dpo.beta=-1"], "'policy.dpo.beta' is -1"),
    ],
)
def test_doctor_names_what_would_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assignments: list[str], expected: str
) -> None:
    root = make_scratch(tmp_path)
    monkeypatch.chdir(root)
    large = json.loads((root / "model.json").read_text()) | {"hidden_size": 16384, "num_hidden_layers": 120}
    (root / "large.json").write_text(json.dumps(large))
    out, text = console()
    assert not examine(root, "default", assignments, out)
    assert expected in text.getvalue().replace("\n", " ")


def test_model_of_the_default_has_0_3_million_weights() -> None:
    config = AutoConfig.from_pretrained(str(Path(__file__).parent.parent / "rlhf_core/helpdesk/model.json"))
    config.vocab_size = 512
    # embeddings 512*96; two layers of attention 4*96*96, feed-forward 3*96*256, norms 2*96; last norm 96
    assert model_shape(config).weights == 512 * 96 + 2 * (4 * 96 * 96 + 3 * 96 * 256 + 2 * 96) + 96
