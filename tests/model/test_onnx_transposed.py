"""Transposed convolutions as plain ones, compared in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from unet_engine.model.onnx_half import to_half
from unet_engine.model.onnx_layers import Graph
from unet_engine.model.onnx_transposed import as_convolutions
from unet_engine.model.shipped import shipped_model

ort = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(3)


def _net(kernel: tuple[int, ...], *, bias: bool = True, opset: int = 20, sizes: Any = None, **given: Any) -> Any:
    """3 channels to 5 by one transposed convolution, then a plain one to 2."""
    axes = len(kernel)
    tensors = {"up.weight": RNG.normal(size=(3, 5, *kernel)), "up.bias": RNG.normal(size=5)}
    tensors["head.weight"] = RNG.normal(size=(2, 5, *(1,) * axes))
    nodes = [
        helper.make_node("ConvTranspose", ["x", "up.weight", *(["up.bias"] if bias else [])], ["u"], name="up",
                         **{"strides": list(kernel), **given}),
        helper.make_node("Conv", ["u", "head.weight"], ["y"], name="head"),
    ]  # fmt: skip
    shape = sizes or [f"n{a}" for a in range(axes)]
    float_ = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", float_, ["batch", 3, *shape])],
        [helper.make_tensor_value_info("y", float_, ["batch", 2, *(f"m{a}" for a in range(axes))])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in tensors.items() if bias or k != "up.bias"],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _kinds(proto: Any) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def _run(proto: Any, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("kernel", [(2, 2), (3, 1), (2, 2, 2), (1, 2, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fixed", [True, False])
def test_the_same_is_computed(kernel: tuple[int, ...], bias: bool, fixed: bool) -> None:  # noqa: FBT001
    """To the last bits of the sum over channels: neither order is the other's."""
    sizes = (5, 4, 3)[: len(kernel)]
    proto = _net(kernel, bias=bias, sizes=sizes if fixed else None)
    plain = as_convolutions(proto)
    onnx.checker.check_model(plain, full_check=True)
    assert "ConvTranspose" not in _kinds(plain)
    assert _kinds(plain).count("Conv") == 2
    assert Graph(plain).layers == Graph(proto).layers == ("up", "head")
    x = RNG.normal(size=(2, 3, *sizes)).astype(np.float32)
    np.testing.assert_allclose(_run(plain, x), _run(proto, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("given", [
    {"strides": [1, 2]}, {"pads": [0, 1, 0, 0]}, {"output_padding": [1, 0]}, {"dilations": [2, 1]},
    {"output_shape": [8, 6]}, {"auto_pad": "SAME_UPPER"},
])  # fmt: skip
def test_what_overlaps_or_is_cut_stays(given: dict[str, Any]) -> None:
    assert "ConvTranspose" in _kinds(as_convolutions(_net((2, 2), **given)))


def test_weights_that_others_read_and_old_operators_stay() -> None:
    shared = _net((2, 2))
    shared.graph.node.append(helper.make_node("Identity", ["up.weight"], ["again"]))
    assert "ConvTranspose" in _kinds(as_convolutions(shared))
    assert "ConvTranspose" in _kinds(as_convolutions(_net((2, 2), opset=14)))


def test_a_network_is_typed_and_quantised_throughout() -> None:
    """Transposed convolutions were left in FP16 between convolutions in INT8."""
    from unet_export.quantize.qdq import quantizable, thresholds, to_qdq
    from unet_export.train.tissue import make_tissue

    source = onnx.load(shipped_model("cells_3d.onnx"))
    graph = Graph(as_convolutions(source))
    window = (make_tissue((16, 24, 24), 5)[0].astype(np.float32) / 255)[None]
    expected = _run(source, window[None])
    np.testing.assert_allclose(_run(graph.proto, window[None]), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    half = to_half(graph.proto)
    onnx.checker.check_model(half, full_check=True)
    assert np.abs(_run(half, window[None]) - expected).max() < 1e-2 * np.abs(expected).max()
    limits = thresholds(graph, [n.input[0] for n in quantizable(graph)], [window])
    int8 = to_half(to_qdq(graph, limits))
    onnx.checker.check_model(int8, full_check=True)
    quantised = {t.name for t in int8.graph.initializer if t.data_type == TensorProto.INT8}
    assert {"ups.0.weight/int8", "ups.1.weight/int8"} <= quantised
    assert np.abs(_run(int8, window[None]) - expected).max() < 0.2 * np.abs(expected).max()
