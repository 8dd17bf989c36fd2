"""A web server of the tests: a folder by HTTP, with or without ranges, lengths and heads."""

import http.server
import re
import socketserver
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit


class WebServer:
    """`folder` at ``/``. ranges: whether parts of files are given; lengths: whether answers say how long they are;
    query: what has to stand behind the ``?`` of every request, else it is refused; heads: whether HEAD is known;
    headers: more of each answer."""

    def __init__(self, folder, *, ranges=True, lengths=True, query=None, heads=True, headers=None):
        self.seen = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                if not heads:
                    return self._send(405, b"")
                return self._answer()

            def do_GET(self):
                return self._answer()

            def _answer(self):
                where = urlsplit(self.path)
                owner.seen.append((self.command, self.path, self.headers.get("Range")))
                if query is not None and where.query != query:
                    return self._send(403, b"not signed")
                place = Path(folder, unquote(where.path).lstrip("/"))
                if place.is_dir():
                    names = [p.name + "/" * p.is_dir() for p in sorted(place.iterdir())]
                    return self._send(200, "".join(f'<a href="{n}">{n}</a>\n' for n in names).encode(), "text/html")
                if not place.is_file():
                    return self._send(404, b"<html>nothing here</html>")
                data = place.read_bytes()
                span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
                if ranges and span:
                    first, last = span.groups()
                    lo = int(first) if first else max(0, len(data) - int(last))
                    hi = min(int(last) + 1 if first and last else len(data), len(data))
                    if lo >= len(data):
                        return self._send(416, b"")
                    return self._send(206, data[lo:hi], span=f"bytes {lo}-{hi - 1}/{len(data)}")
                return self._send(200, data)

            def _send(self, status, data, kind="application/octet-stream", span=None):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                if span:
                    self.send_header("Content-Range", span)
                for header, said in (headers or {}).items():
                    self.send_header(header, said)
                if lengths or self.command == "HEAD":
                    self.send_header("Content-Length", str(len(data)))
                else:
                    self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if self.command == "HEAD":
                    return
                if lengths:
                    self.wfile.write(data)
                else:
                    self.wfile.write((b"%x\r\n" % len(data) + data + b"\r\n" if data else b"") + b"0\r\n\r\n")

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                """Clients hang up."""

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self):
        return self._server.server_address[:2]

    @property
    def url(self):
        return "http://{}:{}".format(*self.address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
