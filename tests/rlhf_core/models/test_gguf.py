"""Conversion of a GGUF file: the same logits, a plain folder, and nothing half-written. Needs the package gguf."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_core.common.errors import UserError
from rlhf_core.models import gguf as conversion
from rlhf_core.models.checkpoint import check_checkpoint
from rlhf_core.models.gguf import convert_gguf
from rlhf_core.models.store import load_policy, load_tokenizer

gguf = pytest.importorskip("gguf")

WIDTH, LAYERS, HEADS = 32, 1, 2
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def write(path, architecture="llama", license="apache-2.0"):
    """A Llama with random weights and 260 byte tokens, its head tied to its embedding."""
    generator = torch.Generator().manual_seed(0)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("Tiny")
    if license:
        writer.add_license(license)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    tokens = ["<|endoftext|>", "<s>", "</s>", *map(chr, range(33, 127)), "Ġ", "ab"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)

    def tensor(name, *shape):
        writer.add_tensor(name, torch.randn(*shape, generator=generator).numpy())

    tensor("token_embd.weight", len(tokens), WIDTH)
    tensor("output_norm.weight", WIDTH)
    for part, shape in {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH),
                        "attn_v": (WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_gate": (64, WIDTH),
                        "ffn_up": (64, WIDTH), "ffn_down": (WIDTH, 64)}.items():  # fmt: skip
        tensor(f"blk.0.{part}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_folder_gives_the_logits_of_the_file(tmp_path):
    """Equal to what transformers reads from the file, with tied embeddings, in float32 and without quantisation."""
    file, folder = write(tmp_path / "tiny.gguf"), tmp_path / "models" / "tiny"
    assert convert_gguf(file, folder) is True
    check_checkpoint(folder, "it")
    own = load_policy(folder)
    direct = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file=file.name, dtype=torch.float32)
    ids = torch.tensor([[1, 40, 41, 98, 60]])
    with torch.no_grad():
        assert torch.equal(own(ids).logits, direct(ids).logits)
    assert own.dtype == torch.float32
    assert own.lm_head.weight.data_ptr() == own.model.embed_tokens.weight.data_ptr()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template == TEMPLATE and tokenizer.eos_token_id == 2
    source = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=file.name)
    assert tokenizer.encode("abc ab!") == source.encode("abc ab!")
    assert own.generation_config.eos_token_id == 2
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_the_readme_names_source_and_license(tmp_path):
    convert_gguf(write(tmp_path / "tiny.gguf"), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "A dequantised copy of `tiny.gguf`" in text and "License of the model: apache-2.0." in text
    convert_gguf(write(tmp_path / "free.gguf", license=""), tmp_path / "free")
    assert "License of the model: not stated in the file" in (tmp_path / "free" / "README.md").read_text()


def test_a_second_conversion_does_nothing_and_another_model_is_not_overwritten(tmp_path):
    file, folder = write(tmp_path / "tiny.gguf"), tmp_path / "out"
    convert_gguf(file, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert convert_gguf(file, folder) is False
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(UserError, match=r"out exists, but is not a conversion of .*free\.gguf\. Delete it"):
        convert_gguf(write(tmp_path / "free.gguf", license=""), folder)


def test_an_interrupted_conversion_leaves_no_folder_and_is_repeated(tmp_path, monkeypatch):
    file, folder = write(tmp_path / "tiny.gguf"), tmp_path / "out"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "save_tokenizer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert_gguf(file, folder)
    assert not folder.exists()
    assert convert_gguf(file, folder) is True


def test_files_that_cannot_be_converted_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.gguf does not exist"):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "out")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no GGUF at all, but long enough to read")
    with pytest.raises(UserError, match=r"broken\.gguf is not a complete GGUF file"):
        convert_gguf(broken, tmp_path / "out")
    odd = write(tmp_path / "odd.gguf", architecture="oddnet")
    with pytest.raises(UserError, match=r"odd\.gguf has the architecture oddnet, .* Use a model with one of: .*llama"):
        convert_gguf(odd, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(UserError, match=re.escape("pip install --no-deps gguf")):
        convert_gguf(file, tmp_path / "out")
