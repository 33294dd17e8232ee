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
ONLINE_TOY = '''
"""Toy: -score log pi(a|s) on one rollout."""

from dataclasses import dataclass

from rlhf_core.algorithms.base.algorithm import OnPolicyAlgorithm, State
from rlhf_core.common.batch import Outputs, Rollout
from rlhf_core.common.fields import check_bounds, setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.reductions import at_last_token, token_mean


@dataclass(frozen=True, kw_only=True)
class OnlineToy(OnPolicyAlgorithm):
    """The score is the advantage of every token."""

    name = "online_toy"
    title = "Online toy"

    group_size: int = setting(1, "responses sampled per prompt", ge=1)
    push: float = setting(1.0, "weight of the loss", title="Push", gt=0)

    def __post_init__(self) -> None:
        check_bounds(self)

    def targets(self, rollout: Rollout, state: State) -> Rollout:
        """The score of a response as the advantage of its tokens."""
        mask = rollout.response_mask
        rewards = at_last_token(rollout.scores, mask)
        return rollout.with_targets(advantages=rollout.scores[:, None] * mask, rewards=rewards)

    def losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """Per token, (B, R)."""
        return -self.push * outputs.logprobs * batch.advantages

    def weights(self, batch: Rollout) -> Tensor:
        """Equal weight for every token, (B, R)."""
        return token_mean(batch.response_mask, batch.row_weights)
'''
FORM = """
import json
from pathlib import Path
from flows.run.form import make_form
from tasks.params.load import load_params
form = make_form(load_params(Path("params.yaml"))).model_json_schema()["$defs"]
print(json.dumps([form[name]["properties"] for name in ("policy", "toy", "online_toy")]))
"""
MEMORY = """
from pathlib import Path
from rich.console import Console
from flows.commands.doctor import examine
examine(Path.cwd(), "default", [], Console(width=120))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, list[str]]:
    """A checkout with an on-policy and an offline toy method, in which `dvc repro` has run, and the stages that ran."""
    folder = make_checkout(tmp_path_factory.mktemp("toy"), {"policy": {"online": ["ppo"], "offline": []}})
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["policy"] |= {
        "online": ["online_toy"],
        "online_toy": {"steps": 2, "rollout_size": 16, "minibatch_size": 16, "epochs": 1, "snapshots": 1, "push": 0.5},
        "offline": ["toy"],
        "toy": {"max_steps": 2, "batch_size": 8, "snapshots": 1, "strength": 0.5},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    added = {"params.yaml"}
    for name, text in {"toy": TOY, "online_toy": ONLINE_TOY}.items():
        (folder / f"rlhf_core/algorithms/{name}.py").write_text(text.lstrip())
        added.add(f"rlhf_core/algorithms/{name}.py")
    assert {line.split()[1] for line in git(folder, "status", "--porcelain").splitlines()} == added
    return folder, stages_run(run(folder, "dvc", "repro").stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage", "title", "option", "rate"),
    [
        ("toy", "offline@toy", "Toy method", "strength", 1e-4),
        ("online_toy", "online@online_toy", "Online toy", "push", 3e-4),
    ],
)
def test_a_new_method_is_trained_judged_and_reported(done, name, stage, title, option, rate):
    folder, ran = done
    assert stage in ran
    report = json.loads((folder / "reports/report.json").read_text())
    assert list(report["policies"]) == ["online_toy", "toy"]
    assert 0 <= report["policies"][name]["win_rate_vs_sft"]["value"] <= 1
    assert report["policies"][name]["reward_optimised"] is stage.startswith("online@")
    section = report["sources"]["stages"][stage]["params"][f"policy.{name}"]
    assert section[option] == 0.5
    assert section["learning_rate"] == rate  # from its loop
    assert len((folder / f"models/policies/{name}/metrics.jsonl").read_text().splitlines()) == 2
    assert title in (folder / "reports/report.html").read_text()


@pytest.mark.slow
def test_a_new_method_is_in_the_form_and_in_doctors_table(done):
    folder, _ = done
    lists, *own = json.loads(run(folder, "python", "-c", FORM).stdout)
    assert "toy" in lists["offline"]["items"]["enum"] and "online_toy" in lists["online"]["items"]["enum"]
    assert [lists[name]["title"] for name in ("toy", "online_toy")] == ["Toy method", "Online toy"]
    for fields, option, title in zip(own, ("strength", "push"), ("Strength", "Push"), strict=True):
        assert {name: field["title"] for name, field in fields.items()} == {
            option: title,
            "learning_rate": "Learning rate",
        }
        assert "weight of the loss [0.5]" in fields[option]["description"]
    lines = run(folder, "python", "-c", MEMORY, check=False).stdout.splitlines()
    assert {"offline@toy", "online@online_toy"} <= {line.split()[0] for line in lines if line.strip()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "name", "right"), [("online", "toy", "offline"), ("offline", "online_toy", "online")]
)
def test_a_new_method_in_the_wrong_list_is_rejected(done, given, name, right):
    folder, _ = done
    code = (
        "from pathlib import Path\n"
        "from flows.run.changes import Changes\n"
        f"Changes(overrides={{'policy.{given}': ['{name}']}}).resolve(Path.cwd())\n"
    )
    failed = run(folder, "python", "-c", code, check=False)
    assert f"{name} belongs to policy.{right}." in failed.stderr
