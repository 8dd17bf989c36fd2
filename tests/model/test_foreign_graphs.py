"""Networks of others run as they were meant: their labels are those of ONNX Runtime over the whole image."""

import numpy as np
import pytest

from support.foreign import FLOAT, TensorProto, graph, helper, mixing, node, onnx, run, tensor, whole
from unet_engine.backends.base import Setup
from unet_engine.errors import BackendError, ModelError
from unet_engine.model import onnx_trial
from unet_engine.model.file import open_model
from unet_engine.model.onnx_network import largest_batch, network_of

RNG = np.random.default_rng(0)
PLANE = RNG.standard_normal((40, 50)).astype(np.float32)
COLOURS = RNG.standard_normal((40, 50, 3)).astype(np.float32)
BACKENDS = ("openvino", "onnxruntime")
SPEC = (
    '{"name": "net", "axes": "yx", "channels_in": 1, "channels_out": 3, "window": [16, 16], "window_min": [16, 16], '
    '"window_step": [0, 0], "margin": [0, 0]}'
)


@pytest.fixture(params=BACKENDS)
def backend(request):
    pytest.importorskip(request.param)
    return request.param


def conv(out="y", given="x"):
    return node("Conv", f"{given} w b", out)


def plane(path, nodes, outputs, weights=None, takes=FLOAT, *, size=(16, 16), batch=1, **more):
    return graph(path, nodes, tensor("x", [batch, 1, *size], takes), outputs, weights or mixing(3), **more)


def y(channels=3, size=(16, 16), kind=FLOAT, name="y", batch=1):
    return tensor(name, [batch, channels, *size], kind)


# --- several outputs ---


