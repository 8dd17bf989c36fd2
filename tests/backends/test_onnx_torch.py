"""ONNX graphs in PyTorch and in FP16 in ONNX Runtime: what they compute, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

import unet_engine  # noqa: E402
from support.volumes import make_volume, result_of  # noqa: E402
from unet_engine.backends import onnx_torch  # noqa: E402
from unet_engine.backends.base import Setup  # noqa: E402
from unet_engine.backends.libraries import open_on_device  # noqa: E402
from unet_engine.errors import BackendError, ModelError  # noqa: E402
from unet_engine.model.file import open_model  # noqa: E402
from unet_engine.model.shipped import shipped_model  # noqa: E402

helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
RNG = np.random.default_rng(0)


def graph_of(nodes: list[Any], constants: dict[str, Any], shape: tuple[int, ...], opset: int = 20) -> Any:
    """From ``x`` of that shape to ``y``."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def weights(*shape: int) -> Any:
    return RNG.standard_normal(shape, np.float32)


def node(operator: str, *inputs: str, **attributes: Any) -> Any:
    return helper.make_node(operator, list(inputs), ["y"], **attributes)


ONE = {"w": weights(3, 2, 3, 3, 3), "b": weights(3)}
UP = {"w": weights(2, 3, 2, 2, 2), "b": weights(3)}
PER_CHANNEL = {"s": weights(2) ** 2, "b": weights(2), "m": weights(2), "v": weights(2) ** 2}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "conv": (node("Conv", "x", "w", "b", pads=[1] * 6, strides=[2, 1, 1]), ONE),
    "conv, padded at one end": (node("Conv", "x", "w", pads=[0, 1, 2, 1, 1, 0]), ONE),
    "conv, dilated": (node("Conv", "x", "w", "b", dilations=[1, 2, 1]), ONE),
    "transposed": (node("ConvTranspose", "x", "w", "b", strides=[2, 2, 2]), UP),
    "transposed, cut": (
        node("ConvTranspose", "x", "w", strides=[2] * 3, pads=[1] * 6, output_padding=[1, 0, 1]), UP,
    ),
    "instance norm": (node("InstanceNormalization", "x", "s", "b", epsilon=1e-3), PER_CHANNEL),
    "batch norm": (node("BatchNormalization", "x", "s", "b", "m", "v"), PER_CHANNEL),
    "group norm": (node("GroupNormalization", "x", "s", "b", num_groups=2), PER_CHANNEL),
    "max pool": (node("MaxPool", "x", kernel_shape=[2, 2, 2], strides=[2, 2, 2]), {}),
    "max pool, ceil": (node("MaxPool", "x", kernel_shape=[2] * 3, strides=[2] * 3, ceil_mode=1), {}),
    "average pool": (node("AveragePool", "x", kernel_shape=[3] * 3, pads=[1] * 6), {}),
    "average pool, with padding": (
        node("AveragePool", "x", kernel_shape=[3] * 3, pads=[1] * 6, count_include_pad=1), {},
    ),
    "leaky": (node("LeakyRelu", "x", alpha=0.2), {}),
    "prelu": (node("PRelu", "x", "s"), {"s": weights(2, 1, 1, 1)}),
    "softmax": (node("Softmax", "x", axis=1), {}),
    "resize, nearest": (
        node("Resize", "x", "", "f", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        {"f": np.array([1, 1, 2, 3, 2], np.float32)},
    ),
    "resize, nearest as ONNX means it": (
        node("Resize", "x", "", "f", mode="nearest"), {"f": np.array([1, 1, 2, 3, 2], np.float32)},
    ),
    "resize, linear": (node("Resize", "x", "", "f", mode="linear"), {"f": np.array([1, 1, 2, 2, 2], np.float32)}),
    "resize, corners": (
        node("Resize", "x", "", "", "n", mode="linear", coordinate_transformation_mode="align_corners"),
        {"n": np.array([1, 2, 9, 7, 12])},
    ),
    "pad": (node("Pad", "x", "p", mode="reflect"), {"p": np.array([0, 0, 1, 2, 0, 0, 0, 2, 0, 1])}),
    "pad with a value": (
        node("Pad", "x", "p", "v"), {"p": np.array([0, 1, 0, 2, 0, 0, 0, 2, 0, 1]), "v": np.float32(7)},
    ),
    "slice": (node("Slice", "x", "a", "e", "i", "t"),
              {"a": np.array([1, -3]), "e": np.array([2**40, -1]), "i": np.array([2, 4]), "t": np.array([2, 1])}),
    "reshape": (node("Reshape", "x", "n"), {"n": np.array([0, -1, 6])}),
    "mean": (node("ReduceMean", "x", "a", keepdims=1), {"a": np.array([2, 3, 4])}),
    "clip": (node("Clip", "x", "", "h"), {"h": np.float32(0.5)}),
    "transpose": (node("Transpose", "x", perm=[0, 2, 1, 4, 3]), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_operator_gives_what_onnx_runtime_gives(case: str) -> None:
    operator, constants = CASES[case]
    graph = graph_of([operator], constants, (1, 2, 5, 6, 7), 18 if case == "group norm" else 20)
    x = weights(1, 2, 5, 6, 7)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    expected = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]
    got = onnx_torch.imported(graph.SerializeToString())(torch.from_numpy(x)).numpy()
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=2e-5 * max(1, np.abs(expected).max()))


