"""Documents say what the code does."""

import re

from closure import ROOT

TRAINED = re.compile(r'"((?:development_|final_)?[a-z_]+)": ')


def documented() -> str:
    return (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_statistic_in_the_code_is_explained():
    """Names of `statistics` and of the loops' metrics, read off the source."""
    sources = [*(ROOT / "rlhf_core" / "algorithms").glob("*.py"), *(ROOT / "rlhf_core" / "loops").glob("*.py")]
    names = set()
    for path in sources:
        text = path.read_text(encoding="utf-8")
        for body in re.findall(r"def (?:statistics|_rollout_metrics)\(.*?(?=\n    def |\Z)", text, re.DOTALL):
            names |= set(re.findall(r'"([a-z_]+)"\s*:', body)) | set(re.findall(r'metrics\["([a-z_]+)"\]', body))
    assert {"score", "kl", "clip_fraction", "margin"} <= names
    assert not {name for name in names if f"`{name}`" not in documented()}


def test_parameters_page_is_that_of_the_dataclasses():
    import runpy

    page = runpy.run_path(str(ROOT / "docs" / "make_parameters.py"))["page"]()
    assert (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8") == page, "run: python docs/make_parameters.py"


def test_links_between_documents_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
