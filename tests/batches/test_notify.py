"""`--notify`: one message however a command ends, and nothing about it changes the run."""

import http.server
import json
import shlex
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from support.command_line import COMMAND, cli
from support.shares import share
from support.volumes import fake_model, make_volume
from unet_engine.batches import notify
from unet_engine.commands.schemas import SCHEMAS
from unet_engine.errors import SettingsError

SECRET = "T0123456789abcdefXYZ"


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def scan(tmp_path):
    return make_volume(tmp_path / "scan.zarr", np.ones((8, 8, 8), np.float32))


@pytest.fixture
def model(tmp_path):
    return fake_model(tmp_path)


class Listener(http.server.ThreadingHTTPServer):
    def __init__(self, answers):
        self.seen, self.answers = [], list(answers)
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def bodies(self):
        return [json.loads(body) for _, _, body in self.seen]

    @property
    def message(self):
        """The only one, which is as its schema says."""
        (body,) = self.bodies
        jsonschema.validate(body, SCHEMAS["message"](), jsonschema.Draft202012Validator)
        return body


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, dict(self.headers), body))
        answer = self.server.answers.pop(0) if self.server.answers else 204
        if callable(answer):
            answer = answer(self)
        if answer is None:
            return
        self.send_response(answer)
        if 300 <= answer < 400:
            self.send_header("Location", f"{self.server.url}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_):
        pass


@contextmanager
def listening(*answers):
    server = Listener(answers)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_a_run_that_ends_well_says_so_once(scan, model):
    with listening() as server:
        said = cli("run", "--in", scan, "--model", model, "--out", "out.zarr", "--notify", f"{server.url}/hook")
    assert said.code == 0
    ((path, headers, _),) = server.seen
    body = server.message
    assert path == "/hook"
    assert headers["Content-Type"] == "application/json"
    assert (body["status"], body["exit_code"], body["error"]) == ("done", 0, None)
    assert (body["input"], body["out"]) == (scan, "out.zarr")
    assert body["windows_inferred"] == 1
    assert body["text"].startswith("unet-engine on ")
    assert "out.zarr: 1 windows" in body["text"]
    assert body["start"] <= body["end"]


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["--model", "missing.onnx"], 5, "missing.onnx"),
        (["--overlap", "7"], 2, "--overlap 7"),
        (["--memory", "1MiB"], 7, "memory"),
    ],
)
def test_a_run_that_fails_says_why_with_its_exit_code(scan, model, given, code, words):
    options = ["run", "--in", scan, "--out", "out.zarr", *(given if "--model" in given else ["--model", model, *given])]
    with listening() as server:
        said = cli(*options, "--notify", server.url)
    assert said.code == code == cli(*options).code
    body = server.message
    assert (body["status"], body["exit_code"]) == ("failed", code)
    assert words in body["message"]
    assert body["message"] in said.err.replace("unet-engine: ", "")
    assert (body["resume"] is None) == (code in (2, 7))  # the same options would be refused again


@pytest.mark.parametrize("options", [("--no-such", "1"), ("--threads", "many"), ("--report", "scan.zarr/r.html")])
def test_a_command_that_is_not_understood_is_told_too(scan, model, options):
    with listening() as server:
        said = cli("run", "--in", scan, "--model", model, *options, f"--notify={server.url}/{SECRET}")
    assert said.code == 2
    body = server.message
    assert (body["status"], body["exit_code"], body["resume"]) == ("failed", 2, None)
    assert body["message"] in said.err
    assert SECRET not in json.dumps(body) + said.err


def test_the_message_has_the_command_that_goes_on_and_no_address(scan, monkeypatch):
    hard = "a scan's.zarr"
    with listening() as server:
        cli("run", "--in", hard, "--model", "missing.onnx", "--overwrite", "--notify", f"{server.url}/{SECRET}")
    body = server.message
    assert body["folder"] == str(Path.cwd())
    there, _, command = body["resume"].partition(" && ")
    assert shlex.split(there) == ["cd", str(Path.cwd())]
    assert shlex.split(command) == ["unet-engine", "run", "--resume", "--in", hard, "--model", "missing.onnx"]
    assert body["text"].endswith(f"\nto go on: {body['resume']}")


def test_several_volumes_are_one_message_that_lists_what_failed(scan, model, tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"no array")
    with listening() as server:
        said = cli("run", "--in", scan, "--in", "bad.npy", "--model", model, "--out", "{stem}-out.zarr", "--keep-going",
                   "--notify", server.url)  # fmt: skip
    assert said.code == 11
    body = server.message
    assert (body["status"], body["exit_code"], body["volumes"]) == ("failed", 11, {"done": 1, "failed": 1})
    assert [line["input"] for line in body["failed"]] == ["bad.npy"]


def test_nothing_is_sent_of_a_dry_run(scan, model):
    with listening() as server:
        assert cli("run", "--in", scan, "--model", model, "--dry-run", "--notify", server.url).code == 0
    assert server.seen == []


def gone(handler):
    handler.connection.close()


