"""The command line: fast to ask, plain to read, exact for machines, and silent towards the network."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import COMMAND, begin, cli, command, environment
from support.volumes import fake_model, make_volume, result_of
from support.waiting import wait_until

COMMANDS = ["run", "plan", "finish", "info", "demo", "bench"]
HEAVY = {"torch", "tensorrt", "zarr", "zarrs", "openvino", "onnx", "onnxruntime", "numpy", "pydantic", "rich", "dask"}
HELP_SECONDS = 0.3
HELP_CLICKS = 3.5
"""Or so many times what a process takes that imports click alone; measured: 2.4."""
RESULT_KEYS = {
    "out", "digest", "windows_planned", "windows_inferred", "windows_skipped", "seconds", "voxels_per_second",
    "peak_rss_bytes",
    "backend", "precision",
}  # fmt: skip


@pytest.mark.alone
@pytest.mark.parametrize("args", [[], *([c] for c in COMMANDS)], ids=["group", *COMMANDS])
def test_help_is_instant(args):
    """On a slow or busy machine, as fast as a process that does nothing lets it be."""
    best, bare = [float("inf")] * 2, [float("inf")] * 2
    for _ in range(6):  # the machine may be busy with something else
        said, best = _timed(lambda: command(*args, "--help"), best)
        assert said.code == 0
        assert said.out.startswith("Usage: unet-engine")
        assert said.err == ""
        if best[0] < HELP_SECONDS:
            return
        bare = _timed(lambda: subprocess.run([sys.executable, "-c", "import click"], check=True), bare)[1]
        # of a processor that others use as well, neither process has more than its share of the time
        if best[1] < HELP_CLICKS * bare[1] and best[0] < 2 * HELP_CLICKS * bare[0]:
            return
    pytest.fail(f"--help takes {best[0]:.2f} s, {best[1]:.2f} s of them at work; `import click` {bare}")


def _timed(call, least):
    """What `call` gives, and the least that one of them took so far: seconds, and of them at work."""
    begun, before = time.perf_counter(), _children_seconds()
    found = call()
    took = time.perf_counter() - begun, _children_seconds() - before
    return found, [min(pair) for pair in zip(took, least, strict=True)]


def _children_seconds():
    """Processor time of all processes that were begun here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    "code",
    [
        "import unet_engine",
        "import unet_engine.commands.cli",
        "import unet_engine.errors, unet_engine.plan.box",
        "import sys; sys.argv = ['unet-engine', 'run', '--help']; from unet_engine.commands.cli import main; main()",
    ],
)
def test_nothing_heavy_is_imported_before_a_command_runs(code):
    code += f"\nimport sys\nprint('LOADED', sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_version():
    said = cli("--version")
    if "not installed" in said.err:
        pytest.skip("unet-engine is on the path but not installed")
    assert said.code == 0
    assert "unet-engine" in said.out


def test_every_option_is_a_setting():
    """What the command line takes, the settings file and Python take too, under the same names; but for who is told
    what, and for what concerns several volumes."""
    from unet_engine.commands.cli import app
    from unet_engine.commands.running import Ways
    from unet_engine.settings.settings import Settings

    options = {p.name for p in app.commands["run"].params} - {"as_json", "help", "more"}
    told = set(Ways.__dataclass_fields__)
    assert told <= options
    assert not told & set(Settings.model_fields)
    assert options - told == set(Settings.model_fields)


def test_json_is_the_last_line(ramp, model):
    said = command("run", "--in", ramp[1], "--model", model, "--out", "out.zarr", "--json")
    assert said.code == 0
    assert len(said.out.splitlines()) == 1
    assert said.json.keys() >= RESULT_KEYS
    assert said.json["windows_planned"] == said.json["windows_inferred"] + said.json["windows_skipped"]
    assert said.json["backend"] == "fake"
    assert said.json["precision"] == "fp32"
    assert said.json["voxels_per_second"] > 0
    assert said.json["peak_rss_bytes"] > 2**20
    assert Path(said.json["out"], "zarr.json").is_file()


def test_without_json_stdout_is_empty_and_stderr_is_plain(ramp, model):
    said = command("run", "--in", ramp[1], "--model", model, "--out", "out.zarr")
    assert said.out == ""
    assert "\x1b" not in said.err
    assert "Warning" not in said.err
    assert str(ramp[1]) in said.err
    assert "out.zarr: " in said.err.splitlines()[-1]


def test_progress_is_plain_lines_where_there_is_no_terminal(ramp, model, monkeypatch, meanwhile):
    monkeypatch.setattr("unet_engine.commands.report.LINE_EVERY", 0.02)
    meanwhile(50, lambda: wait_until(lambda: " left" in sys.stderr.getvalue()))
    said = cli("run", "--in", ramp[1], "--model", model, "--out", "out.zarr")
    lines = [line for line in said.err.splitlines() if " left" in line]
    assert said.code == 0
    assert lines
    assert all("/100 windows" in line and "Mvoxel/s" in line for line in lines)


