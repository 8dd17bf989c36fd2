"""Foreign networks that end in a sigmoid or softmax: labels and probabilities are those of the network, applied
once."""

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from unet_engine.errors import ModelError, SettingsError
from unet_engine.model.file import open_model
from unet_engine.model.spec import METADATA_KEY
from unet_engine.stitching import operations

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

VOXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 20), dtype=np.uint8)
LOGIT = (VOXELS.astype(np.float64) - 128) / 16
P = 1 / (1 + np.exp(-LOGIT))


def node(kind, given, out, **attributes):
    return helper.make_node(kind, given.split(), [out], **attributes)


def network(path, nodes, channels=1, axes=3, opset=17, out=None, **more):
    """A convolution "c" of logits (x - 128) / 16 times 1, -1, 0.5 per channel, and `nodes` that lead from it to "y"."""
    factors = np.array([1, -1, 0.5], np.float32)[:channels]
    weights = {
        "w": (factors / 16).reshape(channels, 1, *(1,) * axes), "b": factors * np.float32(-8),
        "zero": np.float32(0), "one": np.float32(1), "half": np.float32(0.5), "tiny": np.float32(1e-7),
        "full": np.float32(255),
        "axis1": np.array([1]), **more,
    }  # fmt: skip
    shape = [1, 1, *(8,) * axes]
    graph = helper.make_graph(
        [node("Conv", "x w b", "c"), *nodes], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, out or channels, *shape[2:]])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return str(path)


def scan(folder, axes=3):
    path = folder / "v.zarr"
    if not path.exists():
        zarr.save_array(str(path), VOXELS if axes == 3 else VOXELS[0])
    return str(path)


def run(folder, model, axes=3, **options):
    out = str(folder / f"{len(list(folder.iterdir()))}.zarr")
    unet_engine.run(scan(folder, axes), model=model, out=out, **options)
    return zarr.open_array(out + "/0", mode="r")[...]


SHAPE = np.array([1, 1, 8, 64])
BACK = np.array([1, 1, 8, 8, 8])
ONE_CHANNEL = {
    "Sigmoid": [node("Sigmoid", "c", "y")],
    "Identity": [node("Sigmoid", "c", "s"), node("Identity", "s", "y")],
    "Clip": [node("Sigmoid", "c", "s"), node("Clip", "s tiny one", "y")],
    "Reshape": [node("Sigmoid", "c", "s"), node("Reshape", "s to", "r"), node("Reshape", "r back", "y")],
    "Transpose": [
        node("Transpose", "c", "t", perm=[0, 2, 3, 4, 1]), node("Sigmoid", "t", "s"),
        node("Transpose", "s", "y", perm=[0, 4, 1, 2, 3]),
    ],
    "Reshape by the input's own shape":
        [node("Sigmoid", "c", "s"), node("Shape", "x", "n"), node("Reshape", "s n", "y")],
    "mean": [
        node("Sigmoid", "c", "s"), node("Sigmoid", "c", "t"), node("Add", "s t", "a"), node("Mul", "a half", "y"),
    ],
    "written out": [node("Neg", "c", "n"), node("Exp", "n", "e"), node("Add", "e one", "a"), node("Div", "one a", "y")],
}  # fmt: skip


CROPPED = {"from": np.array([1, 1, 1]), "to": np.array([-1, -1, -1]), "spatial": np.array([2, 3, 4])}
OTHERS = {
    "Tanh": [
        node("Mul", "c half", "h"), node("Tanh", "h", "t"), helper.make_node("Constant", [], ["o"], value_float=1.0),
        node("Add", "t o", "u"), node("Mul", "u half", "y"),
    ],
    "Erf": [node("Erf", "c", "t"), node("Add", "t one", "u"), node("Mul", "u half", "y")],
    "Softsign": [node("Softsign", "c", "t"), node("Add", "t one", "u"), node("Mul", "u half", "y")],
    "squared": [node("Sigmoid", "c", "s"), node("Pow", "s two", "y")],
    "smoothed": [node("Sigmoid", "c", "s"), node("AveragePool", "s", "y", kernel_shape=[1, 1, 1])],
    "padded": [node("Sigmoid", "c", "s"), node("Slice", "s from to spatial", "q"), node("Pad", "q pads", "y")],
    "replaced": [node("Sigmoid", "c", "s"), node("ScatterND", "s place zeros", "y")],
    "of whole numbers": [
        node("Sigmoid", "c", "s"), node("QuantizeLinear", "s step zero8", "q"),
        node("DequantizeLinear", "q step zero8", "y"),
    ],
    "mean over a batch": [
        node("Sigmoid", "c", "s"), node("Sigmoid", "c", "t"), node("Concat", "s t", "k", axis=0),
        node("ReduceMean", "k", "y", axes=[0], keepdims=1),
    ],
    "as another one": [node("Sigmoid", "c", "s"), node("CastLike", "s c", "y")],
}  # fmt: skip