REFUSED = {
    "it has the operator Foo": node("Foo", "x"),
    "its Conv has auto_pad SAME_UPPER": node("Conv", "x", "w", auto_pad="SAME_UPPER"),
    "its MaxPool has padding that differs": node("MaxPool", "x", kernel_shape=[2] * 3, pads=[0, 0, 0, 1, 1, 1]),
    "its Resize has the mode cubic": node("Resize", "x", "", "f", mode="cubic"),
    "its Resize has the mode nearest": node("Resize", "x", "", "h", mode="nearest"),
    "its Pad has": node("Pad", "x", "p", mode="wrap"),
    "its Slice has": node("Slice", "x", "a", "e", "i", "back"),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_pytorch_has_no_like_of_is_refused(said: str) -> None:
    constants = {
        "w": weights(3, 2, 3, 3, 3), "f": np.array([1, 1, 2, 2, 2], np.float32),
        "h": np.array([1, 1, 1.5, 2, 2], np.float32), "p": np.zeros(10, np.int64), "a": np.array([3]),
        "e": np.array([0]), "i": np.array([2]), "back": np.array([-1]),
    }  # fmt: skip
    data = graph_of([REFUSED[said]], constants, (1, 2, 5, 6, 7)).SerializeToString()
    assert onnx_torch.objection_to(data).startswith(said)
    with pytest.raises(ModelError, match=f"PyTorch does not run the ONNX graph: {said}"):
        onnx_torch.imported(data)
    assert "opset 11" in onnx_torch.objection_to(graph_of([node("Relu", "x")], {}, (1, 2), 11).SerializeToString())


@pytest.mark.parametrize("name", ["cells_2d.onnx", "cells_3d.onnx"])
@pytest.mark.parametrize(("backend", "precision"), [("pytorch", "fp32"), ("pytorch", "bf16"), ("onnxruntime", "fp16")])
def test_a_run_of_an_onnx_file_gives_the_cpus_result(name: str, backend: str, precision: str, tmp_path: Path) -> None:
    """On the simulated GPU, in the pipeline's memory, several windows a batch."""
    size = (1, 40, 48) if "2d" in name else (24, 20, 28)
    volume = make_volume(tmp_path / "v.zarr", RNG.normal(100, 40, size).astype(np.float32))
    options = {"model": str(shipped_model(name)), "output": "logits", "normalize": "zscore"}
    if "3d" in name:
        options["window"] = (16, 16, 16)
    expected = unet_engine.run(volume, out=str(tmp_path / "cpu.zarr"), **options)
    got = unet_engine.run(
        volume, out=str(tmp_path / "gpu.zarr"), device="simulated", backend=backend, precision=precision, **options
    )
    reference, found = result_of(expected.out), result_of(got.out)
    apart = np.abs(found - reference).max() / np.abs(reference).max()
    assert apart < {"fp32": 2e-5, "fp16": 5e-3, "bf16": 0.1}[precision]
    assert precision == "fp32" or apart > 1e-6, "computed in that precision"


def quantised(more: Sequence[Any] = (), pads: tuple[int, ...] = (1,) * 6, zero: int = 0) -> Any:
    """A convolution as `quantize` writes it."""
    levels = RNG.integers(-127, 128, (16, 32, 3, 3, 3)).astype(np.int8)
    constants = {
        "s": np.float32(0.03), "z": np.int8(zero), "l": levels, "ls": np.full(16, 0.002, np.float32),
        "lz": np.zeros(16, np.int8), "b": weights(16),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["l", "ls", "lz"], ["w"], axis=0),
        helper.make_node("Conv", ["d", "w", "b"], ["c" if more else "y"], pads=pads, kernel_shape=[3] * 3),
    ]
    return graph_of([*nodes, *more], constants, (1, 32, 4, 5, 6))


