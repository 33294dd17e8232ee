"""What decides a stage's outputs: the digests of its inputs and its parameters, and the hash of both, its key."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.common.errors import UserError

if TYPE_CHECKING:
    from dvc.repo import Repo


def dependencies(repo: "Repo", name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Digests of a stage's files, and its parameters by the keys that dvc.yaml names, both by DVC itself."""
    from dvc.dependency.param import ParamsDependency

    stage = repo.stage.load_one(path="dvc.yaml", name=name)
    files = {}
    sections: dict[str, Any] = {}
    for dependency in stage.deps:
        if isinstance(dependency, ParamsDependency):
            sections |= dependency.read_params()
            continue
        if not dependency.exists:
            raise UserError(f"{dependency.def_path} does not exist. Name an existing file or folder, or run: dvc repro")
        files[dependency.def_path] = dependency.get_hash().value
    return files, sections


def portable(value: Any) -> Any:
    """A value without absolute paths: outputs are the same whatever folder a user's file is in."""
    if isinstance(value, Mapping):
        return {key: portable(inner) for key, inner in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def stage_key(name: str, sections: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """A hash of all that decides a stage's outputs: inputs, parameters, and the versions of torch and transformers."""
    import torch
    import transformers

    content = [
        name,
        {key: portable(value) for key, value in sections.items()},
        sorted(inputs.values()),
        torch.__version__,
        transformers.__version__,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
