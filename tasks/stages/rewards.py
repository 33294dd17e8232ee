"""Stage `rewards@NAME`: train one of several reward models, on its sources of the feedback (section reward_models)."""

import sys
from collections.abc import Iterator

from rlhf_core.common.errors import UserError
from tasks.common.preflight import Check, require, run_checks
from tasks.files.paths import FEEDBACK, reward_model
from tasks.params.schema import Params
from tasks.problems.table import prepared_problem
from tasks.reward_models.feedback import configured, present_forms
from tasks.reward_models.fit import fit_model
from tasks.reward_models.start import reward_checks, start
from tasks.runtime.stage import main, open_stage


def rewards(name: str) -> None:
    """Train the reward model `name` of section reward_models."""
    with open_stage(f"rewards@{name}") as stage:
        problem = prepared_problem()
        if not present_forms():
            raise UserError(
                f"reward_models names {name}, but {FEEDBACK} is empty: {problem.no_feedback}. "
                "Set reward_models.names to []."
            )
        begin = start(stage.params, stage.folder / "tokenizer")
        fit = configured(stage.params, problem, begin, name, stage.params.reward_models.sources[name])
        run_checks(stage.name, checks(stage.params, name))
        fit_model(stage, begin, reward_model(name), fit)


def checks(params: Params, name: str) -> Iterator[Check]:
    """Yield the checks before training."""
    require(f"rewards@{name}")
    yield from reward_checks(params)


if __name__ == "__main__":
    main(rewards, *sys.argv[1:])
