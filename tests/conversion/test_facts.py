"""What told each fact of an exported spec is kept in the file and shown; what people are told names what it was made
of."""

import numpy as np
import pytest

from support.command_line import cli
from support.graphs import graph, node

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture
def foreign(tmp_path):
    weights = np.ones((1, 1, 1, 1), np.float32)
    nodes = [node("Conv", "x w", "c"), node("Sigmoid", "c", "y")]
    return graph(tmp_path / "foreign.onnx", nodes, shape=(1, 1, None, None), w=weights)


def test_info_shows_what_told_each_fact_of_an_exported_file(tmp_path, foreign):
    out = tmp_path / "net.onnx"
    said = cli("export", foreign, "--out", out, "--window", "16,16", "--normalize", "range:0,255", "--empty", "auto")
    assert said.code == 0, said.err
    assert "0.0e+00 from the ONNX file foreign.onnx" in said.error
    told = dict(part.split(": ") for part in cli("info", out, "--json").json["told_by"].split("; "))
    assert told["the network ends in Sigmoid"] == "activation"
    assert told["--normalize"] == "normalization"
    assert told["--window"] == "window"
    assert told["--empty"] == "empty"
    assert told["windows that were compared with the network"] == "window_min, window_step"
    assert "channels_out" in told["graph"]
    assert "told by" in cli("info", out).out


def test_a_file_of_others_tells_by_its_graph(foreign):
    told = cli("info", foreign, "--window", "16,16", "--json").json["told_by"]
    assert "graph: " in told
    assert "activation" in told


def test_sizes_that_onnx_runtime_refuses_leave_no_raw_lines(tmp_path, capfd):
    weights = {"w": np.ones((1, 1, 1, 1), np.float32), "s": np.array([1, 1, 16, 16], np.int64)}
    nodes = [node("Conv", "x w", "c"), node("Reshape", "c s", "y")]
    path = graph(tmp_path / "fixed.onnx", nodes, shape=(1, 1, None, None), **weights)
    said = cli("export", path, "--out", tmp_path / "net.onnx", "--window", "16,16")
    assert said.code == 0, said.err
    assert "takes windows of (16, 16) alone" in said.err
    assert "onnxruntime" not in (said.err + "".join(capfd.readouterr())).lower()
