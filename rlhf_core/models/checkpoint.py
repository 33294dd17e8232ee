"""Check a checkpoint folder without loading it: headers, shapes and sizes, in well under a second.

Only headers are read, so the check is as fast for large files as for small ones. Missing tensors and tensors with NaN
or infinite values are found when the model is loaded (`rlhf_core.models.store`).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_core.common.errors import UserError

# Bits per element of the safetensors types (https://github.com/huggingface/safetensors, "Format").
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "vocab.model")
WRITERS = ("CausalLM", "LMHead", "ConditionalGeneration")  # in class names of models that generate text
# Names of the input embedding in different model families. If none is found, its shape is checked when loading.
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings", "embedding")
WIDTHS = ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model")  # names of its width in config.json
AGAIN = "Copy or download it again."
ADAPTER_CONFIG = "adapter_config.json"  # of peft

Shapes = dict[str, list[int]]


def check_checkpoint(folder: Path, name: str) -> None:
    """Check config.json, the weight files and the tokenizer of a causal language model in `folder`.

    Raises:
        UserError: a file is missing or wrong. The message begins with `name`, the user's name for the folder.
    """
    _refuse_adapter(folder, name)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{name} has no config.json, so it is not a checkpoint folder. Name a Hugging Face model folder."
        )
    config = check_config(folder / "config.json", f"{name}: config.json")
    shapes = _weight_shapes(folder, name)
    rows = _embedding_rows(shapes, config, name)
    _check_tokenizer(folder, name, rows)


def weights_digest(folder: Path) -> str:
    """The sha256 of the names and contents of a checkpoint's weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def check_config(path: Path, name: str) -> dict[str, Any]:
    """Return the content of a config.json after checking that transformers' own code can load and train the model.

    Raises:
        UserError: the file is not JSON, has no model_type, needs custom code, has quantised weights, or is not the
            config of a language model.
    """
    config = read_json(path, name)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f'{name} has no model_type. Add it, for example "model_type": "llama".')
    _refuse_code(config, name)
    if "quantization_config" in config:
        raise UserError(f"{name} has quantization_config: quantised weights cannot be trained. Use the full model.")
    classes = [str(kind) for kind in config.get("architectures") or []]
    if classes and not any(word in kind for kind in classes for word in WRITERS):
        raise UserError(f"{name} names {', '.join(classes)}, which does not generate text. Use a language model.")
    return config


def read_json(path: Path, name: str) -> Any:
    """Return the content of a JSON file. Raises UserError, beginning with `name`, if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}. Correct its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON ({error}). {AGAIN}") from error


def _refuse_adapter(folder: Path, name: str) -> None:
    """Refuse an adapter: without peft, transformers loads only the base model (docs/pitfalls.md, 36)."""
    if (folder / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{name} has {ADAPTER_CONFIG}: adapters are not loaded. "
            "Merge it into its base model with PeftModel.merge_and_unload, and use the merged folder."
        )


def _refuse_code(config: Mapping[str, Any], name: str) -> None:
    if "auto_map" in config:
        raise UserError(
            f"{name} has auto_map: loading it would run code supplied with the model. "
            "Delete that key if transformers supports the architecture, or use another model."
        )


def _weight_shapes(folder: Path, name: str) -> Shapes:
    """Return the shape of every tensor by name, from the headers of all weight files."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = {"model.safetensors"}
    elif index.is_file():
        content = read_json(index, f"{name}: {index.name}")
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{name}: {index.name} has no weight_map. {AGAIN}")
        files = {str(file) for file in weight_map.values()}
    else:
        raise UserError(_no_weights(folder, name))
    missing = sorted(file for file in files if Path(file).name != file or not (folder / file).is_file())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{name} lacks {missing[0]}{more} of {len(files)} weight files. Copy or download them.")
    shapes: Shapes = {}
    for file in sorted(files):
        shapes |= _header(folder / file, f"{name}: {file}")
    return shapes


def _no_weights(folder: Path, name: str) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not pickles:
        return f"{name} has no model.safetensors. Copy or download the weights."
    model = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({str(folder)!r})"
    convert = f"{model}.save_pretrained({str(folder)!r})"
    return (
        f"{name} has its weights in {pickles[0]}, a pickle file, which can run code when it is loaded. "
        f'If you trust it, convert it:\npython -c "{convert}"'
    )


