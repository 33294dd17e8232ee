"""Stage evaluate deletes the folders of policies that are no longer listed, and nothing else."""

from pathlib import Path

from tasks.stages.evaluate import drop_unlisted


def test_only_unlisted_outputs_of_a_stage_are_deleted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ppo", "dpo", "mine"):
        Path("models/policies", name).mkdir(parents=True)
    for name in ("ppo", "dpo"):  # a stage's output has a manifest; a user's own folder has none
        Path("models/policies", name, "manifest.json").write_text("{}")
    drop_unlisted(["ppo"])
    assert sorted(path.name for path in Path("models/policies").iterdir()) == ["mine", "ppo"]
