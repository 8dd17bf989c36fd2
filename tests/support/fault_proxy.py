"""A proxy in front of a store's server that answers what networks and stores answer on bad days.

It forwards each request as it came, and does what `fault` says of it: nothing, or one of `FAULTS`. What was asked, and
what came of it, is kept in `seen`.
"""

import http.client
import http.server
import socketserver
import threading
import time
from dataclasses import dataclass

FAULTS = ("500", "503", "429", "cut", "short", "stall", "lost", "drop", "endless", "long")
"""403 and expired are refusals, which are not asked for again but once."""


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    span: str | None
    status: str


class FaultProxy:
    """`fault(number, method, path)` names what goes wrong with a request; None for nothing."""

    def __init__(self, host, port, fault=lambda number, method, path: None, latency=0.0, stall=2.0):
        self.upstream, self.fault, self.latency, self.stall = (host, port), fault, latency, stall
        self.seen, self.faults = [], []
        self._lock, self._number = threading.Lock(), 0
        proxy = self

        class Handler(_Handler):
            owner = proxy

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                """Clients hang up."""

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def next_fault(self, method, path):
        with self._lock:
            self._number += 1
            return self.fault(self._number, method, path)

    def gets(self, ending=""):
        return [one for one in self.seen if one.method == "GET" and ending in one.path]

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _answer(self):
        owner, length = self.owner, int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunked()
        fault = owner.next_fault(self.command, self.path)
        time.sleep(owner.latency)
        owner.seen.append(Seen(self.command, self.path, self.headers.get("Range"), fault or "passed"))
        if fault:
            owner.faults.append((fault, self.command, self.path))
        if fault in _INSTEAD:
            _INSTEAD[fault](self)
            return
        status, headers, data = self._forwarded(body)
        if fault == "lost":
            self._hang_up()
        elif self.command == "HEAD" or not data:
            self._send(status, headers, b"", int(dict(headers).get("content-length", 0)))
        else:
            _BODIES.get(fault, _Handler._whole)(self, status, headers, data)

    # --- bodies ---

    def _whole(self, status, headers, data):
        self._send(status, headers, data, len(data))

    def _cut(self, status, headers, data):
        self._send(status, headers, data[: len(data) // 2], len(data))
        self._hang_up()

    def _stall(self, status, headers, data):
        self._send(status, headers, data[: len(data) // 2], len(data))
        time.sleep(self.owner.stall)
        self._hang_up()

    def _short(self, status, headers, data):
        self._send(status, headers, data[: len(data) // 2], len(data) // 2)

    def _long(self, status, headers, data):
        self._send(status, headers, data, len(data) + 7)
        self._hang_up()

    def _endless(self, status, headers, _):
        """Of one length in words and another in deed."""
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        for name, value in headers:
            if name not in ("content-length", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        for _ in range(2**12):
            self.wfile.write(b"10000\r\n" + b"\0" * 2**16 + b"\r\n")
        self._hang_up()

    # --- how ---

    def _forwarded(self, body):
        up = http.client.HTTPConnection(*self.owner.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
        if body is not None:
            headers["Content-Length"] = str(len(body))
        up.request(self.command, self.path, body, headers)
        answer = up.getresponse()
        data = answer.read()
        up.close()
        gone = ("transfer-encoding", "connection", "keep-alive")
        return answer.status, [(k.lower(), v) for k, v in answer.getheaders() if k.lower() not in gone], data

    def _chunked(self):
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _send(self, status, headers, data, length):
        self.send_response(status)
        for name, value in headers:
            if name not in ("content-length", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _refuse(self, status, code):
        data = f"<Error><Code>{code}</Code><Message>of the tests</Message></Error>".encode()
        headers = [("content-type", "application/xml")] + ([("retry-after", "0")] if status in (429, 503) else [])
        self._send(status, headers, b"" if self.command == "HEAD" else data, len(data))

    def _hang_up(self):
        self.close_connection = True


_INSTEAD = {
    "drop": _Handler._hang_up,
    "500": lambda self: self._refuse(500, "InternalError"),
    "503": lambda self: self._refuse(503, "SlowDown"),
    "429": lambda self: self._refuse(429, "TooManyRequests"),
    "403": lambda self: self._refuse(403, "AccessDenied"),
    "expired": lambda self: self._refuse(403, "ExpiredToken"),
}
_BODIES = {
    "cut": _Handler._cut,
    "stall": _Handler._stall,
    "short": _Handler._short,
    "long": _Handler._long,
    "endless": _Handler._endless,
}
