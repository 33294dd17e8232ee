"""A method is one file: a new file and its lines in params.yaml suffice to train, judge and report it."""

import json
from pathlib import Path

import pytest
import yaml

from checkout import git, make_checkout, run, stages_run

TOY = '''
"""Toy: supervised fine-tuning on the preferred response of each pair, times a weight."""

from dataclasses import dataclass

from rlhf_core.algorithms.base.pairs import PairAlgorithm
from rlhf_core.common.batch import Batch, Outputs
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.reductions import sequence_sum


@dataclass(frozen=True, kw_only=True)
class Toy(PairAlgorithm):
    """-strength log pi(y_w|x)."""

    name = "toy"
    title = "Toy method"
    notes = {"batch_size": "pairs of one step of the toy"}

    beta: float = setting(0.1, "of the implicit reward that is logged", gt=0)
    strength: float = setting(1.0, "weight of the loss", title="Strength", gt=0)

    def __post_init__(self) -> None:
        check_bounds(self)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Per pair, (N,)."""
        return -self.strength * sequence_sum(outputs.logprobs, batch.response_mask)[0::2]
'''
FORM = """
import json
from pathlib import Path
from flows.run.form import make_form
from tasks.params.load import load_params
form = make_form(load_params(Path("params.yaml"))).model_json_schema()["$defs"]
print(json.dumps([form["policy"]["properties"], form["toy"]["properties"]]))
"""
MEMORY = """
from pathlib import Path
from rich.console import Console
from flows.commands.doctor import examine
examine(Path.cwd(), "default", [], Console(width=120))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, list[str]]:
    """A checkout with PPO and the toy method, in which `dvc repro` has run, and the stages that ran."""
    folder = make_checkout(tmp_path_factory.mktemp("toy"), {"policy": {"online": ["ppo"], "offline": []}})
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["policy"] |= {"offline": ["toy"], "toy": {"max_steps": 2, "batch_size": 8, "snapshots": 1, "strength": 0.5}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (folder / "rlhf_core/algorithms/toy.py").write_text(TOY.lstrip())
    changed = git(folder, "status", "--porcelain").splitlines()
    assert sorted(line.split()[1] for line in changed) == ["params.yaml", "rlhf_core/algorithms/toy.py"]
    return folder, stages_run(run(folder, "dvc", "repro").stdout)


@pytest.mark.slow
def test_a_new_method_is_trained_judged_and_reported(done):
    folder, ran = done
    assert "offline@toy" in ran
    report = json.loads((folder / "reports/report.json").read_text())
    assert list(report["policies"]) == ["ppo", "toy"]
    assert 0 <= report["policies"]["toy"]["win_rate_vs_sft"]["value"] <= 1
    assert report["policies"]["toy"]["reward_optimised"] is False
    stage = report["sources"]["stages"]["offline@toy"]
    assert stage["params"]["policy.toy"]["strength"] == 0.5
    assert stage["params"]["policy.toy"]["learning_rate"] == 1e-4  # from its loop
    page = (folder / "reports/report.html").read_text()
    assert "Toy method" in page


@pytest.mark.slow
def test_a_new_method_is_in_the_form_and_in_doctors_table(done):
    folder, _ = done
    lists, own = json.loads(run(folder, "python", "-c", FORM).stdout)
    assert "toy" in lists["offline"]["items"]["enum"]
    assert lists["toy"]["title"] == "Toy method"
    assert {name: field["title"] for name, field in own.items()} == {
        "strength": "Strength",
        "learning_rate": "Learning rate",
    }
    assert "weight of the loss [0.5]" in own["strength"]["description"]
    lines = run(folder, "python", "-c", MEMORY, check=False).stdout.splitlines()
    assert any(line.strip().startswith("offline@toy ") for line in lines)


@pytest.mark.slow
def test_a_new_method_in_the_wrong_list_is_rejected(done):
    folder, _ = done
    code = (
        "from pathlib import Path\n"
        "from flows.run.changes import Changes\n"
        "Changes(overrides={'policy.online': ['toy']}).resolve(Path.cwd())\n"
    )
    failed = run(folder, "python", "-c", code, check=False)
    assert "toy belongs to policy.offline." in failed.stderr
