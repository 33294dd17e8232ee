"""The list of planted faults, one file for each package."""

from tools.mutants.faults import algorithms, core, flows, helpdesk, tasks

MODULES = [*core.MODULES, *algorithms.MODULES, *helpdesk.MODULES, *tasks.MODULES, *flows.MODULES]
