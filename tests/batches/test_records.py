"""What is left of runs for machines: results, a log, metrics; where settings come from; a model behind a URL."""

import hashlib
import http.server
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.errors import InputError, SettingsError
from unet_engine.settings.settings import Settings
from unet_engine.storage.fetching import fetched


@pytest.fixture
def scan(tmp_path):
    return make_volume(tmp_path / "scan.zarr", np.ones((8, 8, 8), np.float32))


@pytest.fixture
def model(tmp_path):
    return fake_model(tmp_path)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_line_for_each_run_also_for_one_that_fails(scan, model):
    given = ["run", "--in", scan, "--model", model, "--out", "out.zarr", "--results", "all/results.jsonl"]
    assert cli(*given).code == 0
    assert cli(*given).code == 8
    assert cli(*given, "--resume").code == 0
    assert cli(*given[:4], "missing.onnx", *given[5:]).code == 5
    done, failed, again, missing = lines("all/results.jsonl")
    assert [line["status"] for line in (done, failed, again, missing)] == [
        "done",
        "failed",
        "already complete",
        "failed",
    ]
    assert done["digest"] == again["digest"]
    assert done["model"] == {"file": model, "sha256": unet_engine.open_model(model).sha256, "name": "id"}
    assert done["error"] is None
    assert done["windows_inferred"] == 1
    assert failed["error"]["type"] == "OutputError"
    assert failed["error"]["exit_code"] == 8
    assert "exists" in failed["error"]["message"]
    assert missing["model"] == {"file": "missing.onnx"}
    for line in (done, failed):
        assert line["input"] == scan
        assert line["start"] <= line["end"]
        assert line["command"].startswith("unet-engine run --in ")
        assert line["host"]
        assert line["version"]


def test_a_complete_output_is_said_to_be(scan, model):
    assert cli("run", "--in", scan, "--model", model, "--out", "out.zarr").code == 0
    said = cli("run", "--in", scan, "--model", model, "--out", "out.zarr", "--resume", "--json")
    assert "out.zarr: already complete" in said.err
    assert said.json["already_complete"]
    assert said.json["windows_inferred"] == 0


def test_no_secret_is_left(scan, model):
    given = [
        "--dashboard-token",
        "geheim-und-lang",
        "--results",
        "r.jsonl",
        "--log",
        "log.txt",
        "--mask",
        "s3://k:geheim2lang@b",
    ]
    assert cli("run", "--in", scan, "--model", model, "--out", "out.zarr", *given).code != 0
    for name in ("r.jsonl", "log.txt"):
        text = Path(name).read_text()
        assert "error" in text
        assert "geheim" not in text


def test_a_log_has_what_is_told(scan, model):
    given = ["run", "--in", scan, "--model", model, "--out", "out.zarr", "--overwrite"]
    said = cli(*given, "--log", "log.txt", "--quiet")
    assert said.code == 0
    assert said.err == ""
    text = Path("log.txt").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\dT\S+ info +out\.zarr: 1 windows", text, re.M)
    assert cli(*given, "--log", "log.jsonl", "--log-format", "json").code == 0
    assert any(line["level"] == "info" and "1 windows" in line["message"] for line in lines("log.jsonl"))
    said = cli(*given, "--log-format", "json")
    assert all(json.loads(line)["message"] for line in said.err.splitlines())
    assert cli(*given, "-q", "-v").code == 2


def test_metrics_are_those_of_the_run(scan, model):
    given = ["run", "--model", model, "--out", "out/{stem}.zarr", "--metrics", "m.prom", "--keep-going"]
    assert cli(*given, "--in", scan, "--in", "missing.zarr").code == 11
    values = {}
    for line in Path("m.prom").read_text().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    assert values['unet_engine_volumes_total{status="done"}'] == 1
    assert values['unet_engine_volumes_total{status="failed"}'] == 1
    assert values["unet_engine_volumes_planned"] == 2
    assert values["unet_engine_windows_inferred_total"] == 1
    assert values["unet_engine_voxels_written_total"] == 512
    assert not list(Path().glob("*.partial"))
    assert cli("run", "--in", scan, "--model", model, "--out", "b.zarr", "--metrics", "m.prom").code == 0
    assert "unet_engine_windows_inferred_total 1\n" in Path("m.prom").read_text()


