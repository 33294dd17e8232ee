"""Fixtures of the rlhf_core tests: tiny models made locally, and an accelerator on the CPU."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

import tiny


@pytest.fixture
def accelerator():
    """A full-precision CPU accelerator; accelerate keeps one state per process, which a test may not inherit."""
    yield from _accelerator("no")


@pytest.fixture
def bf16_accelerator():
    yield from _accelerator("bf16")


def _accelerator(mixed_precision):
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    yield Accelerator(cpu=True, mixed_precision=mixed_precision)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.fixture
def tokenizer():
    return tiny.tiny_tokenizer()


@pytest.fixture(params=sorted(tiny.FAMILIES))
def family(request):
    """A maker of policies: rotary or learned positions."""
    return tiny.FAMILIES[request.param]