def test_progress_is_a_bar_on_a_terminal(ramp, model):
    """On a pseudo terminal, whose width must not matter for the lines about the result."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    args = [*COMMAND, "run", "--in", ramp[1], "--model", model, "--out", "out.zarr"]
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=theirs, env={**environment(), "TERM": "xterm"})
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        if not piece:
            break
        text += piece
    os.close(ours)
    assert process.wait() == 0
    assert b"100/100 windows" in text
    assert b"Traceback" not in text


def test_a_reader_that_goes_away_is_no_error(ramp, model):
    process = begin("plan", "--in", ramp[1], "--model", model)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()


def test_plan_writes_nothing(ramp, model, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    said = cli("plan", "--in", ramp[1], "--model", model)
    assert said.code == 0
    assert "digest" in said.out
    assert cli("plan", "--in", ramp[1], "--model", model, "--json").code == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("given", "words"),
    [(["run", "scan.zarr", "net.onnx"], "net.onnx is called like a model"), (["plan", "scan.zarr"], "given by --in")],
)
def test_what_stands_behind_the_options_is_told_where_it_belongs(given, words):
    said = cli(*given)
    assert said.code == 2
    assert words in said.err.replace("'", "")


def test_plan_names_the_run_that_follows(ramp, model):
    plan = cli("plan", "--in", ramp[1], "--model", model, "--overlap", "0.25", "--json").json
    done = cli("run", "--in", ramp[1], "--model", model, "--overlap", "0.25", "--out", "out.zarr", "--json").json
    assert plan["digest"] == done["digest"]
    assert plan["windows_planned"] == done["windows_planned"] == done["windows_inferred"]
    assert unet_engine.make_plan(ramp[1], model=model, overlap=0.25).digest == done["digest"]


def test_info_on_a_volume(tmp_path):
    path = make_volume(
        tmp_path / "v.zarr",
        np.arange(60, dtype="u2").reshape(3, 4, 5),
        axes="zyx",
        ome="0.5",
        scale=(4, 2, 1),
        unit="micrometer",
    )
    facts = cli("info", path, "--json").json
    assert facts["axes"] == "zyx"
    assert facts["shape"] == [3, 4, 5]
    assert facts["dtype"] == "uint16"
    assert facts["spacing"] == [4.0, 2.0, 1.0]
    assert facts["unit"] == "micrometer"
    assert facts["sampled_range"] == [0.0, 59.0]
    said = cli("info", path)
    assert said.code == 0
    assert "uint16" in said.out


def test_info_on_an_output_of_ours(ramp, model):
    assert cli("run", "--in", ramp[1], "--model", model, "--out", "out.zarr").code == 0
    facts = cli("info", "out.zarr", "--json").json
    assert facts["axes"] == "zyx"
    assert facts["dtype"] == "uint8"


def test_info_on_a_model(tiny_onnx):
    facts = cli("info", tiny_onnx, "--json").json
    assert facts["format"] == "onnx"
    assert facts["window"] == [16, 16, 16]
    assert facts["channels_out"] == 2
    assert len(facts["sha256"]) == 64
    said = cli("info", tiny_onnx)
    assert said.code == 0
    assert "16" in said.out


def test_info_on_a_volume_of_nan(tmp_path):
    make_volume(tmp_path / "v.zarr", np.full((4, 4, 4), np.nan, np.float32))
    facts = cli("info", "v.zarr", "--json").json
    assert facts["sampled_range"] is None


# --- settings files ---


def test_settings_file_here_and_beside_the_input(ramp, model, tmp_path, monkeypatch):
    Path("unet-engine.toml").write_text(f'model = "{Path(model).name}"\noverlap = 0.25\n')
    assert cli("plan", "--in", ramp[1], "--json").json["windows_planned"] < 100
    assert (
        cli("plan", "--in", ramp[1], "--overlap", "0.5", "--json").json["windows_planned"] == 100
    )  # what is said wins
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli("plan", "--in", "../scan.zarr", "--json").json["windows_planned"] < 100
    assert cli("plan", "--in", f"{ramp[1]}/", "--json").code == 0


def test_settings_file_beside_a_group_whose_array_is_named(tmp_path):
    path = make_volume(tmp_path / "data/scan.zarr", np.ones((9, 9, 9), "u1"), axes="zyx", ome="0.5")
    model = Path(fake_model(tmp_path / "data")).name
    (tmp_path / "data/unet-engine.toml").write_text(f'model = "{model}"\n')
    said = cli("run", "--in", f"{path}/0", "--json")
    assert said.code == 0, said.err
    assert said.json["out"].startswith(str(tmp_path / "data/scan-"))


def test_settings_file_holds_every_kind_of_value(ramp, model):
    text = f"""
    model = "{model}"
    window = [12, 12, 12]
    memory = "6GiB"
    blend = "crop"
    output = "logits"
    dtype = "float16"
    roi = "0:8,:,4:"
    strict = false
    """
    Path("unet-engine.toml").write_text(text)
    said = cli("run", "--in", ramp[1], "--out", "out.zarr", "--json")
    assert said.code == 0, said.err
    got = result_of("out.zarr")
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got[0], ramp[0][0:8, :, 4:])


def test_python_says_the_same_as_the_command_line(ramp, model):
    result = unet_engine.run(ramp[1], model=model, out="python.zarr", window=(12, 12, 12), memory="6GiB")
    said = cli("run", "--in", ramp[1], "--model", model, "--out", "cli.zarr", "--window", "12,12,12", "--json")
    assert result.digest == said.json["digest"]
    np.testing.assert_array_equal(result_of("python.zarr"), result_of("cli.zarr"))


# --- what comes out ---


def test_the_output_says_how_it_was_made(ramp, model):
    assert cli("run", "--in", ramp[1], "--model", model, "--out", "out.zarr").code == 0
    made = zarr.open_group("out.zarr", mode="r").attrs["unet_engine"]
    assert made["complete"] is True
    assert len(made["model"]["sha256"]) == 64
    assert made["precision"] == "fp32"
    assert made["identity"]["overlap"] == 0.5
    assert made["versions"]["zarr"]


def test_the_output_is_ome_zarr_that_we_read_again(ramp, model):
    assert (
        cli("run", "--in", ramp[1], "--model", model, "--out", "a.zarr", "--output", "logits", "--blend", "crop").code
        == 0
    )
    assert (
        cli("run", "--in", "a.zarr", "--model", model, "--out", "b.zarr", "--output", "logits", "--blend", "crop").code
        == 0
    )
    np.testing.assert_array_equal(result_of("a.zarr"), result_of("b.zarr"))


# --- errors nobody thought of ---


def test_an_unexpected_error_is_one_line_too(ramp, model, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("unet_engine.execution.local.prepare", broken)
    said = cli("run", "--in", ramp[1], "--model", model)
    assert said.code == 1
    assert said.err.count("\n") == 1
    assert "ZeroDivisionError: first second" in said.err
    monkeypatch.setenv("UNET_ENGINE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli("run", "--in", ramp[1], "--model", model)


# --- no network ---

SPY = """
import socket, sys
def refuse(*args, **kwargs):
    print("NETWORK", args, file=sys.stderr)
    raise OSError("no network")
