"""A token in front of a Dask server's web pages: whoever does not bring it is answered 403, on every route and for
websockets too.

For clusters that a run starts, `guard` is called by it. For a scheduler or worker of one's own::

    UNET_ENGINE_DASHBOARD_TOKEN=secret dask scheduler --preload unet_engine.cluster.token_gate

The token comes as ``?token=``, as ``Authorization: Bearer``, or not at all once a browser has the cookie that the first
good request sets. The cookie holds a secret of its own, so the token does not lie in the browser's store. The token
never appears in what Dask logs.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Awaitable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from tornado import httputil

VARIABLE = "UNET_ENGINE_DASHBOARD_TOKEN"

_REFUSAL = b"403: this page asks for its token; append ?token=... to the address\n"


def dask_setup(server: Any) -> None:
    """Called by ``--preload unet_engine.cluster.token_gate``. A server without a token to ask for closes its pages."""
    guard(server.http_server, os.environ.get(VARIABLE) or secrets.token_urlsafe())


def guard(http_server: Any, token: str) -> None:
    """Put the gate between a tornado `HTTPServer` and its application. Requests that are being answered are not
    affected."""
    port = getattr(http_server, "port", 0)
    http_server.request_callback = Gate(http_server.request_callback, token, port)


def guarded_scheduler(token: str | None) -> Any:
    """Dask's scheduler with its pages behind `token` from the first request on, or with None, without pages."""
    from distributed import Scheduler

    class GuardedScheduler(Scheduler):  # type: ignore[misc]
        def start_http_server(self, *args: Any, **options: Any) -> None:
            super().start_http_server(*args, **options)
            if token is None:
                self.http_server.stop()
            else:
                guard(self.http_server, token)

    return GuardedScheduler


class Gate(httputil.HTTPServerConnectionDelegate):
    """Lets a request through to `application` once its headers name the token. Nothing of the body is kept before
    that."""

    def __init__(self, application: httputil.HTTPServerConnectionDelegate, token: str, port: int) -> None:
        if not token.strip():
            raise ValueError("a dashboard's token must not be empty")
        self._application = application
        self._token = token.encode()
        self._pass = secrets.token_urlsafe()
        # browsers share cookies between the ports of a host: two dashboards must not overwrite each other's
        self._cookie = f"unet_engine_{port}"

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        return _Request(self, server_conn, request_conn)

    def on_close(self, server_conn: object) -> None:
        self._application.on_close(server_conn)

    def knows(self, headers: httputil.HTTPHeaders) -> bool:
        """Whether the request brings the cookie."""
        try:
            morsel = SimpleCookie(headers.get("Cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return morsel is not None and _same(morsel.value, self._pass.encode())

    def admits(self, path: str, headers: httputil.HTTPHeaders) -> bool:
        """Whether the request brings the token."""
        given = parse_qs(path.partition("?")[2]).get("token", [])
        scheme, _, bearer = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given.append(bearer.strip())
        return any(_same(text, self._token) for text in given)

    @property
    def cookie(self) -> str:
        return f"{self._cookie}={self._pass}; Path=/; HttpOnly; SameSite=Strict"

    def through(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        return self._application.start_request(server_conn, request_conn)


class _Request(httputil.HTTPMessageDelegate):
    """One request: decided when its headers are there, then handed on or refused."""

    def __init__(self, gate: Gate, server_conn: object, request_conn: httputil.HTTPConnection) -> None:
        self._gate, self._server_conn, self._conn = gate, server_conn, request_conn
        self._inner: httputil.HTTPMessageDelegate | None = None

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> Awaitable[None] | None:
        conn = self._conn
        if not self._gate.knows(headers):
            if not self._gate.admits(getattr(start_line, "path", ""), headers):
                self._refuse(getattr(start_line, "method", ""))
                return None
            if "Upgrade" not in headers:  # a websocket takes its connection over, which a wrapped one would not let it
                conn = _WithCookie(conn, self._gate.cookie)
        self._inner = self._gate.through(self._server_conn, conn)
        return self._inner.headers_received(start_line, headers)

    def _refuse(self, method: str) -> None:
        headers = httputil.HTTPHeaders(
            {"Content-Type": "text/plain", "Content-Length": str(len(_REFUSAL)), "Connection": "close"}
        )
        body = None if method == "HEAD" else _REFUSAL
        self._conn.write_headers(httputil.ResponseStartLine("HTTP/1.1", 403, "Forbidden"), headers, body)
        self._conn.finish()

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._inner.data_received(chunk) if self._inner else None

    def finish(self) -> None:
        if self._inner:
            self._inner.finish()

    def on_connection_close(self) -> None:
        if self._inner:
            self._inner.on_connection_close()


class _WithCookie(httputil.HTTPConnection):
    """A connection that adds the cookie to the answer."""

    def __init__(self, conn: httputil.HTTPConnection, cookie: str) -> None:
        self._conn, self._cookie = conn, cookie

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    def write_headers(self, start_line: Any, headers: httputil.HTTPHeaders, chunk: bytes | None = None) -> Any:
        headers.add("Set-Cookie", self._cookie)
        return self._conn.write_headers(start_line, headers, chunk)

    def write(self, chunk: bytes) -> Any:
        return self._conn.write(chunk)

    def finish(self) -> None:
        self._conn.finish()


def _same(given: str, secret: bytes) -> bool:
    """Compared in a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), secret)