@pytest.mark.parametrize("option", ["--results", "--log", "--metrics"])
def test_a_place_that_cannot_be_written_is_said_before_anything_runs(scan, model, option):
    Path("file").touch()
    said = cli("run", "--in", scan, "--model", model, "--out", "out.zarr", option, "file/x")
    assert said.code == 8
    assert option in said.error
    assert not Path("out.zarr").exists()


# --- the environment ---


def test_settings_come_from_the_environment(scan, model, monkeypatch):
    Path("unet-engine.toml").write_text('overlap = 0.25\nblend = "crop"\n')
    monkeypatch.setenv("UNET_ENGINE_OVERLAP", "0.75")
    monkeypatch.setenv("UNET_ENGINE_WINDOW", "8,8,8")
    monkeypatch.setenv("UNET_ENGINE_STRICT", "yes")
    monkeypatch.setenv("UNET_ENGINE_PADDING", " ")
    found = Settings.of(input=scan, model=model)
    assert (found.overlap, found.blend, found.window, found.strict) == (0.75, "crop", (8, 8, 8), True)
    assert Settings.of(input=scan, overlap=0.5).overlap == 0.5
    assert "from the environment: overlap, strict, window" in found.notes
    monkeypatch.setenv("UNET_ENGINE_OVERLAP", "two")
    with pytest.raises(SettingsError, match="UNET_ENGINE_OVERLAP 'two'"):
        Settings.of(input=scan)


def test_the_input_may_come_from_the_environment(scan, model, monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_INPUT", scan)
    monkeypatch.setenv("UNET_ENGINE_MODEL", model)
    monkeypatch.setenv("UNET_ENGINE_OUT", "around.zarr")
    assert cli("run").code == 0
    assert Path("around.zarr").exists()


# --- a model behind a URL ---


@pytest.fixture
def served(tmp_path, model):
    """A server of the folder, and what it was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given):
            super().__init__(*given, directory=str(tmp_path))

        def log_message(self, *_):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_model_behind_a_url_is_fetched_once(scan, served):
    base, asked = served
    for name in ("a.zarr", "b.zarr"):
        said = cli("run", "--in", scan, "--model", f"{base}/id.fake.toml", "--out", name)
        assert said.code == 0, said.err
    assert "was fetched" not in said.err
    assert (
        len([one for one in asked if "id.fake" in one]) <= 4
    )  # a look, the file, a look; and one whether it is another
    said = cli("run", "--in", scan, "--model", f"{base}/missing.onnx", "--out", "c.zarr")
    assert said.code == 5
    assert "missing.onnx does not exist" in said.error


def test_what_is_fetched_is_checked_and_bounded(served, tmp_path):
    base, _ = served
    digest = hashlib.sha256((tmp_path / "id.fake.toml").read_bytes()).hexdigest()
    found = fetched(f"{base}/id.fake.toml#sha256={digest}")
    assert Path(found).read_bytes() == (tmp_path / "id.fake.toml").read_bytes()
    for url, part in (
        (f"{base}/id.fake.toml#sha256={'0' * 64}", "another file"),
        (f"{base}/id.fake.toml?again#sha256={'0' * 64}", "another file"),
        (f"{base}/id.fake.toml#md5=1", "sha256="),
    ):
        with pytest.raises(InputError, match=part):
            fetched(url)
    with pytest.raises(InputError, match="more than 10 B"):
        fetched(f"{base}/id.fake.toml?more", most=10)
    assert not list(Path(found).parent.parent.glob("*/*.partial"))


@pytest.mark.parametrize("option", ["--metrics", "--log", "--results", "--report"])
def test_no_record_is_written_into_an_input_or_an_output(scan, model, option):
    before = sorted(str(p) for p in Path(scan).rglob("*"))
    one = ["run", "--in", scan, "--model", model, "--out", "out.zarr"]
    several = ["run", "--in", scan, scan, "--model", model, "--out", "{name}.zarr"]
    inside = (f"{scan}/m", f"{scan}/c/m.html", scan)
    for command, places in ((one, (*inside, "out.zarr/m")), (several, inside)):
        for place in places:
            found = cli(*command, option, place)
            assert found.code == SettingsError.exit_code, found.err
            assert f"{option} {place} lies in" in found.error
    assert sorted(str(p) for p in Path(scan).rglob("*")) == before
    assert not Path("out.zarr").exists()