@pytest.mark.parametrize(
    ("answers", "words", "tries"),
    [((404,), "404", 1), ((302,), "302; give the address that it leads to", 1), ((500,) * 9, "500", 4)],
)
def test_a_server_that_refuses_changes_nothing(scan, model, monkeypatch, answers, words, tries):
    monkeypatch.setattr(notify, "PAUSES", (0.01, 0.01, 0.01))
    with listening(*answers) as server:
        said = cli("run", "--in", scan, "--model", model, "--out", "out.zarr", "--json", "--notify", server.url)
    assert said.code == 0
    assert said.json["complete"]
    assert words in said.err
    assert "the run itself is not affected" in said.err
    assert len(server.seen) == tries
    assert all(path == "/" for path, _, _ in server.seen)


def test_a_server_that_is_busy_is_asked_again(monkeypatch):
    monkeypatch.setattr(notify, "PAUSES", (0.01, 0.01))
    with listening(503, gone, 200) as server:
        assert notify.send(notify.Address.of(server.url), {"status": "done"}) is None
    assert server.bodies == [{"status": "done"}] * 3


def test_nobody_there_changes_nothing(scan, model, monkeypatch):
    monkeypatch.setattr(notify, "PAUSES", (0.01,))
    said = cli("run", "--in", scan, "--model", model, "--out", "out.zarr", "--notify", "http://127.0.0.1:9/x")
    assert said.code == 0
    assert "--notify http://127.0.0.1:9: " in said.err


def test_a_server_that_takes_its_time_is_not_waited_for():
    """A byte now and then, each within the time of one read, for as long as somebody waits."""
    given_up, ended = threading.Event(), []

    def slow(handler):
        while not given_up.wait(0.05):
            handler.wfile.write(b"H")
            handler.wfile.flush()
        ended.append(True)

    with listening(slow) as server:
        why = notify.send(notify.Address.of(server.url), {}, limit=0.3)
        assert not ended
        given_up.set()
    assert "0.3 s" in why


def test_no_secret_is_shown_or_sent(scan, model, tmp_path):
    with listening() as server:
        place = server.url.replace("//", "//bot:hunter22secret@")
        said = cli("run", "--in", scan, "--model", model, "--out", "out.zarr", "--results", "r.jsonl", "--log", "log.txt",
                   "--notify", f"{place}/services/{SECRET}?token=abc{SECRET}")  # fmt: skip
    ((path, headers, body),) = server.seen
    assert path == f"/services/{SECRET}?token=abc{SECRET}"
    assert headers["Authorization"] == "Basic Ym90Omh1bnRlcjIyc2VjcmV0"
    told = said.err + said.out + (tmp_path / "r.jsonl").read_text() + (tmp_path / "log.txt").read_text() + body.decode()
    told += (tmp_path / "out.zarr" / "zarr.json").read_text()
    assert SECRET not in told
    assert "hunter22secret" not in told


def test_no_secret_is_shown_where_it_cannot_be_sent(scan, model, monkeypatch):
    monkeypatch.setattr(notify, "PAUSES", ())
    url = f"http://127.0.0.1:9/services/{SECRET}"
    said = cli("run", "--in", scan, "--model", model, "--out", "out.zarr", "--notify", url)
    assert "the run itself is not affected" in said.err
    assert SECRET not in said.err


@pytest.mark.parametrize(
    "url",
    ["", "ftp://host/x", "file:///etc/passwd", "https://", "http:///x", "host/path", "https://a b/", "http://h\n/x",
     "http://host:99999/x", "javascript:alert(1)", f"gopher://{SECRET}/x"],
)  # fmt: skip
def test_only_http_and_https_are_addresses(scan, model, url):
    said = cli("run", "--in", scan, "--model", model, "--out", "out.zarr", "--notify", url)
    assert said.code == SettingsError.exit_code
    assert "--notify" in said.error
    assert SECRET not in said.err


def test_the_address_may_come_from_the_environment(scan, model, monkeypatch):
    with listening() as server:
        monkeypatch.setenv("UNET_ENGINE_NOTIFY", f"{server.url}/env")
        assert cli("run", "--in", scan, "--model", model, "--out", "out.zarr").code == 0
    assert server.seen[0][0] == "/env"


def test_what_is_sent_is_bounded():
    with listening() as server:
        notify.send(notify.Address.of(server.url), {"notes": ["x" * 10_000] * 500, "out": "é"})
    (body,) = server.bodies
    assert len(server.seen[0][2]) < 400_000
    assert (len(body["notes"]), body["notes"][-1], body["out"]) == (51, "… and 450 more", "é")


@pytest.mark.parametrize(
    ("options", "stop", "status", "code"),
    share([([], signal.SIGTERM, "interrupted", 130), (["--hang-seconds", "0.4"], None, "failed", 6)]),
)
def test_a_run_that_is_ended_from_outside_or_hangs_says_so(tmp_path, options, stop, status, code):
    scan = make_volume(tmp_path / "scan.zarr", np.ones((8, 8, 128), np.float32))
    model = fake_model(tmp_path, latency_ms=600)
    with listening() as server:
        process = subprocess.Popen(
            [*COMMAND, "run", "--in", scan, "--model", model, "--out", "out.zarr", "--window", "8,8,8", "--threads", "1",
             *options,
             "--notify", server.url], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if stop:
            for line in process.stderr:
                if "digest" in line:
                    break
            time.sleep(0.3)
            process.send_signal(stop)
            time.sleep(0.3)
            process.send_signal(stop)
        process.communicate(timeout=60)
    assert process.returncode == code
    body = server.message
    assert (body["status"], body["exit_code"]) == (status, code)
