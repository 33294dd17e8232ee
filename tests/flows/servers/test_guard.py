"""Access control on a guard around a small application; the password, the ports, and credentials in clones.

See test_flows_slow.py for the real servers and test_browser_attack.py for a real browser.
"""

import base64
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from flow_scratch import commit, free_port, make_scratch, rlhf
from flows.run.changes import Changes
from flows.run.workspace import open_workspace
from flows.servers import services
from flows.servers.guard import Guard
from flows.servers.serve import view
from flows.servers.settings import login, set_environment
from rlhf_core.common.errors import UserError

OWN = "http://127.0.0.1:4200"
LOGIN = "rlhf:secret"


async def hello(request: object) -> PlainTextResponse:
    return PlainTextResponse("reached")


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("reached")
    await socket.close()


APP = Starlette(
    routes=[Route("/{path:path}", hello, methods=["GET", "POST", "OPTIONS"]), WebSocketRoute("/socket", talk)]
)
PREFECT, MLFLOW = Guard(APP, 4200, "the login page"), Guard(APP, 4200, "the login page", LOGIN)


def basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize("guard", [PREFECT, MLFLOW], ids=["prefect", "mlflow"])
@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 200),  # a program
        ("POST", {}, 200),
        ("POST", {"Host": "localhost:4200", "Origin": "http://localhost:4200", "Sec-Fetch-Site": "same-origin"}, 200),
        ("POST", {"Host": "127.0.0.1:4200", "Origin": "http://localhost:4200", "Sec-Fetch-Site": "cross-site"}, 200),
        ("GET", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),  # typed address
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link
        ("GET", {"Host": "evil.test:4200"}, 403),  # DNS rebinding
        ("GET", {"Host": "127.0.0.1:4201"}, 403),
        ("GET", {"Host": "127.0.0.1"}, 403),
        ("POST", {"Host": "evil.test:4200", "Origin": "http://evil.test:4200", "Sec-Fetch-Site": "same-origin"}, 403),
        ("POST", {"Origin": "http://127.0.0.1:4201", "Sec-Fetch-Site": "same-site"}, 403),  # another port
        ("POST", {"Origin": "http://localhost:4201"}, 403),
        ("POST", {"Origin": "https://127.0.0.1:4200"}, 403),
        ("POST", {"Origin": "null"}, 403),  # a sandboxed frame
        ("POST", {"Origin": ""}, 403),
        ("GET", {"Origin": "http://evil.test"}, 403),
        ("OPTIONS", {"Origin": "http://evil.test", "Access-Control-Request-Method": "POST"}, 403),
        ("POST", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),  # a form
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),  # <script src>
    ],
)
def test_only_own_pages_and_programs_are_allowed(
    guard: Guard, method: str, headers: dict[str, str], status: int
) -> None:
    client = TestClient(guard, base_url=OWN)
    answer = client.request(method, "/api/anything", headers={**basic(LOGIN), **headers})
    assert answer.status_code == status
    assert ("reached" in answer.text) == (status == 200)
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("headers", [{}, basic("rlhf:"), basic("rlhf:secreT"), basic("secret"), {"Authorization": "é"}])
def test_mlflow_requires_the_password(headers: dict[str, str]) -> None:
    client = TestClient(MLFLOW, base_url=OWN)
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    for method, path in (("GET", "/"), ("POST", "/api/2.0/x"), ("POST", "/graphql"), ("GET", "/rlhf-login")):
        answer = client.request(method, path, headers=encoded)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert client.get("/health", headers=encoded).status_code == 200


def test_both_show_the_login_page() -> None:
    assert TestClient(PREFECT, base_url=OWN).get("/rlhf-login").text == "the login page"
    assert TestClient(MLFLOW, base_url=OWN).get("/rlhf-login", headers=basic(LOGIN)).text == "the login page"


def test_a_websocket_of_another_origin_is_rejected() -> None:
    client = TestClient(PREFECT, base_url=OWN)
    with client.websocket_connect("ws://127.0.0.1:4200/socket", headers={"Origin": OWN}) as socket:
        assert socket.receive_text() == "reached"
    for headers in ({"Origin": "http://127.0.0.1:4201"}, {"Host": "evil.test:4200"}):
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("ws://127.0.0.1:4200/socket", headers=headers),
        ):
            pass


# The password


