"""ONNX files of others come in whatever their order of axes, types, heads and batch, and go out as the engine takes
them."""

import numpy as np
import pytest

from support.command_line import cli
from support.graphs import node

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
import onnx  # noqa: E402
from onnx import TensorProto as Type  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

from unet_engine.model.file import open_model  # noqa: E402

SLOPES = np.array([1, 2, 3], np.float32).reshape(3, 1, 1, 1)
SIZES = (16, 24)


def foreign(path, nodes, given, made, opset=19, **constants):
    """A graph from ``x``, (type, shape), to the outputs `made`, by name (type, shape)."""
    held = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    outputs = [helper.make_tensor_value_info(name, *what) for name, what in made.items()]
    inside = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", *given)], outputs, held)
    onnx.save(helper.make_model(inside, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def computed(out, x):
    session = onnxruntime.InferenceSession(str(out))
    (entry,) = session.get_inputs()
    (result,) = session.run(None, {entry.name: x})
    assert entry.type == "tensor(float)"
    assert result.dtype == np.float32
    return result


def image(channels=1):
    return np.random.default_rng(0).integers(0, 9, (1, channels, *SIZES)).astype(np.float32)


def exported(tmp_path, path, *options):
    said = cli("export", path, "--out", tmp_path / "out.onnx", "--window", "16,24", *options)
    return said, tmp_path / "out.onnx"


@pytest.mark.parametrize("sizes", [SIZES, ("h", "w")])
def test_channels_last_come_out_with_channels_first(tmp_path, sizes):
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w", "c"),
        node("Transpose", "c", "y", perm=[0, 2, 3, 1]),
    ]
    path = foreign(
        tmp_path / "f.onnx", nodes, (Type.FLOAT, [1, *sizes, 1]), {"y": (Type.FLOAT, [1, *sizes, 3])}, w=SLOPES
    )
    said, out = exported(tmp_path, path)
    assert said.code == 0, said.err
    spec = open_model(out).spec
    assert (spec.channels_in, spec.channels_out, spec.window) == (1, 3, SIZES)
    np.testing.assert_array_equal(computed(out, image()), image() * SLOPES[None, :, 0])


@pytest.mark.parametrize("kind", [Type.FLOAT16, Type.UINT8])
def test_other_types_come_out_as_float32(tmp_path, kind):
    inner = Type.FLOAT if kind == Type.UINT8 else kind
    weights = SLOPES.astype(helper.tensor_dtype_to_np_dtype(inner))
    nodes = [node("Cast", "x", "f", to=inner), node("Conv", "f w", "y")]
    path = foreign(tmp_path / "f.onnx", nodes, (kind, [1, 1, *SIZES]), {"y": (inner, [1, 3, *SIZES])}, w=weights)
    said, out = exported(tmp_path, path)
    assert said.code == 0, said.err
    np.testing.assert_allclose(computed(out, image()), image() * SLOPES[None, :, 0])


def test_the_numbers_before_an_argmax_come_out(tmp_path):
    nodes = [node("Conv", "x w", "c"), node("ArgMax", "c", "y", axis=1)]
    path = foreign(
        tmp_path / "f.onnx", nodes, (Type.FLOAT, [1, 1, *SIZES]), {"y": (Type.INT64, [1, 1, *SIZES])}, w=SLOPES
    )
    said, out = exported(tmp_path, path)
    assert said.code == 0, said.err
    np.testing.assert_array_equal(computed(out, image()), image() * SLOPES[None, :, 0])


def test_of_several_outputs_a_tie_is_refused_and_a_head_is_kept_alone(tmp_path):
    nodes = [
        node("Conv", "x w", "membrane"),
        node("Sin", "membrane", "nuclei"),
        node("MaxPool", "membrane", "deep", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    what = (Type.FLOAT, [1, 3, *SIZES])
    path = foreign(
        tmp_path / "f.onnx", nodes, (Type.FLOAT, [1, 1, *SIZES]),
        {"deep": (Type.FLOAT, [1, 3, 8, 12]), "membrane": what, "nuclei": what}, w=SLOPES,
    )  # fmt: skip
    said, out = exported(tmp_path, path, "--head", "nuclei")
    assert said.code == 0, said.err
    np.testing.assert_allclose(computed(out, image()), np.sin(image() * SLOPES[None, :, 0]), rtol=1e-4, atol=1e-5)
    said, out = exported(tmp_path, path)
    assert said.code == 5
    assert "name one with --head" in said.error
    assert "membrane (3×16×24)" in said.error


def test_a_fixed_batch_becomes_free(tmp_path):
    path = foreign(
        tmp_path / "f.onnx", [node("Conv", "x w", "y")], (Type.FLOAT, [4, 1, *SIZES]),
        {"y": (Type.FLOAT, [4, 3, *SIZES])},
        w=SLOPES,
    )  # fmt: skip
    said, out = exported(tmp_path, path)
    assert said.code == 0, said.err
    np.testing.assert_array_equal(computed(out, image()), image() * SLOPES[None, :, 0])


def test_group_normalisation_of_newer_opsets_comes_in(tmp_path):
    nodes = [node("Conv", "x w", "c"), node("GroupNormalization", "c s b", "y", num_groups=1)]
    path = foreign(
        tmp_path / "f.onnx", nodes, (Type.FLOAT, [1, 1, *SIZES]), {"y": (Type.FLOAT, [1, 3, *SIZES])}, opset=21,
        w=SLOPES, s=np.ones(3, np.float32), b=np.zeros(3, np.float32),
    )  # fmt: skip
    said, out = exported(tmp_path, path)
    assert said.code == 0, said.err
    y = image() * SLOPES[None, :, 0]
    np.testing.assert_allclose(computed(out, image()), (y - y.mean()) / np.sqrt(y.var() + 1e-5), atol=1e-4)


@pytest.mark.parametrize(
    ("last", "made", "words"),
    [
        (
            node("Greater", "c z", "y"),
            (Type.BOOL, [1, 3, *SIZES]),
            "holds bool, made by Greater; export the network with",
        ),
        (
            node("MaxPool", "c", "y", kernel_shape=[2, 2], strides=[2, 2]),
            (Type.FLOAT, [1, 3, 8, 12]),
            "another resolution",
        ),
    ],
)
def test_what_cannot_be_blended_is_refused_by_name(tmp_path, last, made, words):
    path = foreign(
        tmp_path / "f.onnx", [node("Conv", "x w", "c"), last], (Type.FLOAT, [1, 1, "h", "w"]), {"y": made}, w=SLOPES,
        z=np.float32(0),
    )  # fmt: skip
    said, out = exported(tmp_path, path)
    assert said.code == 5
    assert words in said.error
    assert not out.exists()
