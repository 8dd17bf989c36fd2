"""How others write a graph down changes nothing of what it computes: functions with defaults and of other versions,
inputs that nothing reads, 0 for a free size; what nobody knows is named."""

import numpy as np
import pytest

from support.foreign import graph, helper, mixing, node, onnx, run, tensor
from unet_engine.errors import ModelError
from unet_engine.model.file import open_model

PLANE = np.random.default_rng(0).standard_normal((24, 30)).astype(np.float32)


def written(path, nodes, change=lambda model: None, sizes=(16, 16)):
    """A graph from x to y of three channels, changed by `change`."""
    out = [tensor("y", [1, 3, *sizes])]
    graph(path, nodes, tensor("x", [1, 1, *sizes]), out, {**mixing(3), "v": mixing(3, 3, seed=4)["w"]}, opset=18)
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return str(path)


def linear(x):
    w = mixing(3)
    return np.einsum("oi,iyx->oyx", w["w"][..., 0, 0], x[None]) + w["b"][:, None, None]


def mixed(x):
    return np.einsum("oi,iyx->oyx", mixing(3, 3, seed=4)["w"][..., 0, 0], x)


def leaky(x, slope):
    return np.where(x < 0, slope * x, x)


def calls(body, opset=18, **more):
    """A change that adds the function own.L, of `body` from a to z."""

    def change(model):
        function = helper.make_function("own", "L", ["a"], ["z"], body, [helper.make_opsetid("", opset)], **more)
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid("own", 1))

    return change


def slope():
    made = node("LeakyRelu", "a", "z")
    held = made.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT)
    held.ref_attr_name = "slope"
    return made


@pytest.mark.parametrize(("said", "expected"), [({}, 0.4), ({"slope": 0.2}, 0.2)])
def test_what_a_function_says_of_an_attribute_holds_where_the_call_leaves_it_out(tmp_path, said, expected):
    """ONNX's inliner forgets it, and a LeakyRelu then had its own 0.01."""
    nodes = [node("Conv", "x w b", "c"), node("L", "c", "r", domain="own", **said), node("Conv", "r v", "y")]
    change = calls([slope()], attribute_protos=[helper.make_attribute("slope", 0.4)])
    model = written(tmp_path / "net.onnx", nodes, change)
    found = run(tmp_path, model, PLANE, output="logits")
    np.testing.assert_allclose(found, mixed(leaky(linear(PLANE), expected)), atol=1e-5)


def test_a_function_of_another_version_is_converted(tmp_path):
    """Up to 17 a ReduceMean has its axes as an attribute."""
    nodes = [node("Conv", "x w b", "c"), node("L", "c", "m", domain="own"), node("Sub", "c m", "y")]
    model = written(tmp_path / "net.onnx", nodes, calls([node("ReduceMean", "a", "z", axes=[1])], opset=17))
    expected = linear(PLANE)
    found = run(tmp_path, model, PLANE, output="logits")
    np.testing.assert_allclose(found, expected - expected.mean(0), atol=1e-5)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("case", ["an input that nothing reads", "0 for a free size"])
def test_inputs_as_some_converters_write_them(tmp_path, case, backend):
    def change(model):
        if case.startswith("an input"):
            model.graph.input.insert(0, tensor("phase", [1]))
            return
        for value in (model.graph.input[0], model.graph.output[0]):
            for axis in (0, 2, 3):
                value.type.tensor_type.shape.dim[axis].dim_value = 0

    model = written(tmp_path / "net.onnx", [node("Conv", "x w b", "y")], change)
    found = run(tmp_path, model, PLANE, output="logits", window=(16, 16), backend=backend)
    np.testing.assert_allclose(found, linear(PLANE), atol=1e-5)


def several(model):
    model.graph.input.append(tensor("phase", [1, 1, 16, 16]))
    model.graph.node[0].input[0] = "both"
    model.graph.node.insert(0, node("Add", "x phase", "both"))


def shapeless(model):
    model.graph.input[0].type.tensor_type.ClearField("shape")


def strange(model):
    model.graph.node[0].output[0] = "c"
    model.graph.node.append(node("Wobble", "c", "y", domain="my.company"))


def eighths(model):
    model.graph.node[0].output[0] = "c"
    model.graph.node.append(node("Cast", "c", "y", to=onnx.TensorProto.FLOAT8E4M3FN))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT8E4M3FN
    model.opset_import[0].version = 19


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (several, r"2 inputs \(x, phase\); one image"),
        (shapeless, "nothing of the axes of its input x; export"),
        (strange, r"uses Wobble of my\.company, an operator of its own"),
        (eighths, "its output y holds float8e4m3fn, made by Cast"),
    ],
)
def test_what_cannot_be_run_is_named(tmp_path, change, words):
    with pytest.raises(ModelError, match=words):
        open_model(written(tmp_path / "net.onnx", [node("Conv", "x w b", "y")], change))
