"""Launchers of a stage's work: one process today, through a protocol that allows several."""

import pytest

from rlhf_core.common import device
from rlhf_core.common.errors import UserError
from tasks.runtime.launcher import LAUNCHER, Launcher, OneProcess
from tasks.runtime.stage import main


class Recorder:
    """A launcher that claims two processes and does not call the work."""

    processes = 2

    def __init__(self):
        self.asked = []

    def run(self, work, *arguments):
        self.asked.append((work, arguments))


def stage_work(name):
    raise UserError(f"{name} is wrong.")


def test_a_stage_hands_its_work_and_arguments_to_the_launcher():
    launcher: Launcher = Recorder()
    main(stage_work, "ppo", launcher=launcher)
    assert launcher.asked == [(stage_work, ("ppo",))]


def test_one_process_does_the_work_itself_and_reports_its_error():
    assert isinstance(LAUNCHER, OneProcess) and LAUNCHER.processes == 1
    with pytest.raises(SystemExit, match=r"error: ppo is wrong\."):
        main(stage_work, "ppo")


def test_a_stage_rejects_a_number_of_processes_that_differs_from_its_launcher():
    """`accelerate launch` may silently start one process although two were requested."""
    with pytest.raises(UserError, match=r"runs in 2 process\(es\), but accelerate found 1\."):
        device.make_accelerator("cpu", "fp32", 1, processes=2)
    assert device.make_accelerator("cpu", "fp32", 1, LAUNCHER.processes).num_processes == 1
