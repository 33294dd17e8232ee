"""Broken checkpoints: the fault is found from headers alone, or when the model is loaded."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GraniteConfig

import tiny
from rlhf_core.common.errors import UserError
from rlhf_core.models.checkpoint import check_checkpoint
from rlhf_core.models.store import (
    fit_vocabulary,
    load_config,
    load_policy,
    load_scalar_model,
    load_tokenizer,
    new_policy,
    new_scalar_model,
    save_policy,
    save_scalar_model,
)
from tasks.common.source import model_source
from tasks.params.sections import ModelParams

WEIGHTS = "model.safetensors"
TENSOR = "model.layers.1.self_attn.q_proj.weight"
AGAIN = "Copy or download it again."


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Two valid checkpoints: one with a single weight file, one with shards."""
    folder = tmp_path_factory.mktemp("sound")
    for name in ("whole", "sharded"):
        save_policy(tiny.rotary(), tiny.tiny_tokenizer(), folder / name, max_new_tokens=4)
    tiny.rotary().save_pretrained(folder / "sharded", max_shard_size="5KB")
    (folder / "sharded" / WEIGHTS).unlink()
    return folder


@pytest.fixture
def model(sound, tmp_path):
    return shutil.copytree(sound / "whole", tmp_path / "model")


@pytest.fixture
def shards(sound, tmp_path):
    return shutil.copytree(sound / "sharded", tmp_path / "shards")


