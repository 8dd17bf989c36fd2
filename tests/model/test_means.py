"""Means in steps: of windows that are mostly alike, against NumPy in float64; and what is left alone."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from unet_engine.model.onnx_means import in_steps  # noqa: E402

ov = pytest.importorskip("openvino")
ort = pytest.importorskip("onnxruntime")

CHANNELS, GROUPS, EPSILON = 6, 2, 1e-4


def graph(nodes, rank, opset, tensors=()):
    """A network of the nodes, from x to y."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", CHANNELS, *[None] * rank])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(tensors).items()]
    whole = helper.make_graph(nodes, "net", [given], [made], weights)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def parts(count):
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(count).astype(np.float32) for name in ("scale", "bias")}


def instance(rank):
    tensors = parts(CHANNELS)
    node = helper.make_node("InstanceNormalization", ["x", "scale", "bias"], ["y"], epsilon=EPSILON)
    return graph([node], rank, 17, tensors), lambda x: normed(x, CHANNELS, tensors)


def group(opset):
    def made(rank):
        tensors = parts(GROUPS if opset < 21 else CHANNELS)
        node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=GROUPS, epsilon=EPSILON)
        return graph([node], rank, opset, tensors), lambda x: normed(x, GROUPS, tensors)

    return made


def regrouped(rank):
    """GroupNorm as PyTorch's exporter writes it for opset 17."""
    ones = {"scale": np.ones(GROUPS, np.float32), "bias": np.zeros(GROUPS, np.float32)}
    nodes = [
        helper.make_node("Reshape", ["x", "grouped"], ["a"]),
        helper.make_node("InstanceNormalization", ["a", "scale", "bias"], ["b"], epsilon=EPSILON),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Reshape", ["b", "shape"], ["y"]),
    ]
    tensors = {**ones, "grouped": np.array([0, GROUPS, -1])}
    return graph(nodes, rank, 17, tensors), lambda x: normed(x, GROUPS, ones)


def by_hand(rank):
    """A norm of means and squares, as it comes from functions that were written out."""
    axes = np.arange(2, 2 + rank)
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["apart"]),
        helper.make_node("Mul", ["apart", "apart"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "axes"], ["variance"], keepdims=1),
        helper.make_node("Add", ["variance", "epsilon"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["deviation"]),
        helper.make_node("Div", ["apart", "deviation"], ["y"]),
    ]
    plain = {"scale": np.ones(CHANNELS), "bias": np.zeros(CHANNELS)}
    tensors = {"axes": axes, "epsilon": np.array(EPSILON, np.float32)}
    return graph(nodes, rank, 18, tensors), lambda x: normed(x, CHANNELS, plain)


def mean(rank):
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=list(range(-rank, 0)), keepdims=0)
    return graph([node], rank, 13), lambda x: x.mean(tuple(range(2, 2 + rank)))


def pooled(rank):
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    return graph([node], rank, 11), lambda x: x.mean(tuple(range(2, 2 + rank)), keepdims=True)


