"""FP16 and INT8 graphs for TensorRT: the arithmetic that is emulated is the one that was typed, and layers that
overflow are found."""

import shutil

import numpy as np
import pytest

from support import networks
from support.command_line import cli
from support.volumes import result_of
from unet_engine.errors import ModelError
from unet_engine.model.file import attached_network, open_model
from unet_engine.model.shipped import shipped_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from unet_engine.model.onnx_half import NORMS, to_half  # noqa: E402
from unet_engine.model.onnx_layers import Graph  # noqa: E402
from unet_export.quantize.gate import session, session_of_outputs  # noqa: E402
from unet_export.quantize.half import _HELPERS, emulated  # noqa: E402
from unet_export.quantize.qdq import quantizable, thresholds, to_qdq  # noqa: E402

LARGE = ("encoders.1.3", "encoders.2.0", "decoders.1.0")
"""The layer with large activations in `large`, and those that read it."""


@pytest.fixture(scope="module")
def source():
    return onnx.load(shipped_model("cells_3d.onnx"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "large.onnx"
    readers = {"encoders.2.0": 0, "decoders.1.0": 0}
    return networks.scaled(shipped_model("cells_3d.onnx"), path, "encoders.1.3", readers, range(16), 1e6)


@pytest.fixture(scope="module")
def window():
    from unet_export.train.tissue import make_tissue

    return (make_tissue((16, 24, 24), 5)[0].astype(np.float32) / 255)[None, None]


def run(proto, x):
    return session(proto.SerializeToString())(x)


def apart(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def test_rounding_in_fp32_is_that_of_fp16_bit_by_bit():
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    domain = "unet_engine.emulation"
    graph = helper.make_graph(
        [helper.make_node("RoundToHalf", ["x"], ["y"], domain=domain)], "g",
        [helper.make_tensor_value_info("x", kind, ["n"])], [helper.make_tensor_value_info("y", kind, ["n"])],
    )  # fmt: skip
    sets = [helper.make_opsetid("", 20), helper.make_opsetid(domain, 1)]
    model = helper.make_model(
        graph, functions=[onnx.parser.parse_function(_HELPERS)], opset_imports=sets, ir_version=10
    )
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(200_000) * 10.0 ** rng.uniform(-9, 6, 200_000)).astype(np.float32)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    x = np.concatenate([x, halves[np.isfinite(halves)], np.float32([65519.9, 65520, -65520, 0.0, 2**-25, 3 * 2**-25])])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(run(model, x), x.astype(np.float16).astype(np.float32))


def test_half_is_close_and_emulated_alike(source, window):
    expected = run(source, window)
    typed = to_half(source)
    onnx.checker.check_model(typed, full_check=True)
    assert 1e-5 < apart(run(typed, window), expected) < 1e-2
    assert 1e-5 < apart(run(emulated(source), window), expected) < 1e-2
    assert len(typed.SerializeToString()) < 0.6 * len(source.SerializeToString())


def types_of(proto):
    inferred = onnx.shape_inference.infer_shapes(proto)
    found = {v.name: v.type.tensor_type.elem_type for v in [*inferred.graph.value_info, *inferred.graph.output]}
    return {node.name: (node.op_type, found.get(node.output[0])) for node in inferred.graph.node}


def test_all_but_kept_layers_are_typed_half_and_nothing_is_cast_around_instance_norm(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    torch.save(networks.instance_trilinear().state_dict(), tmp_path / "w.pth")
    options = ["--factory", "support.networks:instance_trilinear", "--window", "16,16,16"]
    assert cli("export", tmp_path / "w.pth", "--out", tmp_path / "n.onnx", *options).code == 0
    proto = onnx.load(tmp_path / "n.onnx")
    typed = to_half(proto, ["head"])
    onnx.checker.check_model(typed, full_check=True)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    kinds = [(op, kind) for op, kind in types_of(typed).values() if kind in (half, single) and op != "Cast"]
    assert {kind for op, kind in kinds if op == "InstanceNormalization"} == {half}
    assert not [op for op, _ in kinds if op in NORMS]
    assert [n.op_type for n in typed.graph.node].count("Cast") == 2, "of the image, and before the layer that is kept"
    assert [kind for op, kind in kinds if op == "Conv"].count(single) == 1
    assert {kind for op, kind in kinds if op in ("Relu", "Resize", "Concat")} == {half}
    x = np.random.default_rng(0).standard_normal((1, 1, 16, 16, 16), dtype=np.float32)
    assert apart(run(typed, x), run(proto, x)) < 1e-2


def test_statistics_of_instance_norm_in_half_do_not_overflow():
    """Squares of 3,000 in FP16 would. Emulated, it reads rounded activations and computes in fp32."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("InstanceNormalization", ["x", "one", "zero"], ["y"], name="norm")], "g",
        [helper.make_tensor_value_info("x", kind, [1, 2, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [1, 2, 8, 8])],
        [onnx.numpy_helper.from_array(np.full(2, v, np.float32), k) for k, v in {"one": 1, "zero": 0}.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = np.random.default_rng(0).normal(3000, 20, (1, 2, 8, 8)).astype(np.float16).astype(np.float32)
    expected = run(proto, x)
    for made in (to_half(proto), emulated(proto)):
        np.testing.assert_allclose(run(made, x), expected, atol=3e-3)


def test_a_tensor_that_norms_read_far_apart_is_cast_once():
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    norm = ["t", "ones", "zeros"]
    nodes = [
        helper.make_node("Conv", ["x", "up.weight"], ["t"], name="conv"),
        helper.make_node("LayerNormalization", norm, ["r0"], name="first", axis=1),
        *(helper.make_node("Relu", [f"r{i}"], [f"r{i + 1}"], name=f"relu{i}") for i in range(80)),
        helper.make_node("LayerNormalization", norm, ["again"], name="second", axis=1),
        helper.make_node("Add", ["again", "r80"], ["y"], name="add"),
    ]
    values = {"up.weight": np.ones((2, 1, 1, 1)), "ones": np.ones((2, 4, 4)), "zeros": np.zeros((2, 4, 4))}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", kind, [1, 2, 4, 4])],
        [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in values.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    typed = to_half(proto)
    onnx.checker.check_model(typed, full_check=True)
    assert [n.output[0] for n in typed.graph.node].count("t/single") == 1


def test_large_activations_overflow_and_keeping_writer_and_readers_helps(large, window):
    proto = onnx.load(large)
    expected = run(proto, window)
    assert not np.isfinite(run(emulated(proto), window)).all()
    assert not np.isfinite(run(emulated(proto, LARGE[:1]), window)).all()
    assert apart(run(emulated(proto, LARGE), window), expected) < 1e-2
    with pytest.raises(ModelError, match=r"keep the layer encoders.1.3 in fp32"):
        to_half(proto)
    onnx.checker.check_model(to_half(proto, LARGE), full_check=True)


def quantized(proto, window, kept=()):
    graph = Graph(proto)
    limits = thresholds(graph, [n.input[0] for n in quantizable(graph)], [window[0]])
    return to_qdq(graph, limits, kept)


def test_quantised_weights_are_signed_symmetric_and_per_channel(source, window):
    proto = quantized(source, window)
    onnx.checker.check_model(proto, full_check=True)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert tensors[node.input[2]].dtype == np.int8
            assert not tensors[node.input[2]].any()
    weights = {name: t for name, t in tensors.items() if name.endswith(".weight/int8")}
    assert len(weights) == 10
    assert all(t.min() >= -127 for t in weights.values())
    assert all(np.ptp(np.abs(t).reshape(len(t), -1).max(1)) == 0 for t in weights.values())
    assert apart(run(proto, window), run(source, window)) < 0.2


def test_transposed_and_output_convolutions_and_kept_layers_are_left_out(source, window):
    proto = quantized(source, window, ["decoders.0.0"])
    back = {o for n in proto.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    plain = [n.input[1] for n in proto.graph.node if n.op_type.startswith("Conv") and n.input[1] not in back]
    assert sorted(plain) == ["decoders.0.0.weight", "head.weight", "ups.0.weight", "ups.1.weight"]


def test_the_branches_of_a_concatenation_share_one_scale(source, window):
    proto = quantized(source, window)
    concatenated = {n.output[0] for n in proto.graph.node if n.op_type == "Concat"}
    assert concatenated == {n.input[0] for n in proto.graph.node if n.op_type == "QuantizeLinear"} & concatenated


def test_layers_of_a_quantised_graph_keep_their_names(source, window):
    assert Graph(quantized(source, window)).layers == Graph(source).layers


def test_what_lies_inside_a_graph_can_be_fetched_in_any_order(source, window):
    names = ["relu_1", "input", "relu"]
    found = session_of_outputs(source, names)(window)
    assert [f.shape[1] for f in found] == [8, 1, 8]
    assert found[1] is not None
    np.testing.assert_array_equal(found[1], window)


def test_a_clipped_outlier_gives_way_to_the_many():
    from unet_export.quantize.qdq import BINS, _least_error

    counts = np.zeros(BINS)
    counts[: BINS // 20] = 1e6
    counts[-1] = 1
    assert _least_error(counts, 100.0) < 10
    assert _least_error(counts, 0.0) == 1.0


# --- through the command ---


def command(path, tissue, *options):
    few = ["--windows", 6, "--held-out", 4, "--window", "16,16,16", "--backend", "tensorrt", "--min-dice", "0.98"]
    return cli("quantize", path, "--calibrate", tissue, *few, *options)


def test_without_a_gpu_figures_are_emulated_and_permit_nothing(tissue, tmp_path):
    path = shutil.copy(shipped_model("cells_3d.onnx"), tmp_path / "cells.onnx")
    said = command(path, tissue)
    assert said.code == 0, said.err
    assert "figures for TensorRT are emulated" in said.err
    for verdict in open_model(path).verdicts:
        assert (verdict.backend, verdict.emulated, verdict.passed) == ("tensorrt", True, True)
        assert onnx.load_from_string(attached_network(open_model(path), verdict.network)).graph.node
    options = ["--window", "16,16,16", "--precision", "int8", "--out", tmp_path / "o.zarr"]
    said = cli("run", "--in", tissue, "--model", path, *options)
    assert said.code == 6
    assert "int8 was not judged on openvino" in said.error


@pytest.mark.slow
def test_int8_for_pytorch_is_judged_attached_and_runs(tissue, tmp_path, monkeypatch):
    """On the simulated device, as on a GPU without TensorRT: what was judged is what runs, and unproved it is refused."""
    pytest.importorskip("torch")
    path = shutil.copy(shipped_model("cells_3d.onnx"), tmp_path / "cells.onnx")
    options = ["--in", tissue, "--model", path, "--window", "16,16,16", "--backend", "pytorch", "--device", "simulated"]
    said = cli("run", *options, "--precision", "int8", "--out", tmp_path / "no.zarr")
    assert said.code == 6
    assert "--precision int8 --backend pytorch" in said.error
    monkeypatch.setattr("unet_export.quantize.quantize._backend", lambda *_: ("pytorch", "simulated"))
    monkeypatch.setattr("unet_export.quantize.judging.both_seconds", lambda *_: (1.0, 2.0))
    few = ["--windows", 4, "--held-out", 2, "--window", "16,16,16", "--precision", "int8", "--min-dice", "0.95"]
    said = cli("quantize", path, "--calibrate", tissue, *few)
    assert said.code == 0, said.err
    (verdict,) = open_model(path).verdicts
    assert (verdict.precision, verdict.backend, verdict.rest, verdict.passed) == ("int8", "pytorch", "fp16", True)
    graph = onnx.load_from_string(attached_network(open_model(path), verdict.network))
    kinds = [n.op_type for n in graph.graph.node]
    assert kinds.count("QuantizeLinear") == 2, "of 32 channels and more"
    labels = {}
    for precision in ("int8", "fp32"):
        out = tmp_path / f"{precision}.zarr"
        said = cli("run", *options, "--precision", precision, "--out", out, "--json")
        assert said.code == 0, said.error
        labels[precision] = result_of(out)
    assert 0.98 < np.mean(labels["int8"] == labels["fp32"]) < 1


def test_large_activations_fail_fp16_with_the_layer_named_and_are_rescued(large, tissue, tmp_path):
    path = shutil.copy(large, tmp_path / "large.onnx")
    said = command(path, tissue, "--precision", "fp16")
    found = open_model(path).verdicts[0]
    assert found.passed, said.err
    assert set(found.kept) == set(LARGE)
    assert "NaN or infinite" in found.reason
    assert "encoders.1.3" in found.reason


def test_a_window_too_large_for_tensorrt_is_refused_before_anything_is_made(tissue, tmp_path, monkeypatch):
    monkeypatch.setattr("unet_engine.backends.tensorrt_api.LARGEST_TENSOR", 20_000)
    path = shutil.copy(shipped_model("cells_3d.onnx"), tmp_path / "cells.onnx")
    said = command(path, tissue)
    assert said.code == 5
    assert "use a smaller --window" in said.error
