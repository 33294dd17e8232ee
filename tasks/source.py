"""The model that everything starts from: trained from scratch, a local folder, or a pinned id on the hub."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError
from tasks.params import ModelParams


@dataclass(frozen=True)
class ModelSource:
    """Either `config`, a file to train from scratch by, or `folder`, a checkpoint to start from."""

    config: Path | None = None
    folder: Path | None = None
    name: str = ""
    revision: str | None = None

    def manifest(self) -> dict[str, Any]:
        """What identifies a checkpoint: its name, revision and a hash of its weights."""
        assert self.folder is not None
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("*.safetensors")) or sorted(self.folder.glob("*.bin")):
            digest.update(path.name.encode())
            with path.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        return {"name": self.name, "revision": self.revision, "weights_sha256": digest.hexdigest()}


def model_source(params: ModelParams, root: Path = Path()) -> ModelSource:
    """Resolve `model.path`, which starts at `root`, or `model.hub`; a hub id is downloaded at its pinned revision.

    Raises:
        UserError: if the path is neither a checkpoint folder nor a config, or the hub id is not pinned or not found.
    """
    if params.hub:
        return _from_hub(params.hub)
    path = root / params.path
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"model.path {params.path} holds no config.json, so it is not a checkpoint folder. Name one."
            )
        return ModelSource(folder=path, name=path.name)
    if not path.is_file():
        raise UserError(
            f"model.path {params.path} does not exist. Name a Hugging Face folder, or a config to train from scratch."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"model.path {params.path} is not JSON ({error}). Name a config.json, or a checkpoint folder."
        ) from error
    if "model_type" not in config:
        raise UserError(f'model.path {params.path} has no model_type. Add it, for example "model_type": "llama".')
    return ModelSource(config=path)


def _from_hub(hub: str) -> ModelSource:
    name, _, revision = hub.partition("@")
    if not revision:
        raise UserError(
            f"model.hub is {hub}, which is not pinned. Write it as {hub}@REVISION, a commit of its repository."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, revision=revision, ignore_patterns=["*.gguf", "*.onnx", "*.h5", "*.msgpack"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.hub {hub} could not be fetched: {first} Check the id, the revision and the network."
        ) from error
    return ModelSource(folder=Path(folder), name=name, revision=revision)


def start_checkpoint(params: ModelParams) -> Path:
    """The folder that supervised fine-tuning starts from: stage base's, or the user's own model."""
    source = model_source(params)
    return source.folder or Path("models/base")