inside = socket.AF_UNIX
def checked(method):
    def call(self, address, *rest):
        return method(self, address, *rest) if self.family == inside else refuse(address)
    return call
class Watched(socket.socket):
    connect = checked(socket.socket.connect)
    connect_ex = checked(socket.socket.connect_ex)
    sendto = refuse
socket.socket = Watched
socket.getaddrinfo = socket.create_connection = socket.gethostbyname = refuse
from unet_engine.commands.cli import main
main()
print(json.dumps(sorted(m for m in sys.modules if "telemetry" in m and sys.modules[m] is not None)))
"""


def test_nothing_phones_home(ramp, tiny_onnx):
    args = ["run", "--in", ramp[1], "--model", tiny_onnx, "--out", "out.zarr", "--json"]
    code = "import json\n" + SPY
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr
    result, telemetry = map(json.loads, done.stdout.splitlines())
    assert result["backend"] == "openvino"
    assert not [m for m in telemetry if m.startswith("openvino_telemetry")]


EARLY = """
import os, signal, sys
from importlib.abc import MetaPathFinder
class Interrupting(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "unet_engine.commands.cli":
            os.kill(os.getpid(), SIGNAL)
sys.meta_path.insert(0, Interrupting())
from unet_engine.commands.entry import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_command_line_is_imported_is_told_in_a_line(number):
    """It was a traceback, and -2 for an exit code."""
    code = EARLY.replace("SIGNAL", str(int(number)))
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "--json"], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 130
    assert done.stderr == "unet-engine: interrupted before anything was written; run the same command again\n"
    assert json.loads(done.stdout)["error"]["exit_code"] == 130


LEFT_BEHIND = """
import asyncio.log, atexit, sys
from unet_engine.commands.cli import main
class Left:
    def __del__(self):
        raise RuntimeError("Event loop is closed")
left = Left()
atexit.register(lambda: asyncio.log.logger.error("Task was destroyed but it is pending!"))
sys.argv = ["unet-engine", "info", "none.zarr"]
main()
"""


def test_the_error_is_the_last_line_whatever_is_torn_down_behind_it():
    """As where a disk is full while several chunks are written at once."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT_BEHIND], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.stderr == "unet-engine: none.zarr does not exist; give the path of a volume\n"
