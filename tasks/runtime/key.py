"""The key of a stage: a hash of everything that determines its outputs, such as inputs and parameters."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.common.errors import UserError

if TYPE_CHECKING:
    from dvc.repo import Repo


def dependencies(repo: "Repo", name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the digests of a stage's files and its parameters, by the keys in dvc.yaml; DVC computes both."""
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
    """Return a value without absolute paths, so that outputs do not depend on the folder of a user's file."""
    if isinstance(value, Mapping):
        return {key: portable(inner) for key, inner in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def stage_key(name: str, sections: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return a hash of everything that determines outputs: inputs, parameters, versions of torch and transformers."""
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