def _header(path: Path, name: str) -> Shapes:
    """Return the tensor shapes in one safetensors file, after checking its header against the file size."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start == b"version ":
                raise UserError(f"{name} is a Git LFS pointer, not the weights. Fetch them with: git lfs pull")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(LONGEST_HEADER, size - 8):
                raise UserError(f"{name} is truncated or not a safetensors file: its header exceeds the file. {AGAIN}")
            header = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}. Correct its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: the header is not JSON. {AGAIN}") from error
    if not isinstance(header, dict):
        raise UserError(f"{name}: the header lists no tensors. {AGAIN}")
    tensors = {tensor: entry for tensor, entry in header.items() if tensor != "__metadata__"}
    try:
        spans = sorted(_span(tensor, entry, name) for tensor, entry in tensors.items())
        shapes = {tensor: entry["shape"] for tensor, entry in tensors.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name}: the header lacks dtype, shape or data_offsets of a tensor. {AGAIN}") from error
    end = 0
    for begin, stop in spans:
        if begin != end:
            raise UserError(f"{name}: the header assigns bytes {end} to {begin} to no tensor or to two. {AGAIN}")
        end = stop
    if missing := end - (size - 8 - length):
        what = f"is truncated: {missing:,} bytes are missing" if missing > 0 else f"has {-missing:,} bytes too many"
        raise UserError(f"{name} {what}. {AGAIN}")
    return shapes


def _span(tensor: str, entry: Any, name: str) -> tuple[int, int]:
    """Return the byte range of a tensor, after checking that it matches shape and type."""
    begin, stop = entry["data_offsets"]
    if entry["dtype"] not in BITS:
        raise UserError(f"{name}: {tensor} has the unknown type {entry['dtype']}. Save the model in float32 or bf16.")
    if stop - begin != math.prod(entry["shape"]) * BITS[entry["dtype"]] // 8:
        raise UserError(f"{name}: {tensor} has {stop - begin} bytes, which does not match its shape. {AGAIN}")
    return begin, stop


def _embedding_rows(shapes: Shapes, config: Mapping[str, Any], name: str) -> int | None:
    """Return the number of rows of the input embedding, None if no tensor has a known name for it."""
    tensor = _embedding(shapes)
    if tensor is None:
        return None
    text = {**config, **config["text_config"]} if isinstance(config.get("text_config"), dict) else config
    width = next((text[key] for key in WIDTHS if key in text), None)
    rows, shape = text.get("vocab_size"), shapes[tensor]
    if len(shape) != 2 or rows not in (None, shape[0]) or width not in (None, shape[1]):
        raise UserError(
            f"{name}: {tensor} has shape {shape}, but config.json specifies {rows} tokens of width {width}. "
            "Use the config.json and the weights of the same model."
        )
    return shape[0]


def _embedding(shapes: Shapes) -> str | None:
    """Return the tensor name of the input embedding."""
    for owner in EMBEDDINGS:
        if found := [tensor for tensor in shapes if f".{tensor}".endswith(f".{owner}.weight")]:
            return min(found, key=len)
    return None


def _check_tokenizer(folder: Path, name: str, rows: int | None) -> None:
    """Check that the tokenizer exists, needs no custom code, and has no id beyond the embedding except an added pad."""
    path = folder / "tokenizer_config.json"
    if not path.is_file() or not any((folder / file).is_file() for file in VOCABULARIES):
        lacks = path.name if not path.is_file() else VOCABULARIES[0]
        raise UserError(f"{name} has no {lacks}. Copy the model's tokenizer files into it.")
    settings = read_json(path, f"{name}: {path.name}")
    if not isinstance(settings, dict):
        raise UserError(f"{name}: {path.name} contains no settings. {AGAIN}")
    _refuse_code(settings, f"{name}: {path.name}")
    if rows is None:
        return
    pad = settings.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    ids = _token_ids(folder, settings, name)
    beyond = {token: number for token, number in ids.items() if number >= rows}
    if beyond and beyond != {pad: rows}:
        token, number = max(beyond.items(), key=lambda item: item[1])
        raise UserError(
            f"{name}: the tokenizer has ids up to {number} ({token!r}), but the embedding has {rows} rows. "
            "Use the tokenizer and the weights of the same model."
        )


def _token_ids(folder: Path, settings: Mapping[str, Any], name: str) -> dict[str, int]:
    """Return the id of every token in JSON files. A sentencepiece file is checked when the model is loaded."""
    ids: dict[str, int] = {}
    file = next((file for file in ("tokenizer.json", "vocab.json") if (folder / file).is_file()), None)
    content = read_json(folder / file, f"{name}: {file}") if file else {}
    try:
        vocabulary = content["model"]["vocab"] if file == "tokenizer.json" else content
        if isinstance(vocabulary, list):  # Unigram: pieces with scores, in the order of their ids
            ids |= {str(piece): number for number, (piece, _) in enumerate(vocabulary)}
        else:
            ids |= {token: int(number) for token, number in vocabulary.items()}
        if file == "tokenizer.json":
            ids |= {added["content"]: int(added["id"]) for added in content.get("added_tokens") or []}
        decoder = settings.get("added_tokens_decoder") or {}
        ids |= {added["content"]: int(number) for number, added in decoder.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name}: {file or 'tokenizer_config.json'} is not a valid tokenizer file. {AGAIN}") from error
    return ids
