"""`rlhf run --seeds` without a server: names, what is left to do, and bad input."""

import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from flow_scratch import commit, dvc, make_scratch
from flows.run.changes import Changes
from flows.run.graph import read_graph
from flows.run.seeds import plan_seeds, read_seeds
from flows.run.workspace import open_workspace
from rlhf_core.common.errors import UserError

CHANGES = Changes("fast", {"policy.dpo.beta": 0.2})


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    return make_scratch(tmp_path)


def store(root: Path, name: str, changes: Changes) -> None:
    """Finish a run as the experiment `name`."""
    with open_workspace(root, changes.resolve(root), name) as workspace:
        dvc(workspace.checkout, "repro", "prepare")
        workspace.finish([stage.name for stage in read_graph(workspace.checkout)][:1])


def with_seed(seed: int, **overrides: object) -> Changes:
    return Changes("fast", {"policy.dpo.beta": 0.2, **overrides, "run.seed": seed})


@pytest.mark.parametrize(("text", "seeds"), [("0,1,2", [0, 1, 2]), ("7", [7]), (" 3, 1 ", [3, 1])])
def test_seeds_are_whole_numbers_separated_by_commas(text: str, seeds: list[int]) -> None:
    assert read_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,x", r"--seeds 0,x: 'x' is not a seed. Write whole numbers from 0 on, separated by commas: --seeds 0,1,2"),
        ("0,-1", "'-1' is not a seed"),
        ("1.0", "'1.0' is not a seed"),
        ("²", "'²' is not a seed"),
        ("", "'' is not a seed"),
        ("0,1,0", "Seed 0 is named twice; its run would be counted twice"),
        ("0,00", "Seed 0 is named twice"),
    ],
)
def test_bad_seeds_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_seeds(text)


def test_each_seed_is_an_experiment_with_its_seed(scratch: Path) -> None:
    planned = plan_seeds(scratch, CHANGES, [0, 3], "mine")
    assert [(run.name, run.resolved.params.run.seed, run.is_stored) for run in planned.runs] == [
        ("mine-seed-0", 0, False),
        ("mine-seed-3", 3, False),
    ]
    assert {run.resolved.params.policy.section("dpo").beta for run in planned.runs} == {0.2}
    assert planned.command == "rlhf run --seeds 0,3 --name mine --profile fast --set policy.dpo.beta=0.2"
    assert not (scratch / "runs").exists()


def test_the_command_that_continues_reads_as_the_same_changes(scratch: Path) -> None:
    """Lists and texts too; the automatic name is written out, since it depends on the code."""
    changes = Changes(overrides={"policy.online": ["ppo"], "prepare.path": "rows.jsonl", "prepare.limit": None})
    command = plan_seeds(scratch, changes, [1], None).command
    words = shlex.split(command)
    name = words[words.index("--name") + 1]
    assert name.startswith("policy.online-ppo") and "_" in name
    assignments = [word for flag, word in pairwise(words) if flag == "--set"]
    assert Changes.from_command_line("default", assignments) == changes
    (scratch / "dvc.yaml").write_text((scratch / "dvc.yaml").read_text() + "# an edit\n")
    assert [run.name for run in plan_seeds(scratch, changes, [1], name).runs] == [f"{name}-seed-1"]


def test_stored_seeds_are_not_run_again_unless_parameters_differ(
    scratch: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also after a commit, with other run.parallel, and with data outside the checkout, stored by its absolute path."""
    outside = tmp_path_factory.mktemp("outside") / "rows.jsonl"
    outside.write_text("{}\n")
    own = {"prepare.path": f"../{outside.relative_to(scratch.parent)}"}
    store(scratch, "mine-seed-1", with_seed(1, **own))
    (scratch / "notes.md").write_text("later")
    commit(scratch, "later")
    changes = Changes("fast", {"policy.dpo.beta": 0.2, **own, "run.parallel": 1})
    planned = plan_seeds(scratch, changes, [0, 1], "mine")
    assert [run.is_stored for run in planned.runs] == [False, True]
    with pytest.raises(
        UserError, match=r"mine-seed-1 exists, with other parameters\.\n.*another --name.*dvc exp remove mine-seed-1"
    ):
        plan_seeds(scratch, Changes("fast", {**changes.overrides, "policy.dpo.beta": 0.3}), [0, 1], "mine")


def test_an_unfinished_run_with_other_parameters_is_refused_before_the_first_seed_starts(scratch: Path) -> None:
    other = with_seed(1, **{"sft.epochs": 2}).resolve(scratch)
    with pytest.raises(ZeroDivisionError), open_workspace(scratch, other, "mine-seed-1"):
        raise ZeroDivisionError
    with pytest.raises(UserError, match="unfinished run with other code or parameters"):
        plan_seeds(scratch, CHANGES, [0, 1], "mine")
    assert not (scratch / "runs/mine-seed-0").exists()


@pytest.mark.parametrize(
    ("changes", "seeds", "name", "only", "message"),
    [
        (Changes(overrides={"run.seed": 3}), [0], "a", None, "Both --seeds and run.seed choose the seed"),
        (Changes(), [0, 0], "a", None, "named twice"),
        (Changes(), [-1], "a", None, "Seed -1 is negative"),
        (Changes(), [0], "a b", None, "not a valid experiment name"),
        (Changes(), [0, 2**63], "a", None, "'run.seed' is 9223372036854775808"),
        (Changes(), [0], "a", "sft", "needs all stages. Leave out --only"),
    ],
)
def test_bad_input_is_refused(
    scratch: Path, changes: Changes, seeds: list[int], name: str, only: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_seeds(scratch, changes, seeds, name, only)
