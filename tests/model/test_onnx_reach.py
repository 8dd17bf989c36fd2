"""How far a network sees, from its graph: never less than what is measured, and nothing where it is not known."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from support.shares import share
from support.untrained import untrained
from unet_engine.backends.base import Setup
from unet_engine.backends.libraries import open_backend
from unet_engine.backends.receptive_field import radius
from unet_engine.model.file import open_model
from unet_engine.model.onnx_reach import _of_graph, _UnknownError, reach_of

pytest.importorskip("torch")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize("depth", share([1, 2]))
def test_it_is_no_less_than_what_single_voxels_change(tmp_path, depth):
    model = open_model(untrained(tmp_path, window=64, depth=depth))
    told = reach_of(model)
    assert told == model.spec.context
    backend = open_backend("openvino", Setup(model, model.spec.window))
    measured = radius(backend)
    assert all(m <= t for m, t in zip(measured, told, strict=True))
    assert all(t <= 2 * m for m, t in zip(measured, told, strict=True))


def test_statistics_of_a_window_have_no_end(tmp_path):
    assert reach_of(open_model(untrained(tmp_path, norm="instance"))) is None


def graph(*nodes, constants=()):
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, "h", "w"])
    out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [1, 1, "h", "w"])
    return helper.make_graph(list(nodes), "net", [shape], [out], list(constants))


def conv(x, y, kernel, kind="Conv", **attributes):
    weights = f"w{y}"
    node = helper.make_node(kind, [x, weights], [y], **attributes)
    return node, helper.make_tensor(weights, TensorProto.FLOAT, [1, 1, *kernel], [0.0] * (kernel[0] * kernel[1]))


@pytest.mark.parametrize(
    ("layers", "reach"),
    [
        ([((3, 5), {"pads": [1, 2, 1, 2]})], (1, 2)),
        ([((3, 3), {"pads": [2, 2, 2, 2], "dilations": [2, 2]})], (2, 2)),
        ([((3, 3), {"pads": [1] * 4})] * 3, (3, 3)),
        ([((2, 2), {"strides": [2, 2]}), ((2, 2), {"strides": [2, 2], "kind": "ConvTranspose"})], (1, 1)),
        ([((2, 2), {"strides": [2, 2]}), ((3, 3), {"pads": [1] * 4}),
          ((2, 2), {"strides": [2, 2], "kind": "ConvTranspose"})], (3, 3)),
    ],
)  # fmt: skip
def test_layers_add_up(layers, reach):
    made = [conv(f"t{i}" if i else "x", f"t{i + 1}", kernel, **how) for i, (kernel, how) in enumerate(layers)]
    found = graph(*(node for node, _ in made), constants=[weights for _, weights in made])
    assert _of_graph(found, 2, (0, 0)) == reach


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("GlobalAveragePool", ["x"], ["y"]),
        helper.make_node("InstanceNormalization", ["x", "a", "b"], ["y"]),
        helper.make_node("Softmax", ["x"], ["y"], axis=3),
        helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2]),
        helper.make_node("Conv", ["x", "elsewhere"], ["y"]),
        helper.make_node("Conv", ["x", "elsewhere"], ["y"], kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
        helper.make_node("Resize", ["x", "", "unknown"], ["y"]),
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Relu", ["x"], ["y"], domain="someone.else"),
        helper.make_node("BatchNormalization", ["x", "a", "b", "c", "d"], ["y"], training_mode=1),
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], kernel_shape=[2, 2], output_shape=[9, 9]),
    ],
)
def test_what_is_not_known_is_not_guessed(node):
    with pytest.raises(_UnknownError):
        _of_graph(graph(node), 2, (0, 0))


def resize(x, y, factor, **attributes):
    node = helper.make_node("Resize", [x, "", f"f{y}"], [y], **attributes)
    return node, helper.make_tensor(f"f{y}", TensorProto.FLOAT, [4], [1, 1, factor, factor])


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("how", ["half_pixel", "pytorch_half_pixel", "asymmetric"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_a_resizing_sees_no_farther_than_told(factor, how, mode):
    """Of every factor-th voxel, so that nothing else is seen."""
    taken, weights = conv("x", "t", (1, 1), strides=[factor, factor])
    weights.float_data[0] = 1
    again, factors = resize("t", "y", factor, mode=mode, coordinate_transformation_mode=how)
    made = graph(taken, again, constants=[weights, factors])
    evaluator = ReferenceEvaluator(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]))
    at = 6 * factor
    voxels = np.zeros((1, 1, 12 * factor, factor), np.float32)
    voxels[0, 0, at] = 1
    changed = np.flatnonzero(evaluator.run(None, {"x": voxels})[0][0, 0, :, 0])
    assert np.abs(changed - at).max() <= _of_graph(made, 2, (0, 0))[0]


def test_a_resizing_of_which_the_ends_are_kept_hangs_on_the_window():
    """So that no two sizes of window give the same, however much context they have."""
    taken, weights = conv("x", "t", (2, 2), strides=[2, 2])
    again, factors = resize("t", "y", 2, mode="linear", coordinate_transformation_mode="align_corners")
    with pytest.raises(_UnknownError):
        _of_graph(graph(taken, again, constants=[weights, factors]), 2, (0, 0))


def test_two_images_are_not_followed():
    node = helper.make_node("Add", ["x", "z"], ["y"])
    made = graph(node)
    made.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 1, "h", "w"]))
    with pytest.raises(_UnknownError):
        _of_graph(made, 2, (0, 0))
