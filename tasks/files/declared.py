"""What each stage of dvc.yaml reads, writes, checks and loads, declared once.

Preflight, the report, its page, `rlhf doctor` and its memory estimate read these declarations. A test compares them
with dvc.yaml. They are not in the stages' scripts, because their readers would then depend on the code of every stage.
"""

from dataclasses import dataclass
from pathlib import Path

from tasks.files import paths


@dataclass(frozen=True)
class Loads:
    """The models that a stage holds at the same time, for the memory estimate.

    rows: rows of one forward pass per row of the micro-batch; 2 if units are pairs.
    """

    trained: int = 0
    frozen: int = 0
    is_sampling: bool = False
    rows: int = 1
    has_logits: bool = True  # False for a reward model, which has scores


@dataclass(frozen=True)
class Declared:
    """One stage of dvc.yaml, or one matrix of stages: `online` represents `online@ppo`, `online@grpo`, ...;
    the members of `rewards` are the names of reward_models, those of the others the methods.

    inputs: outputs of other stages that it reads. outputs: what it writes. checks: the function that checks model and
    data before training, `checks(params)` or, for a matrix, `checks(params, member)`; '' if it does not train.
    loads: None if it loads no model, or if the method of a matrix decides.
    """

    name: str
    outputs: tuple[Path, ...]
    inputs: tuple[Path, ...] = ()
    checks: str = ""
    is_matrix: bool = False
    loads: Loads | None = None


BASE = Declared(
    "base", outputs=(paths.BASE,), inputs=(paths.PREPARED,), checks="tasks.stages.base:checks", loads=Loads(trained=1)
)  # loads no model if the user's own model is used
REWARDS = "rewards"  # one stage per reward model of section reward_models
REWARD_LOADS = Loads(trained=1, frozen=1, is_sampling=True, rows=2, has_logits=False)
STAGES = (  # in execution order
    Declared("params", outputs=(paths.EFFECTIVE_PARAMS,)),
    Declared("prepare", outputs=(paths.PREPARED,)),
    BASE,
    Declared(
        "sft",
        outputs=(paths.SFT,),
        inputs=(paths.PREPARED, paths.BASE),
        checks="tasks.stages.sft:checks",
        loads=Loads(trained=1),
    ),
    Declared(
        "sample",
        outputs=(paths.SAMPLES,),
        inputs=(paths.PREPARED, paths.SFT),
        loads=Loads(frozen=1, is_sampling=True),
    ),
    Declared("collect", outputs=(paths.FEEDBACK,), inputs=(paths.PREPARED, paths.SAMPLES)),
    Declared(
        "reward",
        outputs=(paths.REWARD, paths.JUDGE, paths.REWARDS_NOTE),
        inputs=(paths.PREPARED, paths.FEEDBACK, paths.SFT),
        checks="tasks.stages.reward:checks",
        loads=REWARD_LOADS,
    ),
    Declared(
        REWARDS,
        outputs=(paths.REWARDS,),
        inputs=(paths.PREPARED, paths.FEEDBACK, paths.SFT),
        checks="tasks.stages.rewards:checks",
        is_matrix=True,
        loads=REWARD_LOADS,
    ),
    Declared(
        "online",
        outputs=(paths.POLICIES,),
        inputs=(paths.PREPARED, paths.SFT, paths.REWARD, paths.REWARDS),
        checks="tasks.stages.online:checks",
        is_matrix=True,
    ),
    Declared(
        "offline",
        outputs=(paths.POLICIES,),
        inputs=(paths.FEEDBACK, paths.SFT),
        checks="tasks.stages.offline:checks",
        is_matrix=True,
    ),
    Declared(
        "evaluate",
        outputs=(paths.EVALUATION,),
        inputs=(paths.PREPARED, paths.SFT, paths.REWARD, paths.REWARDS, paths.JUDGE, paths.POLICIES),
        loads=Loads(frozen=4, is_sampling=True),  # policy, SFT model, reward model, judge
    ),
    Declared(
        "report",
        outputs=(paths.REPORT, paths.CURVES, paths.METRICS),
        inputs=(
            paths.PREPARED,
            paths.BASE,
            paths.SFT,
            paths.FEEDBACK,
            paths.REWARD,
            paths.REWARDS,
            paths.JUDGE,
            paths.POLICIES,
            paths.EVALUATION,
        ),
    ),
)


def of(stage: str) -> Declared:
    """Return the declaration of a stage by its name in dvc.yaml, with or without a member: `sft`, `online@ppo`.

    Raises:
        KeyError: the stage does not exist.
    """
    return {item.name: item for item in STAGES}[stage.partition("@")[0]]


def makers(path: Path) -> list[str]:
    """Return the names of the stages that write `path` or a file in it."""
    return [stage.name for stage in STAGES if path in stage.outputs or path in [out.parent for out in stage.outputs]]


def output_at(path: Path) -> tuple[str, Path] | None:
    """Return a stage and its output that `path`, relative to the checkout, is in or contains; None without one."""
    each = ((stage.name, output) for stage in STAGES for output in stage.outputs)
    return next(
        ((name, output) for name, output in each if path.is_relative_to(output) or output.is_relative_to(path)), None
    )


def checkpoints() -> list[Path]:
    """Return the model folders that stages write, without those of a matrix."""
    folders = [path for stage in STAGES if not stage.is_matrix for path in stage.outputs]
    return [path for path in folders if path.is_relative_to(paths.MODELS) and not path.suffix]