def heads(path, order="low full", low=2, names=("low", "full")):
    """The same numbers at full resolution and, averaged, at a lower one."""
    nodes = [
        node("AveragePool", "x", "d", kernel_shape=[low, low], strides=[low, low]), conv(names[0], "d"), conv(names[1]),
    ]  # fmt: skip
    outputs = {"low": y(size=(16 // low,) * 2, name=names[0]), "full": y(name=names[1])}
    return plane(path, nodes, [outputs[o] for o in order.split()])


@pytest.mark.parametrize("order", ["low full", "full low"])
def test_the_output_at_the_resolution_of_the_input_is_taken(tmp_path, backend, order):
    model = heads(tmp_path / "net.onnx", order)
    expected = whole(model, PLANE[None], order.split().index("full")).argmax(0)
    np.testing.assert_array_equal(run(tmp_path, model, PLANE, backend=backend), expected)
    assert "full (3×16×16) is taken, not low (3×8×8)" in open_model(model).notes[0]


def twins(path, **more):
    weights = {**mixing(3), "v": mixing(3, seed=5)["w"]}
    return plane(
        path, [conv("nuclei"), node("Conv", "x v b", "cells")], [y(name="nuclei"), y(name="cells")], weights, **more
    )


def test_equal_outputs_are_asked_about_and_named_with_head(tmp_path, backend):
    model = twins(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"nuclei \(3×16×16\), cells \(3×16×16\); name one with --head"):
        run(tmp_path, model, PLANE, backend=backend)
    for i, head in enumerate(("nuclei", "cells")):
        found = run(tmp_path, model, PLANE, backend=backend, head=head)
        np.testing.assert_array_equal(found, whole(model, PLANE[None], i).argmax(0))
    with pytest.raises(ModelError, match="no output 'seg'"):
        run(tmp_path, model, PLANE, head="seg")


def test_the_head_names_the_network(tmp_path):
    model = twins(tmp_path / "net.onnx")
    a, b = (open_model(model, head=head) for head in ("nuclei", "cells"))
    assert a.sha256 != b.sha256
    (tmp_path / "net.toml").write_text('head = "cells"\n')
    assert open_model(model).sha256 == b.sha256
    assert open_model(model, head="nuclei").sha256 == a.sha256


def test_logits_and_what_is_made_of_them_are_one_head(tmp_path, backend):
    nodes = [conv("logits"), node("Softmax", "logits", "p", axis=1), node("ArgMax", "p", "labels", axis=1)]
    outputs = [y(1, kind=TensorProto.INT64, name="labels"), y(name="p"), y(name="logits")]
    model = plane(tmp_path / "net.onnx", nodes, outputs)
    assert open_model(model).rewriting.output == "p"
    assert open_model(model).spec.activation == "probabilities"
    np.testing.assert_array_equal(run(tmp_path, model, PLANE, backend=backend), whole(model, PLANE[None], 0)[0])


def test_a_head_of_a_network_with_a_spec_of_its_own(tmp_path, backend):
    """Its channels are those that the spec says."""
    path = heads(tmp_path / "net.onnx", names=("p", "q"))
    model = onnx.load(path)
    model.metadata_props.add(key="unet_engine.spec", value=SPEC)
    onnx.save(model, path)
    np.testing.assert_array_equal(run(tmp_path, path, PLANE, backend=backend), whole(path, PLANE[None], 1).argmax(0))


def test_weights_in_another_file_go_along(tmp_path, backend):
    model = heads(tmp_path / "net.onnx")
    apart = str(tmp_path / "apart.onnx")
    onnx.save(onnx.load(model), apart, save_as_external_data=True, location="apart.bin", size_threshold=0)
    np.testing.assert_array_equal(run(tmp_path, apart, PLANE, backend=backend), whole(model, PLANE[None], 1).argmax(0))


def test_quantising_looks_at_the_head(tmp_path):
    """The reference, and the graphs that candidates are made from."""
    pytest.importorskip("onnxruntime")
    from unet_export.quantize.gate import reference

    path = twins(tmp_path / "net.onnx")
    model = open_model(path, head="cells")
    window = PLANE[None, None, :16, :16]
    infer, _ = reference(model, None, (16, 16))
    np.testing.assert_allclose(infer(window)[0], whole(path, window[0], 1), atol=1e-5)
    tensorrt = pytest.importorskip("unet_engine.backends.tensorrt")
    handed = onnx.load_from_string(tensorrt.network_of(Setup(model, (16, 16), "cuda:0", batch=2)))
    assert len(handed.graph.output) == 1
    assert [n.op_type for n in handed.graph.node].count("Conv") == 1
    assert [d.dim_value for d in handed.graph.input[0].type.tensor_type.shape.dim] == [2, 1, 16, 16]


# --- resolution ---


def scaled(path, factor, *, fixed=True):
    size = 16 if fixed else None
    if factor < 1:
        n = round(1 / factor)
        nodes = [node("AveragePool", "x", "d", kernel_shape=[n, n], strides=[n, n]), conv(given="d")]
    else:
        nodes = [conv("c"), node("Resize", "c  s", "y")]
        nodes[1].input[:] = ["c", "", "s"]
    weights = {**mixing(3), "s": np.array([1, 1, factor, factor], np.float32)}
    out = [None, None] if size is None else [int(size * factor)] * 2
    return plane(path, nodes, [y(size=out)], weights, size=[size] * 2)


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "free"])
@pytest.mark.parametrize("factor", [0.25, 0.5, 2])
def test_an_output_of_another_resolution_is_no_rim(tmp_path, factor, fixed):
    model = scaled(tmp_path / "net.onnx", factor, fixed=fixed)
    with pytest.raises(ModelError, match=r"16×16 into .*another resolution"):
        open_model(model, window=(16, 16))


@pytest.mark.parametrize("size", [16, None], ids=["fixed", "free"])
def test_a_rim_stays_a_rim_where_it_is_half_of_the_input(tmp_path, size):
    """Nine voxels of kernel: 16 become 8, as with a stride of two."""
    weights = {"w": RNG.standard_normal((2, 1, 9, 9)).astype(np.float32), "b": np.zeros(2, np.float32)}
    out = None if size is None else 8
    model = plane(tmp_path / "net.onnx", [conv()], [y(2, [out] * 2)], weights, size=[size] * 2)
    assert open_model(model, window=(16, 16)).spec.margin == (4, 4)
    expected = whole(model, np.pad(PLANE, 4, "reflect")[None]).argmax(0)
    np.testing.assert_array_equal(run(tmp_path, model, PLANE, window=(16, 16)), expected)


def stuck(path, factor):
    """A graph that inference cannot follow at a second size: it is flattened and put back with the sizes it was saved
    with. Half of the input is a stride of two, or a kernel of nine voxels."""
    n, stride = (2, 2) if factor == "stride" else (9, 1)
    nodes = [
        node("Conv", "x w b", "c", strides=[stride, stride]), node("Reshape", "c flat", "f"),
        node("Reshape", "f back", "y"),
    ]  # fmt: skip
    weights = {
        "w": RNG.standard_normal((2, 1, n, n)).astype(np.float32), "b": np.zeros(2, np.float32),
        "flat": np.array([1, 128]), "back": np.array([1, 2, 8, 8]),
    }  # fmt: skip
    return plane(path, nodes, [y(2, (8, 8))], weights)


def test_half_the_input_of_a_graph_of_one_size_is_asked_about(tmp_path):
    for kind in ("stride", "kernel"):
        with pytest.raises(ModelError, match=r"cannot be told.*margin = \[4, 4\]"):
            open_model(stuck(tmp_path / "net.onnx", kind))
    (tmp_path / "net.toml").write_text("margin = [4, 4]\n")
    assert open_model(tmp_path / "net.onnx").spec.margin == (4, 4)


@pytest.mark.parametrize("carried", [True, False])
def test_a_spec_that_takes_a_stride_for_a_rim_is_refused(tmp_path, carried):
    path = scaled(tmp_path / "net.onnx", 0.5)
    if carried:
        model = onnx.load(path)
        model.metadata_props.add(key="unet_engine.spec", value=SPEC.replace("[0, 0]}", "[4, 4]}"))
        onnx.save(model, path)
    else:
        (tmp_path / "net.toml").write_text("margin = [4, 4]\nchannels_out = 3\n")
    with pytest.raises(ModelError, match="another resolution"):
        open_model(path)


# --- types ---


@pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE"])
def test_numbers_of_another_precision(tmp_path, backend, kind):
    number = getattr(TensorProto, kind)
    numpy = onnx.helper.tensor_dtype_to_np_dtype(number)
    nodes = [
        node("Cast", "x", "f", to=FLOAT),
        conv("c", "f"),
        node("Cast", "c", "y", to=number),
    ]  # it has no other Conv
    if kind == "FLOAT16":
        model = plane(tmp_path / "net.onnx", [conv()], [y(kind=number)], mixing(3, kind=numpy), number)
    else:
        model = plane(tmp_path / "net.onnx", nodes, [y(kind=number)], takes=number)
    found = run(tmp_path, model, PLANE, backend=backend, output="logits")
    np.testing.assert_allclose(found, whole(model, PLANE[None].astype(numpy)), atol=5e-3 if kind == "FLOAT16" else 1e-5)


GREY = RNG.integers(0, 256, (40, 50)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["UINT8", "UINT16", "INT32", "INT64"])
def test_an_input_of_whole_numbers(tmp_path, backend, kind):
    number = getattr(TensorProto, kind)
    numpy = onnx.helper.tensor_dtype_to_np_dtype(number)
    nodes = [node("Cast", "x", "f", to=FLOAT), conv(given="f")]
    model = plane(tmp_path / "net.onnx", nodes, [y()], mixing(3, at=128), number)
    np.testing.assert_array_equal(
        run(tmp_path, model, GREY, backend=backend), whole(model, GREY[None].astype(numpy)).argmax(0)
    )
    assert kind.lower() in " ".join(open_model(model).notes)


def test_voxels_that_do_not_fit_the_input_are_cut_off_not_wrapped(tmp_path, backend):
    nodes = [node("Cast", "x", "f", to=FLOAT), conv(given="f")]
    weights = {"w": np.ones((1, 1, 1, 1), np.float32), "b": np.zeros(1, np.float32)}
    model = plane(tmp_path / "net.onnx", nodes, [y(1)], weights, TensorProto.UINT8)
    voxels = np.full((16, 16), -3.0, np.float32)
    voxels[0, :4] = 300, 255.4, 7.5, 254.6
    found = run(tmp_path, model, voxels, backend=backend, output="logits", overlap=0, blend="crop")
    np.testing.assert_allclose(found[0, 0, :5], [255, 255, 8, 255, 0], atol=1e-3)


@pytest.mark.parametrize("kind", ["INT32", "UINT8"])
def test_scores_in_whole_numbers(tmp_path, backend, kind):
    number = getattr(TensorProto, kind)
    nodes = [conv("c"), node("Mul", "c k", "m"), node("Add", "m o", "a"), node("Cast", "a", "y", to=number)]
    weights = {**mixing(3), "k": np.float32(10), "o": np.float32(100)}
    model = plane(tmp_path / "net.onnx", nodes, [y(kind=number)], weights)
    found = run(tmp_path, model, PLANE, backend=backend, output="logits")
    assert (np.abs(found - whole(model, PLANE[None]).astype(np.float32)) <= 1).all()


REFUSED = {
    "bool": ([conv("c"), node("Greater", "c zero", "y")], TensorProto.BOOL, 3, ("y holds bool", "Greater")),
    "labels": ([conv("c"), node("Cast", "c", "y", to=TensorProto.INT32)], TensorProto.INT32, 1,
               ("y holds int32", "--activation")),
    "a table": (
        [conv("c"), node("ArgMax", "c", "a", axis=1), node("Gather", "table a", "g"),
         node("Cast", "g", "y", to=TensorProto.UINT8)],
        TensorProto.UINT8, 1, ("y holds uint8",),
    ),
    "argmax of another axis": ([conv("c"), node("ArgMax", "c", "y", axis=2, keepdims=0)], TensorProto.INT64, 3,
                               ("y holds int64", "ArgMax")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_outputs_that_cannot_be_blended_are_named(tmp_path, case):
    nodes, kind, channels, words = REFUSED[case]
    weights = {
        **mixing(3 if channels == 3 or case == "a table" else 1),
        "zero": np.float32(0),
        "table": np.array([0, 2, 5]),
    }
    out = tensor("y", None, kind)
    model = plane(tmp_path / "net.onnx", nodes, [out], weights)
    with pytest.raises(ModelError, match=r"blended|numbers that lie before") as refused:
        open_model(model)
    assert all(word in str(refused.value) for word in words)


def test_a_sequence_is_no_image(tmp_path):
    """And is not run to see what shape it has."""
    out = helper.make_tensor_sequence_value_info("y", FLOAT, [1, 3, 16, 16])
    model = plane(tmp_path / "net.onnx", [conv("c"), node("SequenceConstruct", "c", "y")], [out])
    with pytest.raises(ModelError, match="its output y holds no tensor, made by SequenceConstruct; export"):
        open_model(model)


def test_a_rim_that_the_image_lacks_is_no_other_resolution(tmp_path):
    weights = {**mixing(3), "p": np.array([0, 0, 2, 2, 0, 0, 2, 2])}
    model = plane(tmp_path / "net.onnx", [node("Pad", "x p", "d"), conv(given="d")], [y(size=(20, 20))], weights)
    with pytest.raises(ModelError, match=r"16×16 into 20×20: its output is larger .*crop it"):
        open_model(model)


def test_inputs_of_strange_types_are_named(tmp_path):
    for kind, name in ((TensorProto.BOOL, "bool"), (TensorProto.STRING, "string")):
        nodes = [node("Cast", "x", "f", to=FLOAT), conv(given="f")]
        model = plane(tmp_path / "net.onnx", nodes, [y()], takes=kind)
        with pytest.raises(ModelError, match=f"input x takes {name}"):
            open_model(model)


def test_a_graph_without_outputs_is_named(tmp_path):
    path = plane(tmp_path / "net.onnx", [conv()], [y()])
    model = onnx.load(path)
    del model.graph.output[:]
    onnx.save(model, path)
    with pytest.raises(ModelError, match="no output"):
        open_model(path)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("after", ["", "Cast", "Transpose"])
def test_an_argmax_at_the_end_is_cut_off(tmp_path, backend, keep, after):
    kind = {"Cast": TensorProto.UINT8}.get(after, TensorProto.INT64)
    nodes = [conv("c"), node("ArgMax", "c", "a" if after else "y", axis=1, keepdims=keep)]
    if after == "Cast":
        nodes.append(node("Cast", "a", "y", to=kind))
    if after == "Transpose":
        nodes.append(node("Transpose", "a", "y", perm=[0, 2, 3, 1] if keep else [0, 1, 2]))
    model = plane(tmp_path / "net.onnx", nodes, [tensor("y", None, kind)])
    assert open_model(model).spec.channels_out == 3
    assert "ArgMax" in " ".join(open_model(model).notes)
    expected = np.squeeze(whole(model, PLANE[None]))
    np.testing.assert_array_equal(run(tmp_path, model, PLANE, backend=backend), expected)


def test_the_last_of_equals_is_not_the_first(tmp_path):
    nodes = [conv("c"), node("ArgMax", "c", "y", axis=1, select_last_index=1)]
    with pytest.raises(ModelError, match="ArgMax"):
        open_model(plane(tmp_path / "net.onnx", nodes, [tensor("y", None, TensorProto.INT64)]))


# --- channels last ---


def keras(path, size=(16, 16), given=3, out=4, nodes=None, *, weights=None, outputs=None, batch=1, **more):
    n = len(size)
    to, back = [0, n + 1, *range(1, n + 1)], [0, *range(2, n + 2), 1]
    nodes = nodes or [node("Transpose", "x", "t", perm=to), conv("c", "t"), node("Transpose", "c", "y", perm=back)]
    outputs = outputs or [tensor("y", [batch, *size, out])]
    return graph(path, nodes, tensor("x", [batch, *size, given]), outputs, weights or mixing(out, given, n), **more)


def of_colours(model, image=COLOURS):
    """Labels of ONNX Runtime for an image with channels last."""
    return whole(model, image)


@pytest.mark.parametrize("batch", [1, "N", None])
@pytest.mark.parametrize("size", [(16, 16), ("h", "w")], ids=["fixed", "free"])
def test_channels_last_of_colours(tmp_path, backend, size, batch):
    model = keras(tmp_path / "net.onnx", size, batch=batch)
    found = run(tmp_path, model, COLOURS, axes="yxc", backend=backend, window=(16, 16))
    np.testing.assert_array_equal(found, of_colours(model).argmax(-1))
    assert "channels last" in " ".join(open_model(model, (16, 16)).notes)


def test_channels_last_of_a_volume_of_one_channel(tmp_path, backend):
    """As converters write it: for one channel the Transpose is a Reshape."""
    nodes = [node("Reshape", "x to", "t"), conv("c", "t"), node("Transpose", "c", "y", perm=[0, 2, 3, 4, 1])]
    weights = {**mixing(2, 1, 3), "to": np.array([-1, 1, 8, 8, 8])}
    model = keras(tmp_path / "net.onnx", (8, 8, 8), 1, 2, nodes, weights=weights, batch="N")
    volume = RNG.standard_normal((12, 20, 20)).astype(np.float32)
    w, b = weights["w"].reshape(2), weights["b"]
    expected = (volume[..., None] * w + b).argmax(-1)
    np.testing.assert_array_equal(run(tmp_path, model, volume, backend=backend), expected)


def test_channels_last_with_softmax_and_argmax_at_the_end(tmp_path, backend):
    ends = {
        "softmax": ([node("Softmax", "t2", "y", axis=-1)], [tensor("y", [1, 16, 16, 4])]),
        "argmax": ([node("ArgMax", "t2", "y", axis=-1, keepdims=0)], [tensor("y", [1, 16, 16], TensorProto.INT64)]),
        "argmax first": ([node("ArgMax", "c", "y", axis=1, keepdims=0)], [tensor("y", [1, 16, 16], TensorProto.INT64)]),
    }
    for name, (end, outputs) in ends.items():
        nodes = [
            node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
            conv("c", "t"),
            node("Transpose", "c", "t2", perm=[0, 2, 3, 1]),
            *end,
        ]
        model = keras(tmp_path / "net.onnx", nodes=nodes, outputs=outputs)
        expected = of_colours(model)
        expected = expected.argmax(-1) if name == "softmax" else expected
        np.testing.assert_array_equal(
            run(tmp_path, model, COLOURS, axes="yxc", backend=backend), expected, err_msg=name
        )
        assert open_model(model).spec.activation == ("probabilities" if name == "softmax" else "softmax")


def test_channels_last_in_alone_and_out_alone(tmp_path, backend):
    model = keras(
        tmp_path / "in.onnx", nodes=[node("Transpose", "x", "t", perm=[0, 3, 1, 2]), conv("y", "t")], outputs=[y(4)]
    )
    np.testing.assert_array_equal(
        run(tmp_path, model, COLOURS, axes="yxc", backend=backend), of_colours(model).argmax(0)
    )
    nodes = [conv("c"), node("Transpose", "c", "y", perm=[0, 2, 3, 1])]
    model = plane(tmp_path / "out.onnx", nodes, [tensor("y", [1, 16, 16, 3])])
    np.testing.assert_array_equal(run(tmp_path, model, PLANE, backend=backend), whole(model, PLANE[None]).argmax(-1))


def test_axes_that_nothing_tells_are_asked_for(tmp_path):
    nodes = [node("Mul", "x two", "y")]
    model = keras(tmp_path / "net.onnx", nodes=nodes, out=3, weights={"two": np.float32(2)})
    with pytest.raises(ModelError, match=r'16×16×3 has channels last.*axes = "yxc" or axes = "cyx" to net.toml'):
        open_model(model)
    (tmp_path / "net.toml").write_text('axes = "yxc"\n')
    np.testing.assert_array_equal(run(tmp_path, model, COLOURS, axes="yxc"), COLOURS.argmax(-1))


def test_axes_that_swap_on_the_way_are_put_back(tmp_path, backend):
    """The output has x before y."""
    nodes = [conv("c"), node("Transpose", "c", "y", perm=[0, 1, 3, 2])]
    model = plane(tmp_path / "net.onnx", nodes, [y()])
    expected = whole(model, PLANE[None]).argmax(0).T
    np.testing.assert_array_equal(run(tmp_path, model, PLANE, backend=backend), expected)


def test_no_axis_of_channels_at_all(tmp_path, backend):
    nodes = [node("Unsqueeze", "x one", "u"), conv("c", "u"), node("Squeeze", "c one", "y")]
    weights = {**mixing(1), "one": np.array([1])}
    model = graph(tmp_path / "net.onnx", nodes, tensor("x", [1, 16, 16]), [tensor("y", [1, 16, 16])], weights)
    np.testing.assert_array_equal(run(tmp_path, model, PLANE, backend=backend), whole(model, PLANE) > 0)


# --- the batch ---

NORMALISED = [
    conv("c"), node("Reshape", "c groups", "g"), node("InstanceNormalization", "g s z", "n"),
    node("Reshape", "n back", "y"),
]  # fmt: skip


def grouped(path, batch, size=16):
    """A group normalisation as exporters write it out, with the batch among its sizes."""
    weights = {
        **mixing(4), "groups": np.array([batch, 2, 2 * size * size]), "back": np.array([batch, 4, size, size]),
        "s": np.ones(2, np.float32), "z": np.zeros(2, np.float32),
    }  # fmt: skip
    return plane(path, NORMALISED, [y(4, batch=batch)], weights, batch=batch)


def mixed(path, batch):
    """A graph whose batch cannot be proved to be free: it goes to another place and back."""
    nodes = [
        conv("c"),
        node("Transpose", "c", "t", perm=[1, 0, 2, 3]),
        node("Relu", "t", "r"),
        node("Transpose", "r", "y", perm=[1, 0, 2, 3]),
    ]
    return plane(path, nodes, [y(batch=batch)], batch=batch)


@pytest.mark.parametrize("make", [grouped, mixed])
def test_a_fixed_batch_is_rewritten(tmp_path, backend, make):
    model, single = make(tmp_path / "four.onnx", 4), make(tmp_path / "one.onnx", 1)
    for blend in ("gaussian", "crop"):
        np.testing.assert_allclose(
            run(tmp_path, model, PLANE, backend=backend, output="logits", blend=blend),
            run(tmp_path, single, PLANE, backend=backend, output="logits", blend=blend), atol=1e-5,
        )  # fmt: skip


@pytest.mark.parametrize("saved", [1, 4])
@pytest.mark.parametrize("make", [grouped, mixed])
def test_batches_on_a_device(tmp_path, make, saved):
    """Windows that share a batch do not meet, whatever batch the graph was saved for."""
    pytest.importorskip("onnxruntime")
    model = make(tmp_path / "net.onnx", saved)
    expected = run(tmp_path, make(tmp_path / "one.onnx", 1), PLANE, backend="onnxruntime", output="logits")
    found = run(tmp_path, model, PLANE, backend="onnxruntime", output="logits", device="simulated", batch=3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_proved_of_a_batch(tmp_path):
    """A graph that is not proved takes one window at a time on a GPU; one that is takes any number."""
    for saved in (1, 4):
        assert largest_batch(open_model(grouped(tmp_path / "net.onnx", saved))) is None
        assert largest_batch(open_model(mixed(tmp_path / "net.onnx", saved))) == 1
    free = plane(tmp_path / "net.onnx", [conv()], [y(batch=None)], batch="n")
    assert largest_batch(open_model(free)) is None
    assert network_of(open_model(free), 5) == tmp_path / "net.onnx"


ACROSS = {
    "a sum over the batch": [conv("c"), node("ReduceMean", "c", "m", axes=[0]), node("Sub", "c m", "y")],
    "rows side by side": [conv("c"), node("Concat", "c c", "d", axis=0), node("Slice", "d zero one zero", "y")],
    "a shape that is computed": [conv("c"), node("Shape", "c", "n"), node("Reshape", "c n", "y")],
    "a softmax over the batch": [conv("c"), node("Softmax", "c", "s", axis=0), node("Div", "s c", "y")],
    "weights per row": [conv("c"), node("Mul", "c rows", "y")],
    "rows among the groups": [conv("c"), node("Reshape", "c wide", "r"), node("Relu", "r", "s"),
                              node("Reshape", "s back", "y")],
}  # fmt: skip


@pytest.mark.parametrize("case", ACROSS)
def test_what_may_look_across_a_batch_is_not_proved(tmp_path, case):
    weights = {
        **mixing(3), "rows": np.ones((2, 3, 1, 1), np.float32), "wide": np.array([1, 6, 16, 16]),
        "back": np.array([2, 3, 16, 16]),
        "zero": np.array([0]), "one": np.array([2]),
    }  # fmt: skip
    assert largest_batch(open_model(plane(tmp_path / "net.onnx", ACROSS[case], [y(batch=2)], weights, batch=2))) == 1


# --- what inference cannot tell ---


def test_group_normalisation_of_newer_opsets(tmp_path, backend):
    nodes = [conv("c"), node("GroupNormalization", "c s z", "n", num_groups=2), node("Relu", "n", "y")]
    weights = {**mixing(4), "s": np.ones(4, np.float32), "z": np.zeros(4, np.float32)}
    for opset in (18, 21, 22):
        if opset == 18:
            weights = {**weights, "s": np.ones(2, np.float32), "z": np.zeros(2, np.float32)}
        else:
            weights = {**weights, "s": np.ones(4, np.float32), "z": np.zeros(4, np.float32)}
        model = plane(tmp_path / "net.onnx", nodes, [y(4, ("h", "w"))], weights, size=("h", "w"), opset=opset, ir=10)
        assert open_model(model, (16, 16)).spec.channels_out == 4
    image = PLANE[:16, :16]
    found = run(tmp_path, model, image, window=(16, 16), backend=backend, output="logits")
    np.testing.assert_allclose(found, whole(model, image[None]), atol=1e-5)


def hidden(path):
    """A graph whose shapes inference cannot tell: sizes are computed in floating point. It pools by two."""
    nodes = [
        node("MaxPool", "x", "p", kernel_shape=[2, 2], strides=[2, 2]), node("Resize", "p none scales", "u"),
        node("Mul", "u zero", "z"),
        node("Add", "x z", "a"), conv("c", "a"), node("Shape", "c", "n"), node("Cast", "n", "f", to=FLOAT),
        node("Mul", "f one", "m"),
        node("Cast", "m", "to", to=TensorProto.INT64), node("Reshape", "c to", "y"),
    ]  # fmt: skip
    nodes[1].input[1] = ""
    weights = {**mixing(3), "scales": np.array([1, 1, 2, 2], np.float32), "zero": np.float32(0), "one": np.float32(1)}
    return plane(path, nodes, [tensor("y", None)], weights, size=("h", "w"))


def test_a_shape_that_inference_cannot_tell_is_found_by_running(tmp_path, backend):
    model = hidden(tmp_path / "net.onnx")
    expected = whole(plane(tmp_path / "plain.onnx", [conv()], [y()]), PLANE[None]).argmax(0)
    np.testing.assert_array_equal(run(tmp_path, model, PLANE, window=(16, 16), backend=backend), expected)
    with pytest.raises(ModelError, match="does not take windows of 17×16"):
        open_model(model, (17, 16))


def test_a_complete_spec_wins_where_nothing_can_be_run(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_trial, "find_spec", lambda name: None)
    model = hidden(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"write channels_out and margin to net\.toml"):
        open_model(model, (16, 16))
    (tmp_path / "net.toml").write_text("channels_out = 3\nmargin = [0, 0]\nwindow = [16, 16]\n")
    assert open_model(model).spec.channels_out == 3
    np.testing.assert_array_equal(
        run(tmp_path, model, PLANE), whole(plane(tmp_path / "plain.onnx", [conv()], [y()]), PLANE[None]).argmax(0)
    )


def test_sizes_of_a_spec_beside_it_are_kept(tmp_path):
    """A graph with free sizes, of which the file says which it takes."""
    model = plane(tmp_path / "net.onnx", [conv()], [y(size=("h", "w"))], size=("h", "w"))
    (tmp_path / "net.toml").write_text("window = [16, 16]\nwindow_min = [8, 8]\nwindow_step = [8, 8]\n")
    assert open_model(model).spec.window_step == (8, 8)
    expected = whole(model, PLANE[None]).argmax(0)
    np.testing.assert_array_equal(run(tmp_path, model, PLANE, window=(24, 16)), expected)


# --- whole numbers and normalisation ---


@pytest.mark.parametrize(
    ("options", "voxels", "words"),
    [({"normalize": "zscore"}, GREY, "rounded"), ({}, GREY.astype(np.uint16) * 16, "cut off")],
)
def test_voxels_that_a_network_of_whole_numbers_cannot_take_are_told(tmp_path, options, voxels, words):
    nodes = [node("Cast", "x", "f", to=FLOAT), conv(given="f")]
    model = plane(tmp_path / "net.onnx", nodes, [y()], takes=TensorProto.UINT8)
    with pytest.raises(BackendError, match=f"--strict.*uint8.*{words}"):
        run(tmp_path, model, voxels, strict=True, **options)
    np.testing.assert_array_equal(run(tmp_path, model, GREY, strict=True), whole(model, GREY[None]).argmax(0))


@pytest.mark.parametrize("size", [("h", "w"), (-1, -1)])
def test_windows_of_any_size_are_asked_for(tmp_path, size):
    """Also where a converter wrote what is free as -1."""
    model = plane(tmp_path / "net.onnx", [conv()], [y(size=size)], size=size, batch=size[0] if size[0] == -1 else 1)
    with pytest.raises(
        ModelError, match=r"windows of any size along yx; choose one with --window, e\.g\. --window 64,64"
    ):
        open_model(model)
    assert open_model(model, (16, 16)).spec.window == (16, 16)


TRUE = {**mixing(3), "rate": np.float32(0.5), "yes": np.array(True)}  # noqa: FBT003


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([conv("c"), node("RandomNormalLike", "c", "r"), node("Add", "c r", "y")], r"RandomNormalLike.*net\.eval"),
        ([conv("c"), node("Dropout", "c rate yes", "y")], r"as it is trained: a Dropout.*net\.eval"),
    ],
)
def test_outputs_that_are_drawn_by_lot_are_refused(tmp_path, nodes, words):
    """They would be other labels each time, and two libraries would be told to differ."""
    with pytest.raises(ModelError, match=words):
        open_model(plane(tmp_path / "net.onnx", nodes, [y()], TRUE))


TRAINED = {**mixing(3), "one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)}
AS_TRAINED = node("BatchNormalization", "c one zero zero one", "y mean var", training_mode=1)
BEFORE_14 = node("BatchNormalization", "c one zero zero one", "y mean var saved_mean saved_var")


@pytest.mark.parametrize(("norm", "opset"), [(AS_TRAINED, 15), (BEFORE_14, 9)])
def test_statistics_of_each_window_are_told(tmp_path, norm, opset):
    model = plane(tmp_path / "net.onnx", [conv("c"), norm], [y()], TRAINED, opset=opset)
    assert any("statistics of each window" in note for note in open_model(model).notes)


@pytest.mark.parametrize(
    ("norm", "opset", "batch"), [(AS_TRAINED, 15, None), (AS_TRAINED, 15, 2), (BEFORE_14, 9, None)]
)
def test_statistics_of_each_window_are_its_own(tmp_path, backend, norm, opset, batch):
    """Whatever shares its batch, and whatever windows were run before it: libraries keep what such a node learns."""
    model = plane(tmp_path / "net.onnx", [conv("c"), norm], [y(batch=batch)], TRAINED, batch=batch or "n", opset=opset)
    window = PLANE[:16, :16]
    mixed = np.einsum("oi,yx->oyx", TRAINED["w"][:, :, 0, 0], window)
    expected = (mixed - mixed.mean((1, 2), keepdims=True)) / np.sqrt(mixed.var((1, 2), keepdims=True) + 1e-5)
    settings = {"backend": backend, "output": "logits", "activation": "none", "overlap": 0, "blend": "constant"}
    rows = np.stack([window, 9 * window, window + 7]).reshape(48, 16)
    for options in ({}, {"device": "simulated", "batch": 3} if backend == "onnxruntime" else {"threads": 1}):
        found = run(tmp_path, model, rows, normalize="none", **settings, **options)
        np.testing.assert_allclose(found[:, :16], expected, atol=1e-4)


MEETING = {
    "a mean over the batch": [
        conv("c"), node("ReduceMean", "c", "m", axes=[0, 2, 3], keepdims=1), node("Sub", "c m", "y"),
    ],
    "the largest of all": [conv("c"), node("ReduceMax", "c", "m"), node("Div", "c m", "y")],
    "a softmax over the batch": [conv("c"), node("Softmax", "c", "s", axis=0), node("Div", "s c", "y")],
}  # fmt: skip


@pytest.mark.parametrize("case", MEETING)
def test_windows_that_change_one_another_never_share_a_batch(tmp_path, case):
    """Of a graph that takes any batch: what becomes of a window on a device is what becomes of it on a processor."""
    pytest.importorskip("onnxruntime")
    model = plane(tmp_path / "net.onnx", MEETING[case], [y(batch=None)], batch="n", opset=15)
    assert largest_batch(open_model(model)) == 1
    settings = {"backend": "onnxruntime", "output": "logits", "activation": "none"}
    expected = run(tmp_path, model, PLANE, **settings)
    found = run(tmp_path, model, PLANE, device="simulated", batch=3, **settings)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_made_of_sizes_is_no_row(tmp_path):
    """A product of sizes, as exporters write it to reshape, and a mean over space look across no batch."""
    nodes = [
        conv("c"), node("Shape", "c", "n"), node("ReduceProd", "n", "p", axes=[0]), node("Cast", "p", "f", to=FLOAT),
        node("Mul", "c f", "d"), node("ReduceMean", "d", "m", axes=[2, 3]), node("Sub", "d m", "y"),
    ]  # fmt: skip
    model = plane(tmp_path / "net.onnx", nodes, [y(batch=None)], batch="n", opset=15)
    assert largest_batch(open_model(model)) is None


def branching(condition):
    """A graph that negates what it convolves, or not."""
    then, other = (
        onnx.helper.make_graph([node(kind, "c", name)], name, [], [y(name=name)])
        for kind, name in (("Neg", "a"), ("Abs", "b"))
    )
    return [conv("c"), *condition, onnx.helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)]


MEAN = [node("ReduceMean", "c", "m", keepdims=0), node("Greater", "m zero", "yes")]
SIZE = [node("Shape", "c", "s"), node("ReduceMax", "s", "n", keepdims=0), node("Greater", "n eight", "yes")]


@pytest.mark.parametrize(("condition", "told"), [(MEAN, True), (SIZE, False)])
def test_branches_that_the_values_of_a_window_decide_are_told(tmp_path, condition, told):
    held = {**mixing(3), "zero": np.float32(0), "eight": np.int64(8)}
    model = open_model(plane(tmp_path / "net.onnx", branching(condition), [y()], held, opset=15))
    assert any("its If asks for values of the window" in note for note in model.notes) == told
