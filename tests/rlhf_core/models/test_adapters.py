"""LoRA on tiny models: shared bases, merging, peft's files, types of frozen weights, gradient checkpointing."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import tiny
from rlhf_core.algorithms.base.config import OptimizerConfig
from rlhf_core.common.batch import collate
from rlhf_core.common.device import require_hardware
from rlhf_core.common.errors import UserError
from rlhf_core.common.lora import Lora
from rlhf_core.loops.common.optimizer import make_optimizer
from rlhf_core.loops.common.resume import load_trained_state, trained_state
from rlhf_core.models import merging
from rlhf_core.models.adapters import (
    Base,
    adapter_parameters,
    add_adapter,
    belongs,
    has_adapter,
    load_adapter,
)
from rlhf_core.models.attention import use_layouts
from rlhf_core.models.checkpoint import weights_digest
from rlhf_core.models.checkpointing import checkpoint_layers
from rlhf_core.models.forward import policy_outputs, response_logprobs, scores
from rlhf_core.models.sharing import scalar_on, shared_copy
from rlhf_core.models.store import load_policy, load_scalar_model, save_policy, save_scalar_model

BASE = Base("models/sft", "0" * 64)
BATCH = collate(tiny.examples(), tiny.PAD)
IDS = torch.arange(6, 12)[None]


def adapted(model, seed=1, **lora):
    """A model with an adapter that changes its outputs, on the frozen weights of `model`."""
    tree = shared_copy(model.requires_grad_(False))
    torch.manual_seed(seed)
    add_adapter(tree, Lora(**{"r": 2} | lora), BASE)
    for _, weight in adapter_parameters(tree):
        torch.nn.init.normal_(weight, std=0.1)
    return tree.eval()


def logprobs(model):
    return response_logprobs(model.eval(), BATCH)


@torch.no_grad()
def logits(model):
    return model.eval()(IDS, attention_mask=torch.ones_like(IDS)).logits


@torch.no_grad()
def score(model):
    return scores(model.eval(), BATCH)


# Sharing


def test_a_new_adapter_changes_no_output_and_is_all_that_is_trained(family):
    base = family()
    tree = shared_copy(base.requires_grad_(False))
    add_adapter(tree, Lora(r=2), BASE)
    assert torch.equal(logprobs(tree), logprobs(base))
    trained = [name for name, weight in tree.named_parameters() if weight.requires_grad]
    assert trained and all("lora_" in name for name in trained)


def test_two_trees_share_every_frozen_weight_and_train_apart(family):
    base = family()
    first, second = adapted(base, 1), adapted(base, 2)
    before, other = logprobs(base), logprobs(second)
    kept = {weight.data_ptr() for weight in base.parameters()}
    for tree in (first, second):
        frozen = {weight.data_ptr() for weight in tree.parameters() if not weight.requires_grad}
        assert frozen == kept
    policy_outputs(first.train(), BATCH).logprobs.sum().backward()
    trained = [weight for _, weight in adapter_parameters(first)]
    make_optimizer(OptimizerConfig(), [{"params": trained, "lr": 0.1}]).step()
    assert not torch.allclose(logprobs(first), logprobs(adapted(base, 1)))
    assert torch.equal(logprobs(second), other) and torch.equal(logprobs(base), before)
    assert first.training is False and all(weight.grad is None for weight in second.parameters())


def test_trained_weights_are_not_shared():
    model = tiny.rotary()
    assert {id(p) for p in shared_copy(model).parameters()}.isdisjoint(id(p) for p in model.parameters())


def test_a_scalar_model_shares_the_transformer_of_a_policy(family):
    base = family().requires_grad_(False)
    scalar = scalar_on(base)
    heads = {id(scalar.model.score.weight)}
    own = {id(p) for p in base.base_model.parameters()}
    assert {id(p) for p in scalar.parameters()} == own | heads
    assert scalar.model.config.num_labels == 1 and base.config.architectures != ["x"]
    add_adapter(scalar.model, Lora(r=2), BASE)
    assert scalar.model.score.weight.requires_grad
    use_layouts(scalar.model)
    assert {module.config._attn_implementation for module in scalar.modules() if hasattr(module, "config")} == {"rlhf"}


# Files


def test_what_is_saved_loads_with_plain_transformers_and_peft(family, tmp_path, tokenizer):
    """The merged folder and the adapter on its base both have the logits of the policy; the base has others."""
    save_policy(family(), tokenizer, tmp_path / "sft", max_new_tokens=4)
    policy = adapted(load_policy(tmp_path / "sft"))
    save_policy(policy, tokenizer, tmp_path / "out", max_new_tokens=4)
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    before = logits(start)
    both = [
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        PeftModel.from_pretrained(start, tmp_path / "out/adapter"),
    ]
    for model in both:
        assert torch.allclose(logits(model), logits(policy), atol=1e-4)
    assert (logits(policy) - before).abs().max() > 0.1
    assert has_adapter(policy) and str(tmp_path) not in (tmp_path / "out/adapter/adapter_config.json").read_text()


def test_a_score_head_survives_saving(family, tmp_path, tokenizer):
    """The head is trained in full. Merged, as an adapter in plain peft, and as an adapter on our own shared base."""
    save_policy(family(), tokenizer, tmp_path / "sft", max_new_tokens=4)
    base = load_policy(tmp_path / "sft").requires_grad_(False)
    scalar = scalar_on(base)
    add_adapter(scalar.model, Lora(r=2), BASE)
    for _, weight in adapter_parameters(scalar.model):
        torch.nn.init.normal_(weight, std=0.3)
    scalar.set_normalisation(0.5, 2.0)
    save_scalar_model(scalar, tokenizer, tmp_path / "reward")
    raw = logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward"))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sft", num_labels=1, pad_token_id=tiny.PAD)
    assert torch.allclose(logits(PeftModel.from_pretrained(plain, tmp_path / "reward/adapter")), raw, atol=1e-5)
    assert torch.allclose(score(load_scalar_model(tmp_path / "reward")), score(scalar), atol=1e-5)
    again = scalar_on(base)
    load_adapter(again.model, tmp_path / "reward/adapter", BASE)
    again.set_normalisation(0.5, 2.0)
    assert torch.equal(score(again), score(scalar))


def test_the_files_of_an_adapter_are_the_same_each_time(tmp_path, tokenizer):
    """DVC compares digests; peft would write its set of layers in any order."""
    policy = adapted(tiny.rotary())
    texts = []
    for name in ("a", "b"):
        save_policy(policy, tokenizer, tmp_path / name, max_new_tokens=4)
        texts.append([path.read_bytes() for path in sorted((tmp_path / name / "adapter").iterdir())])
    assert texts[0] == texts[1]
    listed = json.loads((tmp_path / "a/adapter/adapter_config.json").read_text())["target_modules"]
    assert listed == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture
def saved(tmp_path, tokenizer):
    save_policy(tiny.rotary(), tokenizer, tmp_path / "sft", max_new_tokens=4)
    policy = shared_copy(load_policy(tmp_path / "sft").requires_grad_(False))
    add_adapter(policy, Lora(r=2), Base("models/sft", weights_digest(tmp_path / "sft")))
    save_policy(policy, tokenizer, tmp_path / "out", max_new_tokens=4)
    return tmp_path


def test_an_adapter_of_another_base_is_refused(saved, tokenizer):
    save_policy(tiny.rotary(seed=5), tokenizer, saved / "other", max_new_tokens=4)
    own, other = (Base("models/sft", weights_digest(saved / name)) for name in ("sft", "other"))
    assert belongs(saved / "out/adapter", own) and not belongs(saved / "out/adapter", other)
    with pytest.raises(UserError, match=r"is an adapter of models/sft with the weights \w{12}, but models/sft has"):
        load_adapter(load_policy(saved / "other"), saved / "out/adapter", other)


@pytest.mark.parametrize("broken", ["adapter_model.safetensors", "adapter_config.json", "base.json"])
def test_a_broken_adapter_is_named(saved, broken):
    base = Base("models/sft", weights_digest(saved / "sft"))
    (saved / "out/adapter" / broken).write_text("{")
    with pytest.raises(UserError, match=r"out/adapter (could not be loaded|has no valid base\.json)"):
        load_adapter(load_policy(saved / "sft"), saved / "out/adapter", base)


def test_an_adapter_without_one_of_its_layers_is_refused(saved):
    from safetensors.torch import load_file, save_file

    path = saved / "out/adapter/adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[min(tensors)]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.0.*lora_A\.weight is missing"):
        load_adapter(load_policy(saved / "sft"), path.parent, Base("models/sft", weights_digest(saved / "sft")))


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (
            ["q_proj", "c_attn"],
            r"has 'c_attn', but the model has no such layer\. Choose from: down_proj, ",
        ),
        (["lm_head"], "has 'lm_head'"),
        (r".*\.wq", r"has '\.\*\\\\\.wq'"),
    ],
)
def test_layers_that_the_model_lacks(chosen, said):
    with pytest.raises(UserError, match=said):
        add_adapter(tiny.rotary(), Lora(target_modules=chosen), BASE)


def test_layers_can_be_chosen_by_name_or_by_pattern():
    for chosen in (["q_proj"], r"model\.layers\.\d+\.self_attn\.q_proj"):
        model = tiny.rotary()
        add_adapter(model, Lora(target_modules=chosen), BASE)
        assert {name.split(".lora_")[0].split(".")[-1] for name, _ in adapter_parameters(model)} == {"q_proj"}


# Merging


@pytest.mark.parametrize("forgotten", ["model.layers.1.mlp.down_proj", ""])
def test_a_merge_that_forgets_a_layer_is_refused(forgotten, monkeypatch, tmp_path, tokenizer):
    """The merged model would lack the change of one layer, or of all, as models that peers have published."""
    policy = adapted(tiny.rotary())
    right = merging.merge_layers

    def wrong(model):
        for name, module in model.named_modules():
            if name.startswith(forgotten) and hasattr(module, "lora_B"):
                module.lora_B["default"].weight.data.zero_()
        right(model)

    monkeypatch.setattr(merging, "merge_layers", wrong)
    with pytest.raises(UserError, match="the merged model differs from base plus adapter"):
        save_policy(policy, tokenizer, tmp_path / "out", max_new_tokens=4)
    assert not (tmp_path / "out/model.safetensors").exists()


def test_an_adapter_that_did_not_change_is_refused():
    model = tiny.rotary()
    add_adapter(model, Lora(r=2), BASE)
    with pytest.raises(UserError, match="training did not change the adapter"):
        merging.require_trained(model)
    merging.require_trained(adapted(tiny.rotary()))
    merging.require_trained(tiny.rotary())


def test_merging_changes_neither_the_model_nor_its_base():
    base = tiny.rotary()
    policy = adapted(base)
    before = [tensor.clone() for tensor in policy.state_dict().values()]
    plain = merging.merged(policy)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.state_dict().values(), strict=True))
    assert not has_adapter(plain) and plain.state_dict().keys() == base.state_dict().keys()


# Types


def test_a_bf16_model_computes_as_its_float32_copy_under_autocast(family, tmp_path, tokenizer):
    """Hidden states between layers are float32, so a frozen bf16 reference equals the policy that starts from it."""
    save_policy(family(), tokenizer, tmp_path / "sft", max_new_tokens=4)
    frozen, trained = load_policy(tmp_path / "sft", "bf16"), load_policy(tmp_path / "sft", "bf16").float()
    assert next(frozen.parameters()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logprobs(frozen.eval()), logprobs(trained.eval()))


def test_an_adapter_on_bf16_weights_is_float32_and_its_merge_keeps_small_changes(tmp_path, tokenizer):
    """A change of 1e-6 of the weights is lost in bf16; the merged folder is float32."""
    save_policy(tiny.rotary(), tokenizer, tmp_path / "sft", max_new_tokens=4)
    base = load_policy(tmp_path / "sft", "bf16").requires_grad_(False)
    policy = shared_copy(base)
    add_adapter(policy, Lora(r=2, lora_alpha=2), BASE)
    weights = dict(adapter_parameters(policy))
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    with torch.no_grad():
        for weight in weights.values():
            weight.fill_(1e-3)
    save_policy(policy, tokenizer, tmp_path / "out", max_new_tokens=4)
    name = "model.layers.0.self_attn.q_proj.weight"
    change = load_policy(tmp_path / "out").get_parameter(name) - base.get_parameter(name).float()
    assert change.dtype == torch.float32 and torch.allclose(change, torch.full_like(change, 2e-6), atol=3e-7)


def test_the_head_of_a_bf16_reward_model_is_float32(tmp_path, tokenizer):
    save_policy(tiny.rotary(), tokenizer, tmp_path / "sft", max_new_tokens=4)
    scalar = scalar_on(load_policy(tmp_path / "sft").requires_grad_(False))
    save_scalar_model(scalar, tokenizer, tmp_path / "reward")
    loaded = load_scalar_model(tmp_path / "reward", "bf16").model
    assert torch.equal(loaded.score.weight, scalar.model.score.weight)
    assert loaded.model.embed_tokens.weight.dtype == torch.bfloat16


def test_4bit_weights_train_an_adapter_and_merge(tmp_path, tokenizer):
    pytest.importorskip("bitsandbytes")
    shape = {"hidden_size": 64, "intermediate_size": 128}
    save_policy(tiny.rotary(**shape), tokenizer, tmp_path / "sft", max_new_tokens=4)
    policy = adapted(load_policy(tmp_path / "sft", "4bit"))
    with torch.autocast("cpu", torch.bfloat16):
        ours = logits(policy)
    save_policy(policy, tokenizer, tmp_path / "out", max_new_tokens=4)
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert (merged - ours).abs().max() < 0.1 * merged.abs().max()
    assert "quantization" not in (tmp_path / "out/config.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("cpu", "bf16", "4bit", "sdpa"), r"model\.dtype is 4bit, but bitsandbytes is not installed"),
        (("cpu", "bf16", "fp32", "flash_attention_2"), "flash_attention_2, but flash-attn is not installed"),
    ],
)
def test_packages_that_are_missing(arguments, said, monkeypatch):
    monkeypatch.setattr("rlhf_core.common.device.find_spec", lambda name: None)
    with pytest.raises(UserError, match=said):
        require_hardware(*arguments)
    with pytest.raises(UserError, match="optimizer is adamw_8bit, but bitsandbytes is not installed"):
        make_optimizer(OptimizerConfig(optimizer="adamw_8bit"), [])


def test_hardware_that_lacks_a_type_or_an_attention(monkeypatch):
    monkeypatch.setattr("rlhf_core.common.device.find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"needs a CUDA device and run\.precision bf16"):
        require_hardware("cpu", "bf16", "bf16", "flash_attention_2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Old GPU")
    with pytest.raises(UserError, match=r"run\.precision is bf16, but Old GPU has no bf16 arithmetic\. Set it to fp32"):
        require_hardware("auto", "bf16", "fp32", "sdpa")
    require_hardware("cpu", "bf16", "bf16", "sdpa")


def test_another_attention_implementation(tmp_path, tokenizer):
    save_policy(tiny.rotary(), tokenizer, tmp_path / "sft", max_new_tokens=4)
    eager = load_policy(tmp_path / "sft", attention="eager")
    assert eager.config._attn_implementation == "eager"
    assert torch.allclose(logprobs(eager), logprobs(load_policy(tmp_path / "sft")), atol=1e-5)


# Gradients and resuming


@pytest.mark.parametrize("layouts", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_does_not_change_gradients(family, lora, layouts):
    gradients = []
    for checkpointing in (False, True):
        model = adapted(family()) if lora else family()
        if layouts:
            assert use_layouts(model) is None
        calls = []
        layer = next(module for name, module in model.named_modules() if name.endswith(("layers.0.mlp", "h.0.mlp")))
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointing:
            checkpoint_layers(model)
        policy_outputs(model.train(), BATCH).logprobs.sum().backward()
        assert len(calls) == 1 + checkpointing  # the layer runs again in the backward pass
        gradients.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_resume_state_holds_the_adapter_alone():
    policy, other = adapted(tiny.rotary(), 1), adapted(tiny.rotary(), 2)
    state = trained_state(policy)
    assert set(state) == {name for name, _ in adapter_parameters(policy)}
    load_trained_state(other, state)
    assert torch.equal(logprobs(other), logprobs(policy))
    with pytest.raises(RuntimeError, match="belongs to another model"):
        load_trained_state(other, dict(list(state.items())[1:]))


def test_adamw_by_hand():
    """Step 1: m/(√v + ε) = 1/(1 + 1) for a gradient of 1, plus weight decay: 2 - 0.1 (0.5 + 0.5 · 2)."""
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    weight.grad = torch.tensor([1.0])
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.5, adam_eps=1.0), [{"params": [weight], "lr": 0.1}])
    optimizer.step()
    assert weight.item() == pytest.approx(1.85)
    assert optimizer.defaults["fused"]
