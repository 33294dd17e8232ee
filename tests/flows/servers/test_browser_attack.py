"""An attacker's page in the user's browser while `rlhf up` is running and the user is logged in to both servers.

The page comes from another port of this machine, from another host name, or from a name that the attacker resolves to
127.0.0.1 at our port (DNS rebinding). It tries to read, to write and to run a command.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from chromium import MINUTES, launch
from flow_scratch import PACKAGE, commit, free_port, make_scratch, rlhf, signed_in
from flows.run.worker import TEMPLATE
from flows.servers.services import Services
from flows.servers.settings import login

pytestmark = pytest.mark.browser

NAME = "evil.test"
METRICS = {"win_rate_vs_sft/dpo": 0.625, "kl/dpo": 2.5}

FETCH = """async ([url, method, mode, type, body]) => {
  const headers = type ? {"Content-Type": type} : {};
  try {
    const answer = await fetch(url, {method, mode, headers, body: body ?? undefined, credentials: "include"});
    return {status: answer.status, text: await answer.text()};
  } catch (error) { return {status: 0, text: ""} }
}"""
FORM = """([action, enctype, value]) => new Promise(done => {
  const frame = document.createElement("iframe"), form = document.createElement("form");
  frame.name = "hidden" + Math.random(); document.body.append(frame, form);
  Object.assign(form, {action, enctype, method: "post", target: frame.name});
  const field = document.createElement("input"); form.append(field); field.name = value; field.value = "";
  frame.onload = () => done(true); form.submit();
})"""
SOCKET = """url => new Promise(done => {
  const socket = new WebSocket(url, ["prefect"]);
  socket.onopen = () => done("open"); socket.onerror = () => done("refused");
})"""
FRAME = """address => {
  const frame = document.createElement("iframe"); frame.src = address; document.body.append(frame);
}"""


@dataclass
class Up:
    """A checkout with `rlhf up`, and the two addresses that it printed."""

    root: Path
    services: Services
    prefect: str
    mlflow: str

    @property
    def password(self) -> str:
        return login(self.root).partition(":")[2]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    root = make_scratch(tmp_path_factory.mktemp("attacked"))
    services = Services(free_port(), free_port())
    started = rlhf(
        root,
        "up",
        "--prefect-port",
        str(services.prefect_port),
        "--mlflow-port",
        str(services.mlflow_port),
        COLUMNS="40",
    )
    try:
        assert started.returncode == 0, started.stderr
        shown = dict(line.split(maxsplit=1) for line in started.stdout.splitlines() if "rlhf-login" in line)
        yield Up(root, services, shown["Prefect"], shown["MLflow"])
    finally:
        rlhf(root, "down")


@dataclass
class Attacker:
    """The attacker's server. It also records requests, to show that its pages really send them."""

    port: int
    received: list[tuple[str, str, bytes]] = field(default_factory=list)


