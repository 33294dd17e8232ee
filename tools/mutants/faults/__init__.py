"""The list of planted faults, one file for each part of the project."""

from tools.mutants.faults import (
    algorithms,
    benchmarks,
    data,
    flows,
    helpdesk,
    instructions,
    judging,
    loops,
    maths,
    models,
    stages,
)

MODULES = [
    *maths.MODULES, *models.MODULES, *judging.MODULES, *algorithms.MODULES, *loops.MODULES, *helpdesk.MODULES,
    *instructions.MODULES, *data.MODULES, *stages.MODULES, *flows.MODULES, *benchmarks.MODULES,
]  # fmt: skip