def test_password_is_created_once_and_readable_only_by_its_owner(tmp_path: Path) -> None:
    first = login(tmp_path)
    user, password = first.split(":")
    assert user == "rlhf"
    assert len(password) == 32  # 24 random bytes
    assert login(tmp_path) == first
    path = tmp_path / ".rlhf" / "password"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert login(tmp_path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["password"]
    assert login(make_scratch(tmp_path / "other")) != first


def test_processes_that_start_together_agree_on_the_password(tmp_path: Path) -> None:
    code = "import sys, pathlib; from flows.servers.settings import login; print(login(pathlib.Path(sys.argv[1])))"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert {process.communicate()[0].strip() for process in started} == {login(tmp_path)}


def test_an_empty_password_is_rejected(tmp_path: Path) -> None:
    login(tmp_path)
    (tmp_path / ".rlhf" / "password").write_text("\n")
    with pytest.raises(UserError, match=r"password is empty\.\nDelete the file"):
        login(tmp_path)


@pytest.fixture
def restored_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("restored_environment")
def test_every_server_and_client_has_the_password(tmp_path: Path) -> None:
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["PREFECT_API_AUTH_STRING"] = "another:one"
    set_environment(tmp_path)
    assert os.environ["PREFECT_SERVER_API_AUTH_STRING"] == login(tmp_path)
    assert os.environ["PREFECT_API_AUTH_STRING"] == login(tmp_path)
    assert os.environ["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    assert "*" not in os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"]


@pytest.mark.usefixtures("restored_environment")
def test_the_users_own_server_is_not_sent_the_password(tmp_path: Path) -> None:
    os.environ |= {"PREFECT_API_URL": "http://10.0.0.1:4200/api", "PREFECT_API_AUTH_STRING": "another:one"}
    set_environment(tmp_path)
    assert os.environ["PREFECT_API_AUTH_STRING"] == "another:one"


# Ports


@pytest.mark.parametrize(
    ("ports", "lines"),
    [
        (
            ["--prefect-port", "70000"],
            ["error: --prefect-port 70000 is out of range.", "Choose a port from 1024 to 65535."],
        ),
        (["--mlflow-port", "0"], ["error: --mlflow-port 0 is out of range.", "Choose a port from 1024 to 65535."]),
        (["--mlflow-port=-1"], ["error: --mlflow-port -1 is out of range.", "Choose a port from 1024 to 65535."]),
        (
            ["--mlflow-port", "4200"],
            [
                "error: Prefect and MLflow cannot both listen on port 4200.",
                "Choose two ports: rlhf up --prefect-port 4200 --mlflow-port 5000",
            ],
        ),
    ],
)
def test_invalid_ports_are_reported_in_two_lines(tmp_path: Path, ports: list[str], lines: list[str]) -> None:
    failed = rlhf(make_scratch(tmp_path), "up", *ports)
    assert failed.returncode == 1
    assert failed.stderr.splitlines() == lines


def test_ports_other_than_the_running_ones_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = services.Services(free_port(), free_port())
    monkeypatch.setattr(services, "find", lambda root: running)
    assert services.up(tmp_path) == running
    assert services.up(tmp_path, running.prefect_port, running.mlflow_port) == running
    assert services.up(tmp_path, mlflow_port=running.mlflow_port) == running
    for ports in ({"prefect_port": running.prefect_port + 1}, {"mlflow_port": running.mlflow_port + 1}):
        with pytest.raises(UserError) as failed:
            services.up(tmp_path, **ports)
        assert str(failed.value).splitlines() == [
            f"The services are already running: Prefect on port {running.prefect_port}, "
            f"MLflow on port {running.mlflow_port}.",
            "Stop them with `rlhf down`, then start them on other ports.",
        ]


# MLflow's view


def test_view_has_the_figures_of_each_policy_as_columns() -> None:
    shown = json.loads(view(["ppo", "dpo"]))
    columns = [f"metrics.`{name}`" for name in ("win_rate_vs_sft/ppo", "win_rate_vs_sft/dpo", "kl/ppo", "kl/dpo")]
    assert shown["selectedColumns"] == shown["columnOrder"] == columns
    assert list(shown["columnWidths"]) == columns


# Credentials in .dvc/config.local


def config_of(checkout: Path, key: str) -> str:
    command = [sys.executable, "-m", "dvc", "config", key]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_failed_run_keeps_no_copy_of_credentials(tmp_path: Path) -> None:
    root = make_scratch(tmp_path)
    with (root / ".dvc" / "config").open("a") as config:
        config.write("['remote \"store\"']\n    url = https://example.invalid/store\n    user = nobody\n")
    commit(root, "remote")
    (root / ".dvc" / "config.local").write_text("['remote \"store\"']\n    user = me\n    password = hunter2\n")
    with (
        pytest.raises(ZeroDivisionError),
        open_workspace(root, Changes(overrides={"sft.learning_rate": 0.4}).resolve(root)) as work,
    ):
        # inside the run the remote works, and the user's own settings take precedence as in the user's checkout
        assert config_of(work.checkout, "remote.store.password") == "hunter2"
        assert config_of(work.checkout, "remote.store.user") == "me"
        raise ZeroDivisionError
    assert (work.checkout / "params.yaml").is_file()
    kept = [path for path in (root / "runs").rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(kept) > 5
    assert not [path for path in kept if b"hunter2" in path.read_bytes()]


@pytest.mark.parametrize("cache", [None, "../own_cache", "../../outside", "/absolute"])
def test_a_clone_shares_the_cache_at_any_path(tmp_path: Path, cache: str | None) -> None:
    root = make_scratch(tmp_path / "checkout")
    place = {None: root / ".dvc/cache", "../own_cache": root / "own_cache"}.get(cache, tmp_path / "outside")
    if cache is not None:
        text = str(place) if cache == "/absolute" else cache
        (root / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {text}\n")
    with open_workspace(root, Changes(overrides={"sft.learning_rate": 0.4}).resolve(root)) as work:
        (work.checkout / "thing").write_text("kept once")
        subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "thing"], cwd=work.checkout, check=True)
    held = [path.read_text() for path in place.rglob("*") if path.is_file() and "files/md5" in str(path)]
    assert held == ["kept once"]


def test_a_cache_that_cannot_be_shared_is_an_error_and_nothing_is_deleted(tmp_path: Path) -> None:
    root = make_scratch(tmp_path / "a" / "b" / "checkout")
    (root / ".dvc" / "config.local").write_text("[cache]\n    dir = ../../../../mine\n")
    mine = root / "mine"  # the target of that path from runs/NAME/checkout/.dvc
    mine.mkdir()
    (mine / "thesis").touch()
    with (
        pytest.raises(UserError, match=r"points to .*\nSet the absolute path: dvc cache dir --local"),
        open_workspace(root, Changes(overrides={"sft.learning_rate": 0.4}).resolve(root)),
    ):
        pass
    assert (mine / "thesis").exists()
