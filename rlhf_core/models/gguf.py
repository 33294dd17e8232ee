"""Convert a GGUF file, the format of llama.cpp, to a plain Hugging Face folder with float32 weights.

The weights of a GGUF file are usually quantised. The folder contains what the quantised weights stand for, so it is a
dequantised copy: training can start from it, but it differs from the model that was quantised. transformers reads the
file with the package gguf, but refuses to save what it has read; the weights are therefore copied into a new model.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlhf_core.common.errors import UserError
from rlhf_core.models.store import save_tokenizer

ARCHITECTURE, LICENSE, NAME = "general.architecture", "general.license", "general.name"
README = """\
# {name}

A dequantised copy of `{file}` (GGUF, architecture {architecture}), saved in float32 by `rlhf convert`.
Its weights are those of the quantised model, not of the model before quantisation.

License of the model: {license}.
"""
DIGEST = "SHA-256 of the GGUF file: {digest}."  # the last line of the README, by which a conversion is recognised


def convert_gguf(file: Path, folder: Path) -> bool:
    """Write the model in a GGUF file to `folder`; return False if `folder` already holds this conversion.

    The folder has config.json, model.safetensors (float32), the tokenizer with its chat template, a generation config
    and a README.md that names the source and the license. It appears as a whole: an interrupted conversion leaves
    nothing at `folder`.

    Raises:
        UserError: the package gguf is missing; the file is not GGUF, or its architecture is not supported; or `folder`
            holds something else.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist. Name a GGUF file.")
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if folder.exists():
        readme = folder / "README.md"
        if readme.is_file() and DIGEST.format(digest=digest) in readme.read_text(encoding="utf-8"):
            return False
        raise UserError(f"{folder} exists, but is not a conversion of {file}. Delete it, or name another folder.")
    facts = _facts(file)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(file, facts["architecture"], partial)
    about = README.format(file=file.name, **facts) + DIGEST.format(digest=digest) + "\n"
    (partial / "README.md").write_text(about, encoding="utf-8")
    partial.rename(folder)
    return True


def _facts(file: Path) -> dict[str, str]:
    """Return name, license and architecture that a GGUF file states."""
    try:
        from gguf import GGUFReader  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise UserError(
            "GGUF files are read by the package gguf, which is missing. Run: pip install --no-deps gguf"
        ) from error
    try:
        fields: Any = GGUFReader(str(file)).fields
        said = {key: str(fields[key].contents()) for key in (ARCHITECTURE, LICENSE, NAME) if key in fields}
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a complete GGUF file ({error}). Copy or download it again.") from error
    if ARCHITECTURE not in said:
        raise UserError(f"{file} does not name its architecture ({ARCHITECTURE}). Use another GGUF file.")
    return {
        "name": said.get(NAME, file.stem),
        "license": said.get(LICENSE, "not stated in the file; ask those who published it"),
        "architecture": said[ARCHITECTURE],
    }


def _write(file: Path, architecture: str, folder: Path) -> None:
    """Load the file with transformers, copy the weights into a new model, and save it with its tokenizer."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    if architecture not in GGUF_CONFIG_MAPPING:
        known = ", ".join(sorted(name for name in GGUF_CONFIG_MAPPING if name != "general"))
        raise UserError(
            f"{file} has the architecture {architecture}, which transformers cannot read from GGUF. "
            f"Use a model with one of: {known}."
        )
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{file} could not be converted: {first} Use another GGUF file.") from error
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # it would mark the saved weights as quantised
    config._name_or_path = ""
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(str(folder))
    save_tokenizer(tokenizer, folder)
