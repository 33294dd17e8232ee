"""Access control for both servers: which requests may reach them.

Listening on 127.0.0.1 keeps other machines out, but not the pages that the user's own browser opens. The headers
`Origin` and `Sec-Fetch-Site` reveal a page from another origin, including another port of this machine. The header
`Host` reveals a page whose host name resolves to 127.0.0.1 (DNS rebinding). Prefect checks its own password. MLflow
accepts requests from every port of this machine and needs a user database for passwords, so its password is checked
here.
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
    """ASGI middleware that guards one application.

    Args:
        app: Prefect's or MLflow's application.
        port: The port of the server.
        login_page: HTML served at LOGIN. It logs the browser in and redirects to the application's own page.
        login: `user:password` required for every request except the health check. None: the application
            checks its own password.
    """

    def __init__(self, app: ASGIApp, port: int, login_page: str, login: str | None = None) -> None:
        self.app, self.login_page, self.login = app, login_page, login
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the application, or reject it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)

        async def unframed(message: Message) -> None:
            if message["type"] == "http.response.start":  # pages from other origins must not embed ours
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
        """Return the response to send instead of the application's, None if the request may pass."""
        headers = Headers(scope=scope)
        if headers.get("host") not in self.hosts:
            return PlainTextResponse("Unknown host.", 403)
        if not self._is_own(scope, headers):
            return PlainTextResponse("Refused: this request comes from another origin.", 403)
        if self.login is not None and scope["path"] != "/health" and not _brings(headers, self.login):
            return PlainTextResponse("Log in with the user name and password that `rlhf up` prints.", 401, ASK)
        return HTMLResponse(self.login_page) if scope["path"] == LOGIN else None

    def _is_own(self, scope: Scope, headers: Headers) -> bool:
        """Return whether a request comes from our own pages, from a program, or from a link that a person followed."""
        if "origin" in headers:
            return headers["origin"] in self.origins
        if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            return True
        return scope["type"] == "http" and scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"


def _brings(headers: Headers, login: str) -> bool:
    """Return whether the header `Authorization` contains this login."""
    expected = "Basic " + base64.b64encode(login.encode()).decode()
    return hmac.compare_digest(headers.get("authorization", "").encode(), expected.encode())
