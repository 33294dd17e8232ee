"""Shared fixtures: tiny models made locally, an accelerator on the CPU, and an environment to run stages in."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

import tiny


@pytest.fixture
def accelerator():
    """A full-precision CPU accelerator. accelerate keeps one state per process, which is reset for each test."""
    yield from _accelerator("no")


@pytest.fixture
def bf16_accelerator():
    yield from _accelerator("bf16")


def _accelerator(mixed_precision):
    _forget_accelerators()
    torch.set_num_threads(1)
    yield Accelerator(cpu=True, mixed_precision=mixed_precision)
    _forget_accelerators()


def _forget_accelerators():
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.fixture(scope="module")
def module_patch():
    """A MonkeyPatch for a module whose stages run in this process: no parent run, and not the user's store."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RLHF_PARENT_RUN_ID", "RLHF_FLOW_RUN_ID", "MLFLOW_TRACKING_URI", "RLHF_ROOT"):
            patch.delenv(name, raising=False)
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        _forget_accelerators()
        yield patch
        _forget_accelerators()


@pytest.fixture
def tokenizer():
    return tiny.tiny_tokenizer()


@pytest.fixture(params=sorted(tiny.FAMILIES))
def family(request):
    """A function that makes policies with rotary or learned positions."""
    return tiny.FAMILIES[request.param]
