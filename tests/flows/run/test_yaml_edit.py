"""Edits of params.yaml change only the values concerned; every other byte is kept."""

import difflib
from pathlib import Path

import pytest
import yaml

from flows.run.yaml_edit import update_yaml
from tasks.params.load import with_values
from tools.closure import ROOT

PARAMS = (ROOT / "params.yaml").read_text(encoding="utf-8")


def changed_lines(before: str, after: str) -> list[str]:
    return [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        ({}, []),
        ({"run.seed": 1}, ["+ run: {seed: 1}"]),
        ({"sft.learning_rate": 2e-3}, ["-   learning_rate: 1.0e-3", "+   learning_rate: 0.002"]),
        ({"policy.dpo.beta": 1e-5}, ["-   dpo: {beta: 0.3}", "+   dpo: {beta: 1.0e-05}"]),
        ({"policy.offline": ["kto"]}, ["-   offline: [dpo]", "+   offline: [kto]"]),
        ({"prepare.limit": 5}, ["+   limit: 5"]),
        ({"policy.online_loop.steps": 5}, ["-     steps: 60", "+     steps: 5"]),
        (
            {"policy.cdpo.label_smoothing": None},
            ["-   cdpo: {beta: 0.3}", "+   cdpo: {beta: 0.3, label_smoothing: null}"],
        ),
        ({"model.hub": "org/x@1"}, ["+   hub: org/x@1"]),
        ({"run.device": "on"}, ["+ run: {device: 'on'}"]),
        (
            {"policy.rewards": [{"name": "length", "weight": 0.5}]},
            [
                "-   rewards:",
                "-     - {name: model, clamp: 3.0}",
                "-     - {name: missing_end, weight: 3.0}  # -1 for a response that was cut off at the length limit",
                "+   rewards: [{name: length, weight: 0.5}]  # -1 for a response that was cut off at the length limit",
            ],
        ),
    ],
)
def test_only_the_lines_of_changed_values_differ(tmp_path: Path, overrides: dict, lines: list[str]) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS, encoding="utf-8")
    wanted = with_values(yaml.safe_load(PARAMS), overrides)
    update_yaml(path, wanted)
    assert changed_lines(PARAMS, path.read_text(encoding="utf-8")) == lines
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == wanted


@pytest.mark.parametrize(
    ("before", "content", "after"),
    [
        ("a:\n  b: 1.0e-3  # tuned\n  c: [1, 2]\n", {"a": {"b": 0.5}}, "a:\n  b: 0.5  # tuned\n  c: [1, 2]\n"),
        ("a: 1  # one\nb: 2  # two\n", {"a": 100, "b": 200}, "a: 100  # one\nb: 200  # two\n"),
        ("a:\nb: 2\n", {"a": 5}, "a: 5\nb: 2\n"),
        ("a: 1\n", {"a": True}, "a: true\n"),
        ("a: 1\n", {"a": 1.0}, "a: 1.0\n"),
        ("a: |\n  x\n  y\n\nb: 1\n", {"a": "q"}, "a: q\n\nb: 1\n"),
        ("a:\r\n  b: 1 # c\r\n  d: 2\r\n", {"a": {"b": 3}}, "a:\r\n  b: 3 # c\r\n  d: 2\r\n"),
        ("a: {x: 1, y: 2}\n", {"a": {"x": 3}}, "a: {x: 3, y: 2}\n"),
        ("a:\n  - 1\n  # between\n  - 2\n# after\nb: 1\n", {"a": [9]}, "a: [9]\n# after\nb: 1\n"),
        ("'a b': 'ü'  # ö\n", {"a b": "ß"}, "'a b': ß  # ö\n"),
        # new keys: a profile may name keys that params.yaml omits
        ("a: {}\nb: 1\n", {"a": {"y": 3}}, "a: {y: 3}\nb: 1\n"),
        ("a:\n  x: 1  # one\nb: 1", {"a": {"y": [2]}}, "a:\n  x: 1  # one\n  y: [2]\nb: 1"),
        ("# nothing yet\n", {"a": 1}, "a: 1\n"),
        # a text that sets two values cannot be edited in place
        ("a: &x {v: 1}\nb: *x\n", {"b": {"v": 2}}, "a:\n  v: 1\nb:\n  v: 2\n"),
    ],
)
def test_edits(tmp_path: Path, before: str, content: dict, after: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(before.encode())
    update_yaml(path, content)
    assert path.read_bytes().decode() == after