def normed(x, groups, tensors):
    """In the type of x; scale and bias of channels, or of groups."""
    grouped = x.reshape(x.shape[0], groups, -1)
    mean, variance = grouped.mean(-1, keepdims=True), grouped.var(-1, keepdims=True)
    found = ((grouped - mean) / np.sqrt(variance + EPSILON)).reshape(x.shape)
    scale, bias = (
        np.repeat(np.asarray(tensors[name], x.dtype), CHANNELS // len(tensors[name])) for name in ("scale", "bias")
    )
    along = (slice(None), *[None] * (x.ndim - 2))
    return found * scale[along] + bias[along]


def mostly_alike(shape):
    """Air, and a tenth of something in it."""
    x = np.full(shape, -1.7, np.float32)
    inside = x[..., shape[-1] // 3 : shape[-1] // 3 + max(1, shape[-1] // 10)]
    inside[...] = np.random.default_rng(0).standard_normal(inside.shape) * 0.3 + 2
    return x


def by_onnxruntime(model, x):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def by_openvino(model, x):
    network = ov.Core().read_model(model.SerializeToString())
    network.reshape(list(x.shape))
    return ov.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0]


KINDS = {
    "instance": instance, "group 18": group(18), "group 21": group(21), "regrouped": regrouped, "by hand": by_hand,
    "mean": mean, "pooled": pooled,
}  # fmt: skip
SHAPES = [(48, 48, 48), (20, 50, 37), (1, 300, 200), (300, 211), (20000,)]


@pytest.mark.parametrize("library", [by_openvino, by_onnxruntime])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_means_of_windows_that_are_mostly_alike_are_exact(kind, shape, library):
    model, truth = KINDS[kind](len(shape))
    x = mostly_alike((2, CHANNELS, *shape))
    assert in_steps(model, x.shape) == (2 if kind == "by hand" else 1)
    found, expected = library(model, x), truth(x.astype(np.float64))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(x if found.size < x.size else expected)


def test_the_libraries_alone_are_not():
    """Why it is done at all: if this fails, they are."""
    model, truth = group(21)(3)
    x = mostly_alike((1, CHANNELS, 64, 64, 64))
    expected = truth(x.astype(np.float64))
    errors = [
        np.abs(library(model, x) - expected).max() / np.ptp(expected) for library in (by_openvino, by_onnxruntime)
    ]
    assert min(errors) > 2e-5, errors


@pytest.mark.parametrize("axes", [[1], [2], [1, 2, 3], [0, 2, 3]], ids=str)
def test_means_over_something_else_are_left_alone(axes):
    model = graph([helper.make_node("ReduceMean", ["x"], ["y"], axes=axes)], 2, 13)
    before = model.SerializeToString()
    assert in_steps(model, (1, CHANNELS, 64, 64)) == 0
    assert model.SerializeToString() == before


def test_few_voxels_are_left_alone():
    model, _ = instance(3)
    assert in_steps(model, (1, CHANNELS, 8, 8, 8)) == 0


def test_a_norm_that_others_read_too_before_it_is_grouped_back_keeps_its_shape():
    """Then it is not taken for a GroupNorm, but for what it is."""
    model, _ = regrouped(3)
    model.graph.node.append(helper.make_node("Identity", ["b"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    x = mostly_alike((1, CHANNELS, 16, 20, 24))
    before = by_onnxruntime(model, x)
    assert in_steps(model, x.shape) == 1
    np.testing.assert_allclose(by_onnxruntime(model, x), before, atol=1e-3)


def test_a_run_is_as_exact_as_the_network(tmp_path):
    """An InstanceNorm network on a scan that is mostly air, through each library, against NumPy."""
    import zarr

    import unet_engine

    tensors = {
        "kernel": np.random.default_rng(2).standard_normal((4, 1, 3, 3, 3)).astype(np.float32),
        "scale": np.array([1, -2, 0.5, 1.5], np.float32),
        "bias": np.array([0, 0.1, -0.2, 0.3], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["features"], pads=[1] * 6),
        helper.make_node("InstanceNormalization", ["features", "scale", "bias"], ["logits"], epsilon=1e-5),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 32, 32, 32])
    made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, 32, 32, 32])
    weights = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    whole = helper.make_graph(nodes, "net", [given], [made], weights)
    onnx.save(
        helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "net.onnx"
    )
    scan = mostly_alike((32, 32, 32)) * 100
    zarr.save_array(str(tmp_path / "scan.zarr"), scan)
    x = np.pad(scan.astype(np.float64), 1)
    boxes = np.lib.stride_tricks.sliding_window_view(x, (3, 3, 3))
    features = np.einsum("zyxijk,cijk->czyx", boxes, tensors["kernel"][:, 0].astype(np.float64))
    flat = features.reshape(4, -1)
    expected = (flat - flat.mean(1)[:, None]) / np.sqrt(flat.var(1)[:, None] + 1e-5)
    expected = (expected * tensors["scale"][:, None] + tensors["bias"][:, None]).reshape(features.shape)
    for library in ("openvino", "onnxruntime"):
        out = tmp_path / f"{library}.zarr"
        unet_engine.run(
            str(tmp_path / "scan.zarr"), model=str(tmp_path / "net.onnx"), out=str(out), backend=library, output="logits",
            dtype="float32", window="32,32,32", normalize="none",
        )  # fmt: skip
        found = zarr.open_group(str(out))["0"][...]
        assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)