def edit_json(path, **changes):
    """Change keys of a JSON file; None deletes a key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_tensors(folder, edit):
    """Save the tensors after `edit`."""
    save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def edit_header(folder, edit):
    """Change the header of the weight file but not the bytes of the tensors."""
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def fault(folder):
    """The error message for a folder before anything is loaded."""
    with pytest.raises(UserError) as error:
        model_source(ModelParams(path=str(folder)))
    message = str(error.value)
    assert len(message.splitlines()) <= 2
    assert message.startswith(f"model.path {folder}")
    return message.removeprefix(f"model.path {folder}")


def refused(load, folder):
    """The error message for a folder when it is loaded."""
    with pytest.raises(UserError) as error:
        load(folder)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(folder))
    return message.removeprefix(str(folder))


# Before anything is loaded


def test_sound_checkpoints_pass(model, shards):
    check_checkpoint(model, "m")
    check_checkpoint(shards, "m")
    save_policy(tiny.learned(), tiny.tiny_tokenizer(), model.parent / "learned", max_new_tokens=4)
    check_checkpoint(model.parent / "learned", "m")


def test_a_truncated_file_names_the_number_of_missing_bytes(model):
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[:-1234])
    assert fault(model) == f": {WEIGHTS} is truncated: 1,234 bytes are missing. {AGAIN}"
    (model / WEIGHTS).write_bytes(data + b"xy")
    assert fault(model) == f": {WEIGHTS} has 2 bytes too many. {AGAIN}"


@pytest.mark.parametrize("kept", [0, 5, 8, 200])
def test_a_file_that_is_truncated_within_its_header(model, kept):
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:kept])
    assert fault(model) == f": {WEIGHTS} is truncated or not a safetensors file: its header exceeds the file. {AGAIN}"


def test_a_large_file_is_not_read(model):
    """A sparse file of 256 GiB with one tensor: only the header is read."""
    rows, width = 1 << 20, 1 << 16
    entry = {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, rows * width * 4]}
    text = json.dumps({"model.embed_tokens.weight": entry}).encode()
    with (model / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + rows * width * 4)
    edit_json(model / "config.json", vocab_size=rows, hidden_size=width)
    check_checkpoint(model, "m")
    os.truncate(model / WEIGHTS, 8 + len(text) + rows * width * 4 - 7)
    assert fault(model) == f": {WEIGHTS} is truncated: 7 bytes are missing. {AGAIN}"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", " is a Git LFS pointer, not the weights. Fetch them with"),
        (b"\x04\0\0\0\0\0\0\0nope", ": the header is not JSON."),
        (b"\x02\0\0\0\0\0\0\0[]", ": the header lists no tensors."),
        (b'\x08\0\0\0\0\0\0\0{"a": 1}', ": the header lacks dtype, shape or data_offsets of a tensor."),
    ],
)
def test_a_file_that_is_not_a_safetensors_file(model, content, found):
    (model / WEIGHTS).write_bytes(content)
    assert fault(model).startswith(f": {WEIGHTS}{found}")


def test_a_header_that_does_not_fit_its_tensors(model):
    edit_header(model, lambda header: header[TENSOR].update(dtype="Q4"))
    assert fault(model) == f": {WEIGHTS}: {TENSOR} has the unknown type Q4. Save the model in float32 or bf16."
    edit_header(model, lambda header: header[TENSOR].update(dtype="F32", shape=[16, 17]))
    assert fault(model) == f": {WEIGHTS}: {TENSOR} has 1024 bytes, which does not match its shape. {AGAIN}"
    edit_header(model, lambda header: header.pop(TENSOR))
    assert "the header assigns bytes" in fault(model)


def test_missing_weights_are_named(model, shards):
    (model / WEIGHTS).unlink()
    assert fault(model) == f" has no {WEIGHTS}. Copy or download the weights."
    count = len(list(shards.glob("*.safetensors")))
    (shards / f"model-00002-of-{count:05}.safetensors").unlink()
    expected = f" lacks model-00002-of-{count:05}.safetensors of {count} weight files. Copy or download them."
    assert fault(shards) == expected
    (shards / f"model-00003-of-{count:05}.safetensors").unlink()
    assert f"lacks model-00002-of-{count:05}.safetensors and 1 more of {count}" in fault(shards)


def test_an_index_that_is_broken(shards):
    index = shards / f"{WEIGHTS}.index.json"
    index.write_text("{}")
    assert fault(shards) == f": {index.name} has no weight_map. {AGAIN}"
    index.write_text('{"weight_map": {"a": "../other/model.safetensors"}}')
    assert fault(shards).startswith(" lacks ../other/model.safetensors of 1 weight files.")


def test_a_broken_shard_is_named(shards):
    last = sorted(shards.glob("*.safetensors"))[-1]
    os.truncate(last, last.stat().st_size - 3)
    assert fault(shards) == f": {last.name} is truncated: 3 bytes are missing. {AGAIN}"


def test_pickled_weights_come_with_the_command_that_converts_them(model):
    torch.save(load_file(model / WEIGHTS), model / "pytorch_model.bin")
    (model / WEIGHTS).unlink()
    first, second = fault(model).splitlines()
    assert first == (
        " has its weights in pytorch_model.bin, a pickle file, which can run code when it is loaded. "
        "If you trust it, convert it:"
    )
    code = second.removeprefix('python -c "').removesuffix('"')
    exec(code, {})
    model_source(ModelParams(path=str(model)))
    assert load_policy(model)


@pytest.mark.pitfall(36)
@pytest.mark.parametrize("kept", [True, False])
def test_an_adapter_is_refused_beside_its_base_and_alone(model, kept):
    """Otherwise the base model would silently be trained without its adapter."""
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if not kept:
        (model / "config.json").unlink()
    assert fault(model) == (
        " has adapter_config.json: adapters are not loaded. "
        "Merge it into its base model with PeftModel.merge_and_unload, and use the merged folder."
    )


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_checkpoint_with_custom_code_is_rejected(model, file):
    edit_json(model / file, auto_map={"AutoConfig": "configuration_x.X"})
    assert fault(model) == (
        f": {file} has auto_map: loading it would run code supplied with the model. "
        "Delete that key if transformers supports the architecture, or use another model."
    )


def test_a_config_for_training_from_scratch_with_custom_code_is_rejected(tmp_path):
    (tmp_path / "model.json").write_text('{"model_type": "llama", "auto_map": {}}')
    assert fault(tmp_path / "model.json").startswith(" has auto_map")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"model_type": None}, 'has no model_type. Add it, for example "model_type": "llama".'),
        ({"quantization_config": {"bits": 4}}, "has quantization_config: quantised weights cannot be trained."),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "names LlamaForSequenceClassification, which does not generate text. Use a language model.",
        ),
    ],
)
def test_a_config_that_is_unusable_for_a_policy(model, changes, found):
    edit_json(model / "config.json", **changes)
    assert fault(model).startswith(f": config.json {found}")


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\ud800"], ids=["cut", "deep", "no text"])
def test_a_config_that_is_not_json(model, content):
    (model / "config.json").write_text(content, errors="surrogatepass")
    assert fault(model).startswith(": config.json is not JSON (")


@pytest.mark.parametrize(
    ("changes", "asked"),
    [({"vocab_size": 13}, "13 tokens of width 16"), ({"hidden_size": 32}, "12 tokens of width 32")],
)
def test_config_and_weights_of_two_models(model, changes, asked):
    edit_json(model / "config.json", **changes)
    assert fault(model) == (
        f": model.embed_tokens.weight has shape [12, 16], but config.json specifies {asked}. "
        "Use the config.json and the weights of the same model."
    )


def longer_tokenizer(*more, **settings):
    """The tiny tokenizer with more tokens, from id 12 on; the embedding has 12 rows."""
    tokenizer = tiny.tiny_tokenizer(**settings)
    tokenizer.add_tokens(list(more))
    return tokenizer


def test_a_tokenizer_of_another_model(model):
    longer_tokenizer("g", "h").save_pretrained(model)
    assert fault(model) == (
        ": the tokenizer has ids up to 13 ('h'), but the embedding has 12 rows. "
        "Use the tokenizer and the weights of the same model."
    )
    longer_tokenizer("g").save_pretrained(model)  # one id beyond, and not the pad token
    assert "ids up to 12 ('g')" in fault(model)


def test_one_pad_token_beyond_the_embedding_is_given_a_row(model):
    longer_tokenizer("<pad+>", pad_token="<pad+>").save_pretrained(model)
    model_source(ModelParams(path=str(model)))
    policy = load_policy(model)
    fit_vocabulary(policy, load_tokenizer(model))
    assert policy.get_input_embeddings().weight.shape[0] == 13


def test_ids_beyond_the_embedding_are_rejected_by_the_stage_too():
    """Needed if the files do not show it, as with a sentencepiece model."""
    with pytest.raises(UserError, match=r"ids up to 13 \('h'\), but the model's embedding has 12 rows"):
        fit_vocabulary(tiny.rotary(), longer_tokenizer("g", "h"))
    with pytest.raises(UserError, match=r"ids up to 12 \('g'\)"):
        fit_vocabulary(tiny.rotary(), longer_tokenizer("g"))


@pytest.mark.parametrize("pieces", [12, 13])
def test_a_unigram_tokenizers_size_is_the_number_of_its_pieces(model, pieces):
    vocabulary = [[f"p{number}", -1.0] for number in range(pieces)]
    edit_json(model / "tokenizer.json", model={"type": "Unigram", "vocab": vocabulary}, added_tokens=[])
    if pieces == 12:
        check_checkpoint(model, "m")
    else:
        assert "ids up to 12 ('p12')" in fault(model)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_missing_or_broken(model, file):
    (model / file).write_text("[1]")
    assert fault(model).startswith(f": {file} ")
    (model / file).unlink()
    assert fault(model) == f" has no {file}. Copy the model's tokenizer files into it."


# When it is loaded


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(model, value, dtype):
    def spoil(tensors):
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        tensors[TENSOR][3, 5] = value
        return tensors

    edit_tensors(model, spoil)
    expected = f": {TENSOR} has NaN or infinite weights. "
    assert refused(load_policy, model).startswith(expected)
    assert refused(new_scalar_model, model).startswith(expected)


@pytest.mark.pitfall(26)
def test_a_tensor_that_would_be_filled_with_random_numbers_is_named(model):
    edit_tensors(model, lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"})
    assert refused(load_policy, model) == (
        ": lm_head.weight is missing. Use a checkpoint with matching weights and config.json."
    )
    assert new_scalar_model(model)  # it needs no vocabulary head


def test_a_tied_head_may_be_missing(model):
    edit_json(model / "config.json", tie_word_embeddings=True)
    edit_tensors(model, lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"})
    assert load_policy(model)


def test_tensors_with_other_names_are_named(model):
    edit_tensors(model, lambda tensors: {k.replace("q_proj", "query"): v for k, v in tensors.items()})
    found = refused(load_policy, model)
    assert found.startswith(": model.layers.0.self_attn.q_proj.weight is missing (3 more tensors are wrong).")
    assert refused(new_scalar_model, model).startswith(": model.layers.0.self_attn.q_proj.weight is missing (1 more")


def test_layers_that_would_be_dropped_are_named(model):
    edit_json(model / "config.json", num_hidden_layers=1)
    assert ": model.layers.1.input_layernorm.weight is not part of the model" in refused(load_policy, model)


def test_constants_of_older_checkpoints_are_ignored(tmp_path):
    """GPT-2 as published: no prefix, no head (it is tied), and causal masks with the weights."""
    policy = tiny.learned()
    save_policy(policy, tiny.tiny_tokenizer(), tmp_path, max_new_tokens=4)

    def published(tensors):
        masks = {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.1.attn.masked_bias": torch.tensor(-1e4)}
        return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()} | masks

    edit_tensors(tmp_path, published)
    check_checkpoint(tmp_path, "m")
    loaded = load_policy(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in policy.state_dict().items())


def test_an_architecture_without_a_score_is_named(tmp_path):
    config = GraniteConfig(**tiny.rotary().config.to_dict() | {"model_type": "granite"})
    save_policy(new_policy(config), tiny.tiny_tokenizer(), tmp_path, max_new_tokens=4)
    assert load_policy(tmp_path)
    assert refused(new_scalar_model, tmp_path) == (
        " has model_type granite, which transformers cannot use as a reward model. Use another model."
    )


def test_a_tensor_of_another_shape_is_named(model):
    edit_json(model / "config.json", intermediate_size=40)
    assert ": model.layers.0.mlp.down_proj.weight is [16, 32], not [16, 40] (5 more" in refused(load_policy, model)


def test_a_reward_model_needs_all_its_tensors(model):
    save_scalar_model(new_scalar_model(model), tiny.tiny_tokenizer(), model.parent / "reward")
    reward = model.parent / "reward"
    assert load_scalar_model(reward)
    edit_tensors(reward, lambda tensors: {k: v for k, v in tensors.items() if k != "score.weight"})
    assert refused(load_scalar_model, reward).startswith(": score.weight is missing. ")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"model_type": "unheard_of"}, ": transformers cannot read the configuration: The checkpoint you are"),
        ({"hidden_size": "wide"}, "Field 'hidden_size' expected int, got str"),
        ({"num_attention_heads": 3}, "The hidden size (16) is not a multiple of the number of attention heads (3)"),
        ({"model_type": "t5"}, "has model_type t5, which is not a causal language model. Use another model."),
    ],
)
def test_a_config_that_transformers_rejects(model, changes, found):
    edit_json(model / "config.json", **changes)
    for load in (load_config, load_policy):
        assert found in refused(load, model)


def test_a_tokenizer_that_transformers_cannot_read(model):
    (model / "tokenizer.json").write_text("{}")
    assert refused(load_tokenizer, model).startswith(": transformers cannot read the tokenizer: ")


def test_weights_that_cannot_be_read(model):
    os.truncate(model / WEIGHTS, 100)
    assert refused(load_policy, model).startswith(" could not be loaded: ")
