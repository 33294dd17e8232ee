"""Stage `reward`: train a reward model or an ensemble, and a second reward model as the judge if there is no gold.

Stage `rewards@NAME` (tasks/stages/rewards.py) trains one of several reward models in the same way, on its sources.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence

from rlhf_core.algorithms.reward.bradley_terry import BradleyTerry
from rlhf_core.common.batch import Unit
from rlhf_core.common.errors import UserError
from rlhf_core.feedback.judgement import PREFERENCES
from tasks.common.preflight import Check, require, run_checks
from tasks.common.rows import preference_units
from tasks.files.paths import FEEDBACK, JUDGE, MANIFEST, NO_MODEL, REWARD, REWARDS, REWARDS_NOTE, rows
from tasks.params.schema import Params
from tasks.problems.problem import Problem
from tasks.problems.table import prepared_problem
from tasks.reward_models.feedback import Fit, configured, present_forms
from tasks.reward_models.fit import fit_model
from tasks.reward_models.start import reward_checks, start
from tasks.runtime.stage import main, open_stage, write_json

NOTE = "One folder per reward model of section `reward_models`; stage `rewards@NAME` trains it.\n"


def reward() -> None:
    """Train reward models on the feedback, or record why there are none."""
    with open_stage("reward") as stage:
        problem = prepared_problem()
        names = stage.params.reward_models.names
        drop_unlisted(names)
        stage.out_file(REWARDS_NOTE).write_text(NOTE, encoding="utf-8")
        begin = start(stage.params, stage.folder / "tokenizer")
        held_out, judge_train = (
            preference_units(rows(FEEDBACK, PREFERENCES, split), begin.reader) for split in ("development", "judge")
        )
        present = present_forms()
        if present:
            check_feedback(problem, held_out, judge_train)
            run_checks("reward", checks(stage.params))
        if present and not names:
            fit_model(stage, begin, REWARD, configured(stage.params, problem, begin, "reward"))
        else:
            why = f"{REWARDS} has one per name of reward_models" if names else f"no preferences: {problem.no_feedback}"
            write_json(stage.out(str(REWARD)) / NO_MODEL, {"why": why})
        if judge_train:
            fit_model(stage, begin, JUDGE, Fit("judge", BradleyTerry(), judge_train, held_out))
        else:
            write_json(stage.out(str(JUDGE)) / NO_MODEL, {"why": problem.why_no_judge_model()})


def drop_unlisted(names: Sequence[str]) -> None:
    """Remove the reward models that are no longer listed, because they would change the inputs of other stages."""
    for folder in sorted(REWARDS.glob(f"*/{MANIFEST}")):
        if folder.parent.name not in names:
            shutil.rmtree(folder.parent)
            sys.stdout.write(f"{folder.parent} removed: it is no longer in reward_models. DVC's cache keeps it.\n")


def checks(params: Params) -> Iterator[Check]:
    """Yield the checks before training. There are none if the data has no preferences."""
    require("reward")
    yield from reward_checks(params)


def check_feedback(problem: Problem, held_out: list[Unit], judge_train: list[Unit]) -> None:
    """Check that there are held-out preferences to measure reward models on and preferences for the judge."""
    if all(unit[0].preference == 0.5 for unit in held_out):
        raise UserError(
            f"{rows(FEEDBACK, PREFERENCES, 'development')} has no pair to measure the reward model on. "
            "Add data, or raise sample.development_prompts or prepare.development_fraction."
        )
    if problem.needs_judge_model and not judge_train:
        raise UserError(
            f"{rows(FEEDBACK, PREFERENCES, 'judge')} is empty, but without gold the judge is trained on it. "
            "Raise prepare.judge_fraction, or add data in which responses to the same prompt differ in quality."
        )


if __name__ == "__main__":
    main(reward)
