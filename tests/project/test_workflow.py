"""The public workflow runs existing commands on the Python versions that the package supports."""

import re
import tomllib

import yaml
from packaging.specifiers import SpecifierSet

from tools.closure import ROOT

WORKFLOW = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
JOBS = yaml.safe_load(WORKFLOW)["jobs"]


def test_every_promised_python_is_tested_and_no_other():
    promised = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    versions = {f"3.{minor}" for minor in range(30)}
    assert set(JOBS["test"]["strategy"]["matrix"]["python"]) == {v for v in versions if promised.contains(v)}


def test_every_command_is_a_target_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]
    made = {command.removeprefix("make ") for command in commands if command.startswith("make ")}
    assert made == {"test", "test-slow", "test-browser"}
    assert made <= targets
