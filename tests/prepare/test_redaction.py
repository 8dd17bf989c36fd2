"""No password, key or token is in anything that a run shows or leaves."""

import io
import re
import subprocess
import sys

import pytest
import zarr

import unet_engine
from support.command_line import cli, environment
from support.volumes import fake_model
from unet_engine import redaction
from unet_engine.errors import UnetEngineError
from unet_engine.redaction import guard_streams, hide, hide_in_url, redacted

USER, SECRET = "AKIAUSER0123", "wJalr/XUtn+FEMI"


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(redaction, "_known", set())
    monkeypatch.setattr(redaction, "_shown", set())


@pytest.mark.parametrize(
    "text",
    [
        "s3://key:SECRET@bucket/scan.zarr", "s3://key:SEC/SECRET+x@bucket/scan.zarr", "https://SECRET@host/x",
        "https://me@lab.org:SECRET@host/x", "simplecache::s3://key:SECRET@bucket/x",
        "see HTTPS://u:SECRET@h:80/x; retry",
        "https://h/x?X-Amz-Signature=SECRET&X-Amz-Credential=SECRET", "https://h/x?sig=SECRET#token=SECRET",
        "https://h/x.zarr?SECRET0=SECRET&a=SECRET",
        "{'key': 'SECRET', \"secret\": \"SECRET\", 'token': 'SECRET'}", "password=SECRET",
        'aws_secret_access_key = "SECRET"',
        "Authorization: Bearer SECRET0123", "AccountKey=SECRET;EndpointSuffix=x",
        "storage_options={'sas_token': 'SECRET'}",
    ],
)  # fmt: skip
def test_what_stands_where_secrets_do_is_hidden(text):
    said = redacted(text)
    assert "SECRET" not in said.replace("SECRET0=", "")
    assert redaction.HIDDEN in said
    assert redacted(said) == said


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/scan.zarr/0", "tcp://127.0.0.1:8786", "tcp://node7:8786/a@b", "/data/me@lab/scan.zarr?", "a:b@c",
        "https://h/x.zarr?versionId=3", "the key jobs is missing; see docs/cluster.md",
        "--tls-key a.pem belongs to --tls-cert",
        "C:\\x", "window = [1, 2]", "overlap=0.5", "token", "https://h/me@lab/x",
    ],
)  # fmt: skip
def test_all_else_stays(text):
    assert redacted(text) == text


def test_a_secret_that_was_seen_is_hidden_wherever_a_library_says_it(monkeypatch):
    hide_in_url(f"s3://{USER}:{SECRET}@bucket/scan.zarr?sig=abcdef%2Fgh")
    assert redacted(f"user {USER}, signed with {SECRET}, abcdef/gh") == "user ***, signed with ***, ***"
    hide("a chosen token")
    assert "chosen" not in redacted("/status a%20chosen%20token")
    monkeypatch.setenv("MY_DATABASE_PASSWORD", "hunter2hunter2")
    assert redacted("cannot log in with hunter2hunter2") == "cannot log in with ***"
    monkeypatch.setenv("SOME_KEY", "/home/me/key.pem")
    assert redacted("/home/me/key.pem is missing") == "/home/me/key.pem is missing"


def test_errors_and_values_are_redacted_as_they_are_made():
    assert str(UnetEngineError("s3://k:SECRET@b/x is gone")) == "s3://***@b/x is gone"
    assert redacted({"a": ["s3://k:S@b"], "b": ("s3://k:S@b", 3)}) == {"a": ["s3://***@b"], "b": ("s3://***@b", 3)}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_token_of_the_run_is_shown_to_a_person_and_to_no_file(terminal, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    redaction.show_on_terminals("made-for-this-run")
    guard_streams()
    guard_streams()
    print("http://127.0.0.1:5/status?token=made-for-this-run token=chosen-one", file=sys.stderr)
    assert ("made-for-this-run" in stream.getvalue()) is terminal
    assert "chosen-one" not in stream.getvalue()


URL = f"memory://{USER}:{SECRET}@lab/scan.zarr"


@pytest.fixture
def remote():
    """A volume behind a URL with a user and a secret, in the memory of this process."""
    pytest.importorskip("fsspec")
    array = zarr.create_array(URL, shape=(9, 9, 9), chunks=(8, 8, 8), dtype="u1", overwrite=True)
    array[...] = 1


def everything(folder):
    """All that lies in `folder`, as bytes: names and contents."""
    return b"\n".join(bytes(p) + (p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*"))


def test_nothing_that_a_run_leaves_holds_a_secret(remote, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", "tok-en-0123456789")
    model = fake_model(tmp_path)
    common = ["--in", URL, "--model", model]
    said = [
        cli("plan", *common), cli("plan", *common, "--json"), cli("info", URL), cli("info", URL, "--json"),
        cli("run", *common, "--out", "o.zarr", "--profile", "p", "--json"), cli("run", *common, "--out", "o.zarr"),
        cli("run", *common, "--out", "q.zarr", "--part", "1/2"),
        cli("run", *common, "--out", f"memory://{USER}:{SECRET}@lab/o.zarr", "--json"),
        cli("finish", f"memory://{USER}:{SECRET}@lab/none.zarr"), cli("run", "--in", URL + "x", "--model", model),
        cli("run", *common, "--mask", f"https://{USER}:{SECRET}@no.invalid/m?sig={SECRET}", "--out", "m.zarr"),
        cli("run", *common, "--scheduler", f"tcp://{USER}:{SECRET}@no.invalid:1"),
        cli("run", *common, "--roi", "tok-en-0123456789"),
        cli("run", *common, "--dashboard-token", SECRET, "--dashboard", f"{SECRET}:x", "--workers", 1),
    ]  # fmt: skip
    assert [s.code for s in said[:8]] == [0, 0, 0, 0, 0, 8, 0, 0]
    assert all(s.code for s in said[8:])
    for one in said:
        for secret in (USER, SECRET, "tok-en-0123456789"):
            assert secret not in one.out + one.err
    left = everything(tmp_path)
    assert b"***@lab/scan.zarr" in left  # in the header
    assert not re.search(rf"{USER}|{re.escape(SECRET)}|tok-en".encode(), left)


def test_nor_does_what_python_is_told(remote, tmp_path):
    model = fake_model(tmp_path)
    with pytest.raises(UnetEngineError) as error:
        unet_engine.run(URL + "x", model=model, out=str(tmp_path / "o.zarr"))
    assert USER not in str(error.value)
    assert SECRET not in str(error.value)


def test_nor_a_traceback_or_a_log(tmp_path):
    """What is printed by others than us goes through the same place."""
    code = "; ".join((
        "from unet_engine.commands import cli", "import logging, sys",
        "cli.app = lambda **k: (logging.basicConfig(), logging.error('at %s', sys.argv[1]), 1 / int(sys.argv[1]))",
        "cli.main()",
    ))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, URL], capture_output=True, text=True, check=False,
        env={**environment(), "UNET_ENGINE_TRACEBACK": "1", "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert "Traceback" in done.stderr
    assert "ERROR" in done.stderr
    assert SECRET not in done.stderr + done.stdout
