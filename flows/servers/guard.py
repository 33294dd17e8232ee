"""Access control in front of both servers: who may send them a request at all.

Listening on 127.0.0.1 keeps other machines out, not the pages that the user's own browser opens. A page of
another origin, also one of another port of this machine, is known by the headers `Origin` and
`Sec-Fetch-Site`; one that has made its own name point to 127.0.0.1 (DNS rebinding) by the header `Host`.
Prefect checks its password itself; MLflow's own checks let every port of this machine through and know no
password without a user database, so its password is checked here.
"""

import base64
import hmac
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.servers.services import LOGIN

ASK = {"WWW-Authenticate": 'Basic realm="rlhf", charset="UTF-8"'}


class Guard:
    """An ASGI application around the one that it guards.

    Args:
        app: Prefect's or MLflow's application.
        port: The port that it is served on.
        login_page: What LOGIN shows: a page that logs the browser in and goes on to the application's own.
        login: `user:password` that every request but the health check has to bring; None: the application asks.
    """

    def __init__(self, app: ASGIApp, port: int, login_page: str, login: str | None = None) -> None:
        self.app, self.login_page, self.login = app, login_page, login
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or answer it in the application's place."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)

        async def unframed(message: Message) -> None:
            if message["type"] == "http.response.start":  # no page of another origin may show ours in a frame
                MutableHeaders(scope=message)["X-Frame-Options"] = "SAMEORIGIN"
            await send(message)

        answer = self._answer(scope)
        if answer is None:
            await self.app(scope, receive, unframed)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await answer(scope, receive, unframed)

    def _answer(self, scope: Scope) -> Any:
        """What to answer in the application's place, None where the request may pass."""
        headers = Headers(scope=scope)
        if headers.get("host") not in self.hosts:
            return PlainTextResponse("Unknown host.", 403)
        if not self._is_own(scope, headers):
            return PlainTextResponse("Refused: a request of another origin.", 403)
        if self.login is not None and scope["path"] != "/health" and not _brings(headers, self.login):
            return PlainTextResponse("Log in with the user and password that `rlhf up` shows.", 401, ASK)
        return HTMLResponse(self.login_page) if scope["path"] == LOGIN else None

    def _is_own(self, scope: Scope, headers: Headers) -> bool:
        """Whether a request comes from our own pages, from a program, or from a person who follows a link."""
        if "origin" in headers:
            return headers["origin"] in self.origins
        if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            return True
        return scope["type"] == "http" and scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"


def _brings(headers: Headers, login: str) -> bool:
    """Whether the header `Authorization` holds this login."""
    expected = "Basic " + base64.b64encode(login.encode()).decode()
    return hmac.compare_digest(headers.get("authorization", "").encode(), expected.encode())