@pytest.mark.parametrize("ending", OTHERS)
def test_other_ways_to_end_between_0_and_1(tmp_path, ending):
    pytest.importorskip("onnxruntime")
    model = network(
        tmp_path / "net.onnx", OTHERS[ending], two=np.float32(2), step=np.float32(1 / 255), zero8=np.int8(-128),
        pads=np.array([0, 0, 1, 1, 1] * 2), place=np.array([[0, 0, 0, 0, 0]]), zeros=np.zeros(1, np.float32), **CROPPED,
    )  # fmt: skip
    assert open_model(model).spec.activation == "probabilities"
    if ending not in ("padded", "replaced", "Erf"):  # of them, no whole image is computed like a window, or rounds
        sure = VOXELS != 128  # a half, which whole numbers round
        expected = P**2 > 0.5 if ending == "squared" else VOXELS > 128
        np.testing.assert_array_equal(run(tmp_path, model)[sure], expected[sure])


@pytest.mark.parametrize(("kind", "nodes"), [
    ("TopK", [helper.make_node("TopK", ["c", "most"], ["v", "i"], axis=1), node("Cast", "i", "y", to=1)]),
    ("TopK", [helper.make_node("TopK", ["c", "most"], ["v", "i"], axis=1), node("Cast", "i", "f", to=1), node("Mul", "f two", "y")]),
    ("Gather", [
        node("ArgMax", "c", "m", axis=1, keepdims=1), node("Gather", "table m", "y"),
    ]),
])  # fmt: skip
def test_places_and_what_a_table_has_for_them_are_labels_and_not_blended(tmp_path, kind, nodes):
    given = {"most": np.array([1]), "two": np.float32(2), "table": np.array([0, 10, 20], np.float32)}
    model = network(tmp_path / "net.onnx", nodes, 3, **given)
    with pytest.raises(ModelError, match=f"the network ends in {kind}, with whole numbers, which are labels"):
        run(tmp_path, model)


@pytest.mark.parametrize("kind", ["Relu", "Softplus", "Abs"])
def test_numbers_that_are_never_negative_are_no_logits(tmp_path, kind):
    """Every voxel would be at a probability of 0.5 or more."""
    model = network(tmp_path / "net.onnx", [node(kind, "c", "y")])
    for output in ("labels", "probabilities", "masks"):
        with pytest.raises(SettingsError, match=f"{output} are asked for, and the network ends in {kind}.*never below"):
            run(tmp_path, model, output=output)
    assert run(tmp_path, model, output="logits").min() >= 0
    asked = ["run", "--in", scan(tmp_path), "--model", model, "--out", str(tmp_path / "n.zarr"), "--activation", "none"]
    assert ("so that all are 1" in cli(*asked).err) == (kind == "Softplus")


@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_around_0_are_no_logits_to_make_probabilities_of(tmp_path, channels):
    model = network(tmp_path / "net.onnx", [node("Tanh", "c", "y")], channels)
    with pytest.raises(SettingsError, match="ends in Tanh, whose outputs lie from -1 to 1"):
        run(tmp_path, model, output="probabilities")
    values = np.stack([LOGIT, -LOGIT, LOGIT / 2])
    labels = VOXELS > 128 if channels == 1 else values.argmax(0)
    np.testing.assert_array_equal(run(tmp_path, model)[VOXELS != 128], labels[VOXELS != 128])


