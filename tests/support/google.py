"""Google Cloud Storage's XML protocol, as far as obstore speaks it, with an object's generations: what its emulators do
not speak, and S3's stand-ins do not know. By its reference (cloud.google.com/storage/docs/xml-api/reference-headers)."""

import http.server
import threading
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import md5
from itertools import count
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

MATCH, GENERATION, COPY = "x-goog-if-generation-match", "x-goog-generation", "x-goog-copy-source"


class Google:
    """Objects by ``bucket/key``: their generation and their bytes."""

    def __init__(self):
        self.objects, self.seen = {}, []
        self._lock, self._generations = threading.Lock(), count(1700000000000001)

    def put(self, name, data, match=None):
        """The new generation; None where the one that is there is not that which is asked for, 0 being none."""
        with self._lock:
            if match is not None and int(match) != self.objects.get(name, (0, b""))[0]:
                return None
            self.objects[name] = next(self._generations), data
            return self.objects[name][0]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    google: Google

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = urlsplit(self.path)
        name = unquote(parts.path).strip("/")
        self.google.seen.append((self.command, name, dict(self.headers)))
        if "/" not in name:
            self._list(name, {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()})
        elif name not in self.google.objects:
            self._say(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._give(*self.google.objects[name])

    do_HEAD = do_GET

    def do_PUT(self):
        name = unquote(urlsplit(self.path).path).strip("/")
        self.google.seen.append((self.command, name, dict(self.headers)))
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if origin := self.headers.get(COPY):
            found = self.google.objects.get(unquote(origin).strip("/"))
            if found is None:
                self._say(404, b"<Error><Code>NoSuchKey</Code></Error>")
                return
            data = found[1]
        generation = self.google.put(name, data, self.headers.get(MATCH))
        if generation is None:
            self._say(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            self._say(200, b"", self._about(generation, data))

    def do_DELETE(self):
        name = unquote(urlsplit(self.path).path).strip("/")
        self.google.seen.append((self.command, name, dict(self.headers)))
        self._say(204 if self.google.objects.pop(name, None) else 404, b"")

    def _about(self, generation, data):
        return {
            "ETag": f'"{md5(data).hexdigest()}"',
            GENERATION: str(generation),
            "Last-Modified": formatdate(usegmt=True),
        }

    def _give(self, generation, data):
        about, whole = self._about(generation, data), len(data)
        span = self.headers.get("Range", "").removeprefix("bytes=")
        if not span:
            self._say(200, data, about)
            return
        lo, _, hi = span.partition("-")
        start, stop = (int(lo), min(int(hi or whole - 1), whole - 1)) if lo else (max(0, whole - int(hi)), whole - 1)
        self._say(206, data[start : stop + 1], about | {"Content-Range": f"bytes {start}-{stop}/{whole}"})

    def _list(self, bucket, asked):
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        found, folders = [], set()
        for name, (_, data) in sorted(self.google.objects.items()):
            key = name.removeprefix(f"{bucket}/")
            rest = key.removeprefix(prefix)
            if not name.startswith(f"{bucket}/{prefix}"):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                found.append(
                    f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                    f"<ETag>&quot;{md5(data).hexdigest()}&quot;</ETag><Size>{len(data)}</Size></Contents>"
                )
        found += [f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders)]
        self._say(200, f"<ListBucketResult>{''.join(found)}</ListBucketResult>".encode())

    def _say(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def google_cloud(monkeypatch):
    """A server that the environment names: what lies there."""
    google = Google()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"google": google}))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    try:
        yield google
    finally:
        server.shutdown()
        server.server_close()