@pytest.fixture
def attacker() -> Iterator[Attacker]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(b"<!doctype html><body>prizes</body>")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            known.received.append((self.path, self.headers["Content-Type"].partition(";")[0], body))
            self.answer(b"thanks")

        def answer(self, page: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    known = Attacker(server.server_port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield known
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = launch(playwright, f"--host-resolver-rules=MAP {NAME} 127.0.0.1")
        yield opened
        opened.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A fresh browser profile."""
    opened = browser.new_context(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(2 * MINUTES)
    yield opened
    opened.close()


@pytest.fixture
def logged_in(context: BrowserContext, up: Up) -> BrowserContext:
    """The user's browser, logged in by the addresses that `rlhf up` printed."""
    page = context.new_page()
    page.goto(up.prefect)
    page.get_by_text("1 Deployment").wait_for()
    page.goto(up.mlflow)
    page.get_by_role("button", name="Columns").wait_for()
    return context


def state(up: Up) -> dict[str, Any]:
    """Everything that an attacker could have changed."""
    api = signed_in(up.root, up.services)
    user = httpx.BasicAuth(*login(up.root).split(":"))
    mlflow = f"{up.services.mlflow}/api/2.0/mlflow"
    found = httpx.post(f"{mlflow}/experiments/search", json={"max_results": 100}, auth=user).json()["experiments"]
    return {
        "flow runs": api.post("/flow_runs/count", json={}).json(),
        "deployments": [(d["id"], d["pull_steps"], d["job_variables"]) for d in api.post("/deployments/filter").json()],
        "pool": api.get("/work_pools/rlhf").json()["base_job_template"],
        "experiments": found,
        "artifacts": sorted(str(path) for path in (up.root / "mlartifacts").rglob("*")),
    }


def writes(up: Up, prefect: str, mlflow: str) -> list[tuple[str, str, dict[str, Any]]]:
    """The requests that an attacker would send: method, address and body."""
    command = f"touch {up.root / 'pwned'}"
    deployment = signed_in(up.root, up.services).get("/deployments/name/rlhf/rlhf").json()
    step = {"prefect.deployments.steps.run_shell_script": {"script": command}}
    new = {"name": "x", "flow_id": deployment["flow_id"], "work_pool_name": "rlhf", "pull_steps": [step]}
    one = f"{prefect}/api/deployments/{deployment['id']}"
    return [
        ("POST", f"{one}/create_flow_run", {}),
        ("POST", f"{one}/create_flow_run", {"job_variables": {"command": command}}),
        ("POST", f"{prefect}/api/deployments/", new),
        ("PATCH", one, {"pull_steps": [step]}),
        ("PATCH", f"{prefect}/api/work_pools/rlhf", {"base_job_template": {**TEMPLATE, "variables": {}}}),
        ("POST", f"{mlflow}/api/2.0/mlflow/experiments/create", {"name": "pwned"}),
        ("POST", f"{mlflow}/ajax-api/2.0/mlflow/experiments/create", {"name": "pwned"}),
        ("POST", f"{mlflow}/ajax-api/2.0/mlflow/experiments/set-experiment-tag", {"experiment_id": "1", "key": "x"}),
        ("PUT", f"{mlflow}/api/2.0/mlflow-artifacts/artifacts/pwned", {}),
        ("POST", f"{mlflow}/graphql", {"query": "{ __typename }"}),
    ]


def attack(page: Page, up: Up, prefect: str, mlflow: str) -> None:
    """Try everything from `page`; fail if anything can be read."""
    for address in (
        f"{prefect}/api/admin/settings",
        f"{prefect}/api/deployments/name/rlhf/rlhf",
        f"{prefect}/api/csrf-token?client=x",
        f"{prefect}/ui-settings",
        f"{mlflow}/ajax-api/2.0/mlflow/experiments/get?experiment_id=1",
        f"{mlflow}/",
    ):
        for mode in ("cors", "no-cors"):
            answer = page.evaluate(FETCH, [address, "GET", mode, None, None])
            assert answer["status"] in (0, 401, 403), address
            assert "rlhf" not in answer["text"].replace("`rlhf up`", "")
    for method, address, body in writes(up, prefect, mlflow):
        for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", None):
            for mode in ("cors", "no-cors"):
                answer = page.evaluate(FETCH, [address, method, mode, kind, json.dumps(body)])
                assert answer["status"] in (0, 401, 403), address
        if method == "POST":
            for enctype in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
                assert page.evaluate(FORM, [address, enctype, json.dumps(body)])
    for path in ("events/in", "events/out", "logs/out"):
        assert page.evaluate(SOCKET, f"{prefect.replace('http', 'ws', 1)}/api/{path}") == "refused"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", NAME])
def test_page_of_another_origin_reads_and_writes_nothing(
    up: Up, attacker: Attacker, logged_in: BrowserContext, host: str
) -> None:
    before = state(up)
    page = logged_in.new_page()
    page.goto(f"http://{host}:{attacker.port}/")
    # requests are really sent: the attacker's own server receives them
    own = f"http://127.0.0.1:{attacker.port}/own"
    page.evaluate(FETCH, [own, "POST", "no-cors", "text/plain", "{}"])
    page.evaluate(FORM, [own, "text/plain", "{}"])
    assert [(path, kind) for path, kind, _ in attacker.received] == [("/own", "text/plain")] * 2
    attack(page, up, up.services.prefect, up.services.mlflow)
    attack(page, up, f"http://localhost:{up.services.prefect_port}", f"http://localhost:{up.services.mlflow_port}")
    for address in (f"{up.services.prefect}/deployments", f"{up.services.mlflow}/"):
        page.evaluate(FRAME, address)
        frame = page.query_selector_all("iframe")[-1].content_frame()
        assert frame is not None
        frame.wait_for_url(lambda url: url.startswith("chrome-error:"))  # none of our pages in the attacker's frame
    assert state(up) == before
    assert not (up.root / "pwned").exists()


def test_page_after_dns_rebinding_reads_and_writes_nothing(up: Up, logged_in: BrowserContext) -> None:
    """After DNS rebinding, the attacker's page has our port as its own origin, so no rule on origins applies."""
    before = state(up)
    prefect, mlflow = f"http://{NAME}:{up.services.prefect_port}", f"http://{NAME}:{up.services.mlflow_port}"
    page = logged_in.new_page()
    for address in (prefect, mlflow):
        page.goto(f"{address}/anything")
        assert page.inner_text("body") == "Unknown host."
        attack(page, up, prefect, mlflow)
    assert state(up) == before
    assert not (up.root / "pwned").exists()


def test_user_logs_in_by_hand_and_starts_a_run(up: Up, context: BrowserContext) -> None:
    """The user logs in with Prefect's own form. The run is complete, and the browser stays logged in."""
    (up.root / ".rlhf" / "calls").write_text("")
    page = context.new_page()
    page.goto(f"{up.services.prefect}/deployments")
    page.locator("input").fill(f"rlhf:{up.password}")
    page.get_by_role("button", name="Login").click()
    link = page.locator('a[href*="/deployments/deployment/"]').first
    deployment = str(link.get_attribute("href")).rpartition("/")[2]
    page.close()
    page = context.new_page()
    page.goto(f"{up.services.prefect}/deployments/deployment/{deployment}/run")
    with page.expect_response(lambda answer: answer.url.endswith("/create_flow_run"), timeout=MINUTES) as created:
        page.get_by_role("button", name="Submit").click()
    assert created.value.ok, created.value.text()
    page.goto(f"{up.services.prefect}/runs/flow-run/{created.value.json()['id']}")
    page.get_by_text("Completed", exact=True).first.wait_for(timeout=4 * MINUTES)
    assert sorted((up.root / ".rlhf" / "calls").read_text().split()) == ["dpo", "grpo", "ppo", "prepare", "sft"]
    commit(up.root, "lock")


LOG = """\
import json, sys
from tasks.runtime import tracking
client = tracking.client()
run = client.create_run(tracking.experiment_id(client), run_name="compared", tags={"kind": "pipeline"})
for name, value in json.loads(sys.argv[1]).items():
    client.log_metric(run.info.run_id, name, value)
"""


def test_mlflow_opens_on_the_training_runs_with_their_figures(up: Up, context: BrowserContext) -> None:
    """In a fresh browser, at the address that `rlhf up` printed."""
    environment = {"RLHF_ROOT": str(up.root), "PYTHONPATH": str(PACKAGE), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", LOG, json.dumps(METRICS)]
    subprocess.run(command, cwd=PACKAGE, env=environment, check=True, capture_output=True)
    page = context.new_page()
    page.goto(up.mlflow)
    page.get_by_text("compared").first.wait_for()
    for column in METRICS:
        page.get_by_role("columnheader", name=column).first.wait_for()
    page.get_by_text("0.625").first.wait_for()
    assert page.get_by_text("Ask questions about your").or_(page.get_by_text("Welcome to MLflow")).count() == 0
    assert "/runs?" in page.url
    assert up.password not in page.url
