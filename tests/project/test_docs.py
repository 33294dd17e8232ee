"""Documents agree with the code."""

import re
from importlib import import_module

from rlhf_core.algorithms.base.table import policy_algorithms, reward_losses
from tools import names_page
from tools.closure import ROOT
from tools.make_parameters import page

LOGGED = r"def (?:\w*statistics|_rollout_metrics|replace_dropped)\(.*?(?=\n    def |\ndef |\Z)"
TRAINED = re.compile(r'"((?:development_|final_)?[a-z_]+)": ')


def documented() -> str:
    return (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_statistic_in_the_code_is_explained():
    """Names in `statistics` and in the loops' metrics, extracted from the source."""
    sources = [*(ROOT / "rlhf_core" / "algorithms").rglob("*.py"), *(ROOT / "rlhf_core" / "loops").rglob("*.py")]
    names = set()
    for path in sources:
        text = path.read_text(encoding="utf-8")
        for body in re.findall(LOGGED, text, re.DOTALL):
            names |= set(re.findall(r'(?<!= )"([a-z_]+)"\s*:', body)) | set(re.findall(r'metrics\["([a-z_]+)"\]', body))
    assert {"score", "kl", "clip_fraction", "margin", "dropped_group_fraction"} <= names
    assert not {name for name in names if f"`{name}`" not in documented()}


def test_every_method_has_a_row_that_names_its_file_and_functions_that_exist():
    text = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+)` \|.*`\1\.py`", text, re.MULTILINE)
    assert sorted(rows) == sorted([*policy_algorithms(), *reward_losses()])
    functions = re.findall(r"`(advantages|kl|losses|reductions)\.((?!py`)\w+)`", text)
    assert len(functions) > 15
    for module, function in functions:
        assert callable(getattr(import_module(f"rlhf_core.maths.{module}"), function))


def test_parameters_page_matches_the_dataclasses():
    assert (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8") == page(), "run: make parameters"


def test_names_page_matches_its_tables():
    assert (ROOT / "docs" / "names.md").read_text(encoding="utf-8") == names_page.page(), "run: make parameters"
