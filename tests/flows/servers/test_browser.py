"""A user starts a run from Prefect's page, with real servers, a real worker and headless Chromium.

Screenshots are written to the folder SCREENSHOTS (default: a temporary folder).
"""

import json
import os
import re
import socket
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from checkout import make_checkout, run, stages_run
from chromium import MINUTES, launch

pytestmark = pytest.mark.browser


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A checkout in which the pipeline has run once, served by `rlhf up`, and the two addresses that it printed."""
    folder = make_checkout(tmp_path_factory.mktemp("served"))
    run(folder, "dvc", "repro")
    ports = free_port(), free_port()
    rlhf = [sys.executable, "-m", "flows.cli"]
    up = run(folder, *rlhf, "up", "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    shown = dict(line.split(maxsplit=1) for line in up.stdout.splitlines() if "rlhf-login" in line)
    yield folder, shown["Prefect"], shown["MLflow"]
    run(folder, *rlhf, "down")


@pytest.fixture(scope="module")
def page():
    with sync_playwright() as playwright:
        browser = launch(playwright)
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.set_default_timeout(2 * MINUTES)
        yield opened
        browser.close()


def fill(page: Page, label: str, value: str) -> None:
    """Fill the field with this label."""
    named = page.locator("label", has=page.get_by_text(f"{label} (Optional)", exact=True)).first
    named.locator("xpath=following::*[self::input or self::textarea][1]").fill(value)


def test_a_run_is_started_from_the_page_with_one_changed_parameter(served, page, pictures):
    """Only beta is changed: the run shows all stages, runs DPO and takes PPO from the cache."""
    folder, prefect, mlflow = served
    before = (folder / "params.yaml").read_text()
    page.goto(prefect)
    server = prefect.partition("/rlhf-login")[0]
    link = page.locator('a[href*="/deployments/deployment/"]').first
    deployment = link.get_attribute("href").rpartition("/")[2]
    page.goto(f"{server}/deployments/deployment/{deployment}/run")
    page.get_by_text("weight of the KL to the reference model").wait_for()
    fill(page, "Experiment name", "from-the-page")
    fill(page, "Beta", "0.25")
    page.screenshot(path=pictures / "prefect-form.png")
    # Leaving the page before the server has answered would cancel the request.
    with page.expect_response(lambda answer: answer.url.endswith("/create_flow_run"), timeout=MINUTES) as created:
        page.get_by_role("button", name="Submit").click()
    assert created.value.ok, created.value.text()
    page.goto(f"{server}/runs/flow-run/{created.value.json()['id']}")
    # The title shows the state, and the page updates itself.
    page.get_by_text("Completed", exact=True).first.wait_for(timeout=8 * MINUTES)
    page.get_by_text("offline@dpo").first.wait_for(timeout=MINUTES)
    # The graph of a run that was watched live is too flat to read; a new page fits the finished run.
    with page.expect_response(re.compile("/graph"), timeout=MINUTES):
        page.reload()
    page.get_by_text(re.compile(r"\d+ Task runs")).wait_for(timeout=MINUTES)
    page.locator("canvas").first.wait_for(timeout=MINUTES)
    page.screenshot(path=pictures / "prefect-run.png")
    page.goto(mlflow)
    page.get_by_text("from-the-page").first.wait_for(timeout=MINUTES)
    page.screenshot(path=pictures / "mlflow-table.png")
    row = page.get_by_role("row").filter(has_text="from-the-page").first
    row.locator("i, button, [role=button]").first.click()  # expands the runs of its stages
    page.get_by_text("evaluate").first.wait_for()
    page.screenshot(path=pictures / "mlflow-runs.png")
    assert (folder / "params.yaml").read_text() == before


def stages_of(folder: Path, name: str) -> set[str]:
    """The stages of the MLflow run `name` that ran and did not come from DVC's cache."""
    script = (
        "import json, sys, mlflow\n"
        "mlflow.set_tracking_uri('sqlite:///mlflow.db')\n"
        "runs = mlflow.MlflowClient().search_runs(['1'])\n"
        "parent = next(r.info.run_id for r in runs if r.info.run_name == sys.argv[1])\n"
        "print(json.dumps([r.info.run_name for r in runs if r.data.tags.get('mlflow.parentRunId') == parent]))\n"
    )
    return set(json.loads(run(folder, "python", "-c", script, name).stdout.splitlines()[-1]))


def test_its_result_is_an_experiment_that_can_be_applied(served):
    """After the run above, `dvc exp apply` sets the changed beta, and everything is up to date."""
    folder = served[0]
    assert stages_of(folder, "from-the-page") == {"offline@dpo", "evaluate", "report"}
    report = json.loads((folder / "runs" / "from-the-page" / "report.json").read_text())
    assert report["sources"]["stages"]["offline@dpo"]["params"]["policy.dpo"]["beta"] == 0.25
    run(folder, "dvc", "exp", "apply", "from-the-page")
    assert "beta: 0.25" in (folder / "params.yaml").read_text()
    assert stages_run(run(folder, "dvc", "repro").stdout) == []


def test_report_page_in_a_browser(served, page, pictures):
    """The page logs no error in the console and sends no request."""
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: None if request.url.startswith("file:") else problems.append(request.url))
    page.goto((served[0] / "runs" / "from-the-page" / "report.html").as_uri())
    page.get_by_role("heading", name="Comparison").wait_for()
    page.screenshot(path=pictures / "report.png")
    assert problems == []