FUNCTIONS = {
    "sigmoid": ("Sigmoid", {}, 1, VOXELS > 128),
    "argmax": ("ArgMax", {"axis": 1, "keepdims": 1}, 3, None),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_the_file_are_looked_into(tmp_path, name):
    """Some exporters write an operator of the framework as a function of the file's own."""
    kind, attributes, channels, expected = FUNCTIONS[name]
    out = 1 if name == "argmax" else channels
    model = onnx.load(network(tmp_path / "net.onnx", [node("Identity", "c", "y")], channels, out=channels))
    own = [node(kind, "a", "b", **attributes)]
    model.functions.append(helper.make_function("pkg", name, ["a"], ["b"], own, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("pkg", 1))
    model.graph.node[-1].CopyFrom(helper.make_node(name, ["c"], ["y"], domain="pkg"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = out
    if name == "argmax":
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, tmp_path / "net.onnx")
    values = np.stack([LOGIT, -LOGIT, LOGIT / 2])
    expected = values.argmax(0) if expected is None else expected
    sure = VOXELS != 128
    np.testing.assert_array_equal(run(tmp_path, str(tmp_path / "net.onnx"))[sure], expected[sure])


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("ending", ONE_CHANNEL)
def test_a_sigmoid_at_the_end_is_not_applied_twice(tmp_path, ending, backend):
    pytest.importorskip(backend)
    model = network(tmp_path / "net.onnx", ONE_CHANNEL[ending], to=SHAPE, back=BACK)
    assert open_model(model).spec.activation == "probabilities"
    np.testing.assert_array_equal(run(tmp_path, model, backend=backend), VOXELS > 128)
    found = run(tmp_path, model, backend=backend, output="probabilities", dtype="float32")
    np.testing.assert_allclose(found[0], P, atol=1e-5)


def test_a_hard_sigmoid_of_a_plane(tmp_path):
    model = network(tmp_path / "net.onnx", [node("HardSigmoid", "c", "y")], axes=2)
    assert "HardSigmoid" in open_model(model).ends_in
    np.testing.assert_array_equal(run(tmp_path, model, 2), VOXELS[0] > 128)
    found = run(tmp_path, model, 2, output="probabilities")
    np.testing.assert_allclose(found[0], 255 * np.clip(0.2 * LOGIT[0] + 0.5, 0, 1), atol=0.51)


WRITTEN_OUT = [
    node("ReduceMax", "c", "m", axes=[1]), node("Sub", "c m", "d"), node("Exp", "d", "e"),
    node("ReduceSum", "e axis1", "t"), node("Div", "e t", "y"),
]  # fmt: skip
SOFTMAX = {
    "Softmax": ([node("Softmax", "c", "y", axis=1)], "probabilities"),
    "Clip": ([node("Softmax", "c", "s", axis=1), node("Clip", "s zero one", "y")], "probabilities"),
    "Transpose": (
        [
            node("Transpose", "c", "t", perm=[0, 2, 3, 4, 1]), node("Softmax", "t", "s", axis=-1),
            node("Transpose", "s", "y", perm=[0, 4, 1, 2, 3]),
        ],
        "probabilities",
    ),
    "written out": (WRITTEN_OUT, "probabilities"),
    "LogSoftmax": ([node("LogSoftmax", "c", "y", axis=1)], "softmax"),
    "Exp": ([node("LogSoftmax", "c", "s", axis=1), node("Exp", "s", "y")], "probabilities"),
    "ReduceLogSumExp": (
        [node("ReduceLogSumExp", "c", "s", axes=[1]), node("Sub", "c s", "d"), node("Exp", "d", "y")], "probabilities",
    ),
    "mean over a batch": (
        [
            node("Softmax", "c", "s", axis=1), node("Softmax", "c", "t", axis=1), node("Concat", "s t", "k", axis=0),
            node("ReduceMean", "k", "y", axes=[0], keepdims=1),
        ],
        "probabilities",
    ),
    "OneHot": (
        [node("ArgMax", "c", "m", axis=1, keepdims=0), node("OneHot", "m three bits", "y", axis=1)], "probabilities",
    ),
    "smoothed": (
        [node("Softmax", "c", "s", axis=1), node("AveragePool", "s", "y", kernel_shape=[1, 1, 1])], "probabilities",
    ),
}  # fmt: skip


@pytest.mark.parametrize("ending", SOFTMAX)
def test_a_softmax_at_the_end_is_not_applied_twice(tmp_path, ending):
    nodes, activation = SOFTMAX[ending]
    bits = {"three": np.int64(3), "bits": np.array([0, 1], np.float32)}
    model = network(tmp_path / "net.onnx", nodes, channels=3, **bits)
    assert open_model(model).spec.activation == activation
    e = np.exp(np.stack([LOGIT, -LOGIT, LOGIT / 2]))
    e = np.eye(3)[e.argmax(0)].transpose(3, 0, 1, 2) if ending == "OneHot" else e
    sure = VOXELS != 128  # all three are equal there
    np.testing.assert_array_equal(run(tmp_path, model)[sure], e.argmax(0)[sure])
    # logarithms are blended as the logits they are, of windows that agree here
    backend = {"backend": "onnxruntime"} if ending == "ReduceLogSumExp" else {}  # which OpenVINO computes wrongly
    found = run(tmp_path, model, output="probabilities", dtype="float32", **backend)
    np.testing.assert_allclose(found[:, sure], (e / e.sum(0))[:, sure], atol=1e-5)


def test_sigmoids_of_several_channels_stand_on_their_own(tmp_path):
    model = network(tmp_path / "net.onnx", [node("Sigmoid", "c", "y")], channels=2)
    assert open_model(model).spec.activation == "probabilities_each"
    labels = run(tmp_path, model, channels="classes")  # that they exclude one another is not to be seen
    np.testing.assert_array_equal(labels, np.where(VOXELS > 128, 1, np.where(VOXELS < 128, 2, 0)))


def test_the_second_half_of_a_split_is_looked_at_too(tmp_path):
    nodes = [node("Sigmoid", "c", "s"), helper.make_node("Split", ["s"], ["z", "y"], axis=1)]
    model = network(tmp_path / "net.onnx", nodes, channels=2, out=1)
    np.testing.assert_array_equal(run(tmp_path, model), VOXELS < 128)


def test_a_probability_and_its_opposite_exclude_one_another(tmp_path):
    nodes = [node("Sigmoid", "c", "s"), node("Sub", "one s", "n"), node("Concat", "n s", "y", axis=1)]
    model = network(tmp_path / "net.onnx", nodes, out=2)
    assert open_model(model).spec.activation == "probabilities"
    np.testing.assert_array_equal(run(tmp_path, model), VOXELS > 128)


MASKS = {
    "Round": [node("Sigmoid", "c", "s"), node("Round", "s", "y")],
    "Greater": [node("Sigmoid", "c", "s"), node("Greater", "s half", "m"), node("Cast", "m", "y", to=TensorProto.FLOAT)],
    "Not": [
        node("LessOrEqual", "c zero", "m"), node("Not", "m", "n"), node("Cast", "n", "i", to=TensorProto.INT64),
        node("Cast", "i", "y", to=TensorProto.FLOAT),
    ],
    "Where": [node("Greater", "c zero", "m"), node("Where", "m one zero", "y")],
}  # fmt: skip


@pytest.mark.parametrize("ending", MASKS)
def test_masks_at_the_end_are_no_logits(tmp_path, ending):
    """A sigmoid of 0 and 1 would be 0.5 and 0.73."""
    model = network(tmp_path / "net.onnx", MASKS[ending])
    assert open_model(model).ends_in == f"the network ends in {ending}"
    np.testing.assert_array_equal(run(tmp_path, model), VOXELS > 128)
    found = run(tmp_path, model, output="probabilities", dtype="float32")
    np.testing.assert_allclose(found[0], VOXELS > 128, atol=1e-6)


IN_THE_MIDDLE = {
    "gate": [node("Sigmoid", "c", "s"), node("Mul", "c s", "y")],  # also Swish
    "convolution": [node("Sigmoid", "c", "s"), node("Conv", "s k", "y")],
    "clipped logits": [node("Clip", "c low high", "y")],
    "rounded to a grid": [node("Round", "c", "r"), node("Mul", "r half", "y")],  # as quantised graphs do
}


@pytest.mark.parametrize("ending", IN_THE_MIDDLE)
def test_a_sigmoid_in_the_middle_is_not_the_end(tmp_path, ending):
    more = {"k": np.ones((1, 1, 1, 1, 1), np.float32), "low": np.float32(-50), "high": np.float32(50)}
    model = open_model(network(tmp_path / "net.onnx", IN_THE_MIDDLE[ending], **more))
    assert (model.spec.activation, model.ends_in) == ("sigmoid", "")


ASKED = {
    "another axis": ([node("Softmax", "c", "y", axis=-1)], 3, None),
    "older, over all axes": ([node("Softmax", "c", "y", axis=1)], 3, 11),
    "part of the classes": ([node("Softmax", "c", "s", axis=1), node("Slice", "s one_ three axis1", "y")], 3, None),
    "times 255": ([node("Sigmoid", "c", "s"), node("Mul", "s full", "y")], 1, None),
    "levels of grey": ([node("Sigmoid", "c", "s"), node("Mul", "s full", "g"), node("Round", "g", "y")], 1, None),
    "rounded": ([node("Round", "c", "y")], 1, None),
    "masks of 0 and 255": ([node("Greater", "c zero", "m"), node("Where", "m full zero", "y")], 1, None),
    "labels by thresholds": (
        [
            node("Greater", "c zero", "m"),
            node("Greater", "c full", "n"),
            node("Cast", "m", "i", to=TensorProto.FLOAT),
            node("Cast", "n", "j", to=TensorProto.FLOAT),
            node("Add", "i j", "y"),
        ],
        1,
        None,
    ),
    "labels enlarged": (
        [
            node("ArgMax", "c", "m", axis=1),
            node("Cast", "m", "f", to=TensorProto.FLOAT),
            helper.make_node("Resize", ["f", "", "ones"], ["y"], mode="nearest"),
        ],
        3,
        None,
    ),
    "labels called otherwise": (
        [
            node("ArgMax", "c", "m", axis=1),
            node("Gather", "table m", "g"),
            node("Cast", "g", "y", to=TensorProto.FLOAT),
        ],
        3,
        None,
    ),
    "never above 0": ([node("Sigmoid", "c", "s"), node("Log", "s", "y")], 1, None),
}


@pytest.mark.parametrize("ending", ASKED)
def test_what_the_graph_does_not_settle_is_asked_for(tmp_path, ending):
    nodes, channels, opset = ASKED[ending]
    model = network(
        tmp_path / "net.onnx", nodes, channels, opset=opset or 17,
        out=2 if "part" in ending else 1 if "labels" in ending else None,
        ones=np.ones(5, np.float32), table=np.array([0, 2, 7]),
        one_=np.array([1]), three=np.array([3]),
    )  # fmt: skip
    with pytest.raises(ModelError, match="say what its outputs are with --activation"):
        open_model(model)
    assert open_model(model, activation="none").spec.activation == "none"


def test_the_option_and_the_file_beside_win(tmp_path):
    model = network(tmp_path / "net.onnx", [node("Sigmoid", "c", "y")])
    said = cli(
        "run", "--in", scan(tmp_path), "--model", model, "--out", str(tmp_path / "o.zarr"), "--activation", "sigmoid"
    )
    assert (said.code, "taken as" in said.err) == (0, False)
    (tmp_path / "net.toml").write_text('activation = "sigmoid"\n')
    assert open_model(model).spec.activation == "sigmoid"
    assert open_model(model, activation="probabilities").spec.activation == "probabilities"
    with pytest.raises(SettingsError, match="softmax over one channel is constant"):
        open_model(model, activation="softmax")


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_an_activation_that_the_graph_contradicts_is_told_and_an_error_under_strict(tmp_path, activation):
    """Every label would be 1: said on the command line, beside the file, or in a spec of its own."""
    model = network(tmp_path / "net.onnx", [node("Sigmoid", "c", "y")])
    asked = ["run", "--in", scan(tmp_path), "--model", model, "--overwrite", "--out", str(tmp_path / "o.zarr")]
    words = "net.onnx: the network ends in Sigmoid already, and"
    assert words in cli(*asked, "--activation", activation).err
    refused = cli(*asked, "--activation", activation, "--strict")
    assert (refused.code, words in refused.err) == (6, True)
    own = onnx.load(model)
    entry = own.metadata_props.add()
    spec = open_model(model).spec.model_copy(update={"activation": activation})
    entry.key, entry.value = METADATA_KEY, spec.model_dump_json()
    onnx.save(own, model)
    assert words in cli(*asked).err
    assert "already" not in cli(*asked, "--activation", "probabilities").err


def test_people_are_told_and_logits_refused(tmp_path):
    model = network(tmp_path / "net.onnx", [node("Sigmoid", "c", "y")])
    from_python = unet_engine.run(scan(tmp_path), model=model, out=str(tmp_path / "p.zarr"))
    assert any("its outputs are taken as probabilities" in note for note in from_python.plan_notes)
    assert cli("info", model, "--json").json["ends_in"] == "the network ends in Sigmoid"
    asked = ["--in", scan(tmp_path), "--model", model, "--out", str(tmp_path / "o.zarr")]
    assert "the network ends in Sigmoid: its outputs are taken as probabilities" in cli("plan", *asked).err
    said = cli("run", *asked, "--output", "logits")
    assert said.code == 2
    assert "net.onnx gives probabilities and has no logits" in said.error


@pytest.mark.parametrize("native", [True, False])
def test_a_half_is_background_however_it_was_rounded(monkeypatch, native):
    if not native:
        monkeypatch.setattr(operations, "_native", None)
    sums = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.501, np.nan]], np.float32).reshape(1, 1, 4)
    out = np.zeros((1, 4), np.uint8)
    operations.labels(sums, out, "probabilities")
    assert out.tolist() == [[0, 0, 1, 0]]
