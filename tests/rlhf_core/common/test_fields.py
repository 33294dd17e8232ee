"""Instances of dataclasses from sections of the parameters."""

from dataclasses import dataclass
from types import SimpleNamespace

from rlhf_core.common.fields import from_section, setting


@dataclass(frozen=True)
class Options:
    size: int = setting(1, "size")
    name: str = setting("a", "name")


def test_an_instance_takes_its_own_values_from_a_section():
    assert from_section(Options, SimpleNamespace(size=3, name="b", other=5)) == Options(3, "b")
