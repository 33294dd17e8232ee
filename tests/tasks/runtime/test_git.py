"""The commit and the state of a checkout, as tags of MLflow runs."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from rlhf_core.common.errors import UserError
from tasks.runtime import tracking
from tasks.runtime.git import code_tags, git, head


def make_repository(folder: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    git(folder, "config", "user.name", "A")
    git(folder, "config", "user.email", "a@example.org")
    return folder


def commit(folder: Path) -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all")
    return head(folder)


def test_tags_of_a_run_and_of_its_stages_agree(tmp_path, monkeypatch):
    """A flow run gives the checkout's folder, a stage runs in it. Untracked files do not count as edits."""
    root = make_repository(tmp_path)
    monkeypatch.chdir(root)
    monkeypatch.delenv("RLHF_FLOW_RUN_ID", raising=False)
    assert tracking.lineage_tags() == {"git_commit": "none", "git_dirty": "false"}
    with pytest.raises(UserError, match="has no commit to start from"):
        code_tags(root)
    (root / "tracked").write_text("1")
    made = commit(root)
    (root / "untracked").touch()
    assert code_tags(root) == tracking.lineage_tags() == {"git_commit": made, "git_dirty": "false"}
    (root / "tracked").write_text("2")
    assert code_tags(root) == tracking.lineage_tags() == {"git_commit": made, "git_dirty": "true"}


def test_the_lock_is_named_by_its_hash(tmp_path):
    assert tracking.lock_tag(tmp_path) == {}
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    assert tracking.lock_tag(tmp_path) == {"dvc_lock_sha256": hashlib.sha256(b"schema: '2.0'\n").hexdigest()}


def test_nested_parameters_get_dotted_keys():
    nested = {"run": {"seed": 7, "model": {"path": "a"}}, "names": ["a", "b"]}
    assert list(tracking._flatten(nested)) == [("run.seed", 7), ("run.model.path", "a"), ("names", ["a", "b"])]
