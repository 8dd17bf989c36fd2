"""A file behind a URL on bad days: it is had whole, as it is there, or not at all."""

import http.server
import threading
from pathlib import Path

import pytest

from unet_engine.errors import InputError
from unet_engine.storage import fetching
from unet_engine.storage.fetching import fetched

DATA = bytes(range(256)) * 64


class Server:
    """`answers` by path: what the server does, given the handler and how often it was asked."""

    def __init__(self):
        self.answers, self.asked, self.data = {}, [], DATA
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.send_error(405)

            def do_GET(self):
                path = self.path.partition("?")[0]
                owner.asked.append(path)
                owner.answers.get(path, whole)(self, owner.data, owner.asked.count(path))

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def whole(answer, data, _count, *, length=None, tag=None):
    answer.send_response(200)
    if length is not False:
        answer.send_header("Content-Length", str(length or len(data)))
    if tag is not False:
        answer.send_header("ETag", tag or f'"{hash(data)}"')
    answer.end_headers()
    answer.wfile.write(data)


def sent_on(to):
    def answer(answer, _data, _count):
        answer.send_response(302)
        answer.send_header("Location", to)
        answer.send_header("Content-Length", "0")
        answer.end_headers()

    return answer


def at_times(first, then=whole, times=2):
    return lambda answer, data, count: (first if count <= times else then)(answer, data, count)


def busy(answer, _data, _count):
    answer.send_response(503)
    answer.send_header("Content-Length", "0")
    answer.end_headers()


def cut(answer, data, _count):
    whole(answer, data[: len(data) // 2], 0, length=len(data), tag=f'"{hash(data)}"')


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNET_ENGINE_STORE_SECONDS", "0.6")
    monkeypatch.setattr("unet_engine.storage.patience.FIRST_PAUSE", 0.01)
    fetching._is_another.cache_clear()
    server = Server()
    yield server
    server.close()


@pytest.mark.parametrize(
    "answer", [at_times(busy), at_times(cut), sent_on("/elsewhere"), lambda *a: whole(*a, length=False, tag=False)]
)
def test_what_passes_is_gone_by_the_next_try(server, answer):
    server.answers["/net.onnx"] = answer
    assert Path(fetched(f"{server.url}/net.onnx")).read_bytes() == DATA


def rewritten(answer, data, count):
    whole(answer, data, count, tag=f'"{count}"')


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (busy, "503"),
        (cut, "cut off"),
        (sent_on("/net.onnx"), "sends on without end"),
        (sent_on("file:///etc/passwd"), "sends on to what is no web address"),
        (rewritten, "was changed while it was fetched"),
        (lambda a, d, c: whole(a, b"\n<!DOCTYPE html><html>log in</html>", c), "a web page and no model"),
        (lambda a, d, c: whole(a, b"version https://git-lfs.github.com/spec/v1\noid", c), "a pointer of Git LFS"),
        (lambda a, d, c: whole(a, d * 400, c, length=False), "more than"),
        (lambda a, d, c: whole(a, d, c, length=10**9), "more than"),
    ],
)
def test_what_does_not_is_one_line_and_leaves_nothing(server, tmp_path, answer, words):
    server.answers["/net.onnx"] = answer
    with pytest.raises(InputError, match=words) as said:
        fetched(f"{server.url}/net.onnx", most=2**22)
    assert "\n" not in str(said.value)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    server.answers.clear()
    assert Path(fetched(f"{server.url}/net.onnx", most=2**22)).read_bytes() == DATA


def test_another_file_there_is_told_and_the_copy_taken(server):
    url, told = f"{server.url}/net.onnx", []
    path = Path(fetched(url))
    fetched(url, told.append)
    assert told == []
    fetching._is_another.cache_clear()
    server.data = DATA[::-1]
    for _ in range(2):
        assert Path(fetched(url, told.append)).read_bytes() == DATA
    assert f"{url} is another file by now" in told[0]
    assert str(path) in told[0]
    path.unlink()
    assert Path(fetched(url)).read_bytes() == server.data


def test_without_a_network_the_copy_is_taken_in_silence(server):
    url, told = f"{server.url}/net.onnx", []
    fetched(url)
    server.close()
    assert Path(fetched(url, told.append)).read_bytes() == DATA
    assert told == []
