"""The model that training starts from: a config to train from scratch, a local folder, or a pinned Hub id."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_core.common.errors import UserError
from rlhf_core.models.checkpoint import check_checkpoint, check_config, weights_digest
from tasks.files import paths
from tasks.params.sections import ModelParams


@dataclass(frozen=True)
class ModelSource:
    """Either `config`, a file that describes a model to train from scratch, or `folder`, a checkpoint to start from."""

    config: Path | None = None
    folder: Path | None = None
    name: str = ""
    revision: str | None = None

    def manifest(self) -> dict[str, Any]:
        """Identify a checkpoint by its name, revision and a hash of its weights."""
        assert self.folder is not None
        return {"name": self.name, "revision": self.revision, "weights_sha256": weights_digest(self.folder)}


def model_source(params: ModelParams, root: Path = Path()) -> ModelSource:
    """Resolve `model.path` (relative to `root`) or `model.hub`, whose pinned revision is downloaded.

    Of a checkpoint only the headers of its files are read.

    Raises:
        UserError: the path is neither a config nor a valid checkpoint folder with a tokenizer, or the Hub id is not
            pinned or not found.
    """
    if params.hub:
        return _from_hub(params.hub)
    path, name = root / params.path, f"model.path {params.path}"
    if path.is_dir():
        check_checkpoint(path, name)
        return ModelSource(folder=path, name=path.name)
    if not path.is_file():
        raise UserError(f"{name} does not exist. Name a Hugging Face folder, or a config to train from scratch.")
    if path.suffix == ".gguf":
        raise UserError(f"{name} is a GGUF file. Convert it to a folder: rlhf convert {params.path} inputs/models/NAME")
    check_config(path, name)
    return ModelSource(config=path)


def require_pinned(hub: str, key: str = "model.hub") -> tuple[str, str]:
    """Return name and revision of a hub id, which the parameter `key` has.

    Raises:
        UserError: the revision is missing.
    """
    name, _, revision = hub.partition("@")
    if not name or not revision:
        pinned = f"{name or 'org/name'}@REVISION"
        raise UserError(f"{key} is {hub}, which is not pinned. Write {pinned}, with a commit of the repository.")
    return name, revision


def download(hub: str, key: str) -> Path:
    """Return the folder of a pinned hub id, which the parameter `key` has, downloaded or from the cache.

    Raises:
        UserError: the id is not pinned, or cannot be downloaded.
    """
    name, revision = require_pinned(hub, key)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        unused = ["*.gguf", "*.onnx", "*.h5", "*.msgpack"]
        return Path(snapshot_download(name, revision=revision, ignore_patterns=unused))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"{key} {hub} could not be downloaded: {first} Check the id, the revision and the network."
        ) from error


def _from_hub(hub: str) -> ModelSource:
    folder = download(hub, "model.hub")
    check_checkpoint(folder, f"model.hub {hub}")
    name, revision = require_pinned(hub)
    return ModelSource(folder=folder, name=name, revision=revision)


def reward_base(base: str, root: Path = Path()) -> ModelSource:
    """Resolve `reward.base`, a folder (relative to `root`) or a pinned hub id, which is downloaded.

    Raises:
        UserError: it is not a valid checkpoint folder of a language model with a tokenizer.
    """
    name, _, revision = base.partition("@")
    folder = download(base, "reward.base") if revision else root / base
    check_checkpoint(folder, f"reward.base {base}")
    return ModelSource(folder=folder, name=name if revision else folder.name, revision=revision or None)


def start_checkpoint(params: ModelParams) -> Path:
    """Return the folder that supervised fine-tuning starts from: the base stage's output, or the user's own model."""
    source = model_source(params)
    return source.folder or paths.BASE
