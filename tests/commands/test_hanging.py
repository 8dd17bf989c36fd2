"""Networks that never end: the second signal ends the process, and so does --hang-seconds. What is committed stays."""

import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import zarr
from onnx import TensorProto, helper

from support.command_line import begin, cli, command, environment
from support.shares import share
from support.volumes import fake_model, make_volume
from support.waiting import wait_until
from unet_engine.backends.fake import FakeBackend
from unet_engine.commands.interruption import ENDING
from unet_engine.errors import BackendError
from unet_engine.execution.local import LocalTeam
from unet_engine.model.file import open_model
from unet_engine.model.spec import METADATA_KEY, ModelSpec
from unet_engine.threads import hanging

SPEC = ModelSpec(
    name="e", axes="zyx", channels_in=1, channels_out=1, window=(8, 8, 8), window_min=(8, 8, 8), window_step=(0, 0, 0),
    margin=(0, 0, 0), activation="sigmoid",
)  # fmt: skip


@pytest.fixture
def volume(tmp_path):
    return make_volume(tmp_path / "scan.zarr", np.ones((8, 8, 24), np.uint8))


def endless(path):
    """A valid network whose loop goes round 2^60 times."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Cos", ["v"], ["w"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, (1, 1, 8, 8, 8))],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("w", TensorProto.FLOAT, (1, 1, 8, 8, 8))],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "true", "x"], ["y"], body=body)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1, 8, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 1, 8, 8, 8))],
        initializer=[helper.make_tensor("n", TensorProto.INT64, [], [2**60]),
                     helper.make_tensor("true", TensorProto.BOOL, [], [True])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: SPEC.model_dump_json()})
    onnx.save(model, path)
    return path


def endless_script(path):
    torch = pytest.importorskip("torch")

    class Endless(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            turns = 0
            while turns >= 0:
                x = x.cos()
                turns += int(x.dim()) % 1
            return x

    torch.jit.save(torch.jit.script(Endless()), str(path), _extra_files={METADATA_KEY: SPEC.model_dump_json()})
    open_model(path).trust()
    return path


def ended_by(process, number):
    """Seconds from the second signal to the end."""
    time.sleep(4)  # well into the network
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    time.sleep(1)
    process.send_signal(number)
    since = time.monotonic()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
    return time.monotonic() - since


@pytest.mark.parametrize(
    ("backend", "number"),
    [("openvino", signal.SIGTERM), ("openvino", signal.SIGINT), ("onnxruntime", signal.SIGTERM),
     ("onnxruntime", signal.SIGQUIT), ("pytorch", signal.SIGINT)],
)  # fmt: skip
@pytest.mark.alone
@pytest.mark.slow
def test_the_second_signal_ends_a_network_that_does_not_end(backend, number, volume, tmp_path):
    pytest.importorskip("torch" if backend == "pytorch" else backend)
    model = endless_script(tmp_path / "e.pt") if backend == "pytorch" else endless(tmp_path / "e.onnx")
    process = begin("run", "--in", volume, "--model", model, "--backend", backend)
    assert ended_by(process, number) < 6
    assert process.returncode == 130
    assert (
        process.stderr.read()
        .strip()
        .splitlines()[-1]
        .startswith("unet-engine: interrupted before anything was written")
    )


@pytest.mark.parametrize("backend", share(["openvino", "onnxruntime"]))
def test_hang_seconds_holds_for_one_process_as_it_opens_a_network(backend, volume, tmp_path):
    pytest.importorskip(backend)
    said = command("run", "--in", volume, "--model", endless(tmp_path / "e.onnx"), "--backend", backend,
                   "--hang-seconds", 3)  # fmt: skip
    assert said.code == BackendError.exit_code
    assert "got nowhere for 3 s and counts as hung" in said.error
    assert ";" in said.error


@pytest.mark.slow
def test_and_in_mid_run_after_which_a_resume_completes_it(tmp_path):
    volume = make_volume(tmp_path / "long.zarr", np.ones((8, 8, 400), np.uint8))
    mark = tmp_path / "mark"
    mark.touch()  # so that it hangs later than as it is opened
    model = fake_model(tmp_path, latency_ms=50, hang_once=mark)
    options = ["run", "--in", volume, "--model", model, "--out", "o.zarr", "--threads", 1, "--hang-seconds", 2]
    process = begin(*options)
    while not (tmp_path / "o.zarr/0").exists():
        time.sleep(0.05)
    mark.unlink()
    said = process.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert process.returncode == BackendError.exit_code
    assert "this run got nowhere for 2 s and counts as hung; run again with --resume" in said
    mark.write_text("go on")
    done = cli(*options, "--resume")
    assert done.code == 0, done.err
    assert zarr.open_group("o.zarr", mode="r").attrs["unet_engine"]["complete"]


def test_a_run_that_goes_on_is_left_alone(tmp_path, monkeypatch):
    """However long it takes: what counts is that windows come back. By a clock that goes on with the windows of the run
    alone, each of which takes half the limit."""
    volume = make_volume(tmp_path / "long.zarr", np.ones((8, 8, 100), np.uint8))
    now, looks, hung = [0.0], [], []
    moved, start = LocalTeam._moved, FakeBackend.start

    def starting(network, slot):
        if looks:
            now[0], seen = now[0] + 0.02, len(looks)
            wait_until(lambda: hung or len(looks) > seen)
        start(network, slot)

    monkeypatch.setattr(hanging, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(hanging, "end", lambda *told: hung.append(told))
    monkeypatch.setattr(LocalTeam, "_moved", lambda self: (looks.append(True), moved(self))[1])
    monkeypatch.setattr(FakeBackend, "start", starting)
    said = cli("run", "--in", volume, "--model", fake_model(tmp_path), "--out", "o.zarr", "--threads", 1,
               "--hang-seconds", 0.04)  # fmt: skip
    assert said.code == 0, said.err
    assert not hung
    assert now[0] > 5 * 0.04


@pytest.mark.parametrize("name", ENDING)
def test_a_signal_while_python_itself_ends_changes_no_exit_code(name):
    code = f"""
import os, signal, sys
from unet_engine.commands import cli

class Last:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.{name}):
        kill(process, number)

cli._heed_signals()
last = Last()
sys.exit(130)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), timeout=60, check=False, capture_output=True)
    assert done.returncode == 130, done.stderr