def test_a_convolution_between_levels_is_computed_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ONNX Runtime makes of the same graph, and nothing is turned back before it."""
    graph, calls = quantised(), list[Any]()
    plain = onnx_torch.int8_convolution.reference
    monkeypatch.setattr(onnx_torch.int8_convolution, "reference", lambda *a: (calls.append(a), plain(*a))[1])
    x = 2 * weights(1, 32, 4, 5, 6)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    network = onnx_torch.Imported(onnx_torch.flat(graph))
    found = network(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), session.run(None, {"x": x})[0], rtol=1e-5, atol=1e-4)
    assert len(calls) == 1
    assert {buffer.dtype for buffer in network.buffers()} == {torch.int8, torch.float32}, (
        "they go where the module goes"
    )


@pytest.mark.parametrize("graph", [
    quantised(pads=(0,) * 6), quantised(zero=1), quantised([helper.make_node("Add", ["c", "d"], ["y"])]),
], ids=["no padding", "not around 0", "also read by others"])  # fmt: skip
def test_other_levels_are_refused(graph: Any) -> None:
    if graph.graph.node[-1].op_type == "Add":
        graph.graph.node[-1].input[0] = "d"  # the levels themselves, turned back
    assert "QuantizeLinear" in onnx_torch.objection(onnx_torch.flat(graph))


def test_a_size_that_is_computed_as_it_runs_stays_on_the_host() -> None:
    """Of an exporter that asks for shapes; on a GPU reading them there would end the recording of a graph."""
    nodes = [
        helper.make_node("MaxPool", ["x"], ["half"], kernel_shape=[2] * 3, strides=[2] * 3),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "two"], ["z"], axis=0),
        helper.make_node("Unsqueeze", ["z", "zero"], ["zs"]),
        helper.make_node("Slice", ["shape", "three", "end"], ["yx"]),
        helper.make_node("Concat", ["channels", "zs", "yx"], ["sizes"], axis=0),
        helper.make_node("Resize", ["half", "", "", "sizes"], ["up"], mode="linear"),
        helper.make_node("Mul", ["up", "twice"], ["y"]),
    ]
    numbers = {
        "two": np.int64(2), "zero": np.array([0]), "three": np.array([3]), "end": np.array([9]),
        "channels": np.array([1, 2]), "twice": np.float32(2),
    }  # fmt: skip
    data = graph_of(nodes, numbers, (1, 2, 6, 5, 7)).SerializeToString()
    x = weights(1, 2, 6, 5, 7)
    expected = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    module = onnx_torch.imported(data)
    np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), expected, atol=1e-5)
    assert not list(module.parameters()), "a network without weights"
    meta = module.to("meta")(torch.zeros((1, 2, 6, 5, 7), device="meta"))
    assert meta.shape == expected.shape, "nothing but shapes was read"


def test_half_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    graph = graph_of([node("Conv", "x", "w")], {"w": weights(3, 2, 1, 1, 1) * 1e6}, (1, 2, 5, 6, 7))
    path = tmp_path / "m.onnx"
    path.write_bytes(graph.SerializeToString())
    model = open_model(shipped_model("cells_3d.onnx"))
    from dataclasses import replace

    with pytest.raises(ModelError, match="more than FP16 holds"):
        open_on_device("onnxruntime", Setup(replace(model, path=path), (16, 16, 16), "simulated", precision="fp16"))
    with pytest.raises(BackendError, match="use --precision fp32 or fp16"):
        open_on_device("onnxruntime", Setup(model, (16, 16, 16), "simulated", precision="bf16"))


def test_addresses_on_a_gpu_never_reach_a_session_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime makes one where CUDA cannot be loaded, and says nothing."""
    from unet_engine.backends import onnxruntime as backend
    from unet_engine.devices.simulated import SimulatedDevice

    class Real(SimulatedDevice):
        name = "cuda:0"

    device, bound, loaded = Real(), [], []
    monkeypatch.setattr("unet_engine.backends.libraries.open_device", lambda name: device)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: loaded.append(1) or print("not found"))
    backend._find_cuda.cache_clear()
    session = ort.InferenceSession

    def fallen_back(network: Any, options: Any, providers: Any) -> Any:
        assert providers[0][0] == "CUDAExecutionProvider"
        return session(network, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", fallen_back)
    monkeypatch.setattr(ort.IOBinding, "bind_input", lambda *given: bound.append(given))
    model = open_model(shipped_model("cells_3d.onnx"))
    with pytest.raises(BackendError, match=r"cannot load CUDA for cuda:0 and would run on the CPU \(CPUExecution"):
        open_on_device("onnxruntime", Setup(model, (16, 16, 16), "cuda:0"))
    assert loaded, "CUDA is looked for where pip put it"
    assert not bound
    assert not device.living
