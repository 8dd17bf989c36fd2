"""Every operation of bioimage.io before and behind a network: what a run feeds and gives, against the operations of its
own library, where that is installed, and always against NumPy."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("yaml")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from support import packages  # noqa: E402
from unet_engine.errors import ModelError  # noqa: E402
from unet_engine.model.normalization import Normalization  # noqa: E402
from unet_engine.volumes.normalize import scaling  # noqa: E402
from unet_export.importers.bioimageio import processing  # noqa: E402
from unet_export.importers.bioimageio.description import described  # noqa: E402
from unet_export.importers.files import Files  # noqa: E402
from unet_export.importers.steps import Affine, Cast, Sigmoid, wrapped_graph  # noqa: E402

step = packages.step
CZYX = ["channel", "y", "x"]
RAW = packages.image((1, 2, 24, 32)).astype(np.float32)
RAW[:, 1] = RAW[:, 1] * 0.25 + 7


def joint(x):
    return (x - x.mean()) / (x.std() + 1e-6)


def each(x):
    return (x - x.mean((2, 3), keepdims=True)) / (x.std((2, 3), keepdims=True) + 1e-6)


def ranged(x, low, high, axes):
    a, b = (np.percentile(x, p, axes, keepdims=True) for p in (low, high))
    return (x - a) / (b - a + 1e-6)


def cut(x, low, high, axes):
    return x.clip(*(np.percentile(x, p, axes, keepdims=True) for p in (low, high)))


PAIR = np.array([1.0, 2.0]).reshape(1, 2, 1, 1)
BEFORE = {
    "nothing": ([], lambda x: x),
    "per channel": ([step("zero_mean_unit_variance", axes=["y", "x"])], each),
    "channels together": ([step("zero_mean_unit_variance", axes=CZYX)], joint),
    "of all axes": ([step("zero_mean_unit_variance")], joint),
    "range": (
        [step("scale_range", axes=["y", "x"], min_percentile=1, max_percentile=99)], lambda x: ranged(x, 1, 99, (2, 3))
    ),
    "range of all": ([step("scale_range", axes=CZYX)], lambda x: ranged(x, 0, 100, (1, 2, 3))),
    "range, clipped to its ends": (
        [step("scale_range", axes=["y", "x"], min_percentile=2, max_percentile=98), step("clip", min=0.0, max=1.0)],
        lambda x: ranged(x, 2, 98, (2, 3)).clip(0, 1),
    ),
    "fixed": (
        [step("fixed_zero_mean_unit_variance", mean=300.0, std=120.0)], lambda x: (x - 300) / (120 + 1e-6)
    ),
    "fixed per channel": (
        [step("fixed_zero_mean_unit_variance", mean=[300.0, 50.0], std=[120.0, 9.0], axis="channel")],
        lambda x: (x - 300 * PAIR**0 * np.array([1, 1 / 6]).reshape(1, 2, 1, 1)) / np.array([120, 9]).reshape(1, 2, 1, 1),
    ),
    "linear": ([step("scale_linear", gain=0.5, offset=-3.0)], lambda x: x * 0.5 - 3),
    "linear per channel": (
        [step("scale_linear", gain=[1.0, 2.0], offset=[0.5, 1.0], axis="channel")], lambda x: x * PAIR + PAIR / 2
    ),
    "linear downwards": ([step("scale_linear", gain=-1.0, offset=1.0)], lambda x: 1 - x),
    "clip, then measure": ([step("clip", min=100.0, max=500.0), step("zero_mean_unit_variance", axes=["y", "x"])],
                           lambda x: each(x.clip(100, 500))),
    "linear, then clip": (
        [step("scale_linear", gain=0.01, offset=0.0), step("clip", min=1.0, max=4.0)], lambda x: (x * 0.01).clip(1, 4)
    ),
    "clip from below": ([step("clip", min=100.0)], lambda x: x.clip(100)),
    "measure, then clip": (
        [step("zero_mean_unit_variance", axes=["y", "x"]), step("clip", min=-1.0, max=1.0)], lambda x: each(x).clip(-1, 1)
    ),
    "measure, then linear": (
        [step("zero_mean_unit_variance", axes=["y", "x"]), step("scale_linear", gain=2.0, offset=1.0)],
        lambda x: each(x) * 2 + 1,
    ),
    "linear, then measure": (
        [step("scale_linear", gain=4.0, offset=1.0), step("zero_mean_unit_variance", axes=["y", "x"])],
        lambda x: each(x * 4 + 1),
    ),
    "measure twice": (
        [step("scale_range", axes=CZYX), step("zero_mean_unit_variance", axes=["y", "x"])], each
    ),
    "threshold": ([step("binarize", threshold=300.0)], lambda x: x > 300),
    "sigmoid": ([step("scale_linear", gain=0.01, offset=-2.0), step("sigmoid")], lambda x: 1 / (1 + np.exp(2 - x / 100))),
    "softmax": ([step("scale_linear", gain=0.001, offset=0.0), step("softmax", axis="channel")],
                lambda x: np.exp(x / 1000) / np.exp(x / 1000).sum(1, keepdims=True)),
    "percentiles of each channel are cut off": (
        [step("clip", min_percentile=5, max_percentile=80, axes=["y", "x"])], lambda x: cut(x, 5, 80, (2, 3))
    ),
    "percentiles of all are cut off, then each measured": (
        [step("clip", min_percentile=5, max_percentile=80), step("zero_mean_unit_variance", axes=["y", "x"])],
        lambda x: each(cut(x, 5, 80, (1, 2, 3))),
    ),
    "percentiles of each cut off, then all measured": (
        [step("clip", min_percentile=5, max_percentile=80, axes=["y", "x"]), step("zero_mean_unit_variance", axes=CZYX)],
        lambda x: joint(cut(x, 5, 80, (2, 3))),
    ),
    "a value and a percentile": (
        [step("clip", min=20.0, max_percentile=80, axes=["y", "x"])], lambda x: cut(x, 0, 80, (2, 3)).clip(20)
    ),
    "a percentile alone": ([step("clip", min_percentile=40)], lambda x: cut(x, 40, 100, (1, 2, 3))),
    "percentiles of what was cut off": (
        [step("clip", min=20.0, max_percentile=80, axes=["y", "x"]),
         step("scale_range", min_percentile=1, max_percentile=99, axes=["y", "x"])],
        lambda x: ranged(cut(x, 0, 80, (2, 3)).clip(20), 1, 99, (2, 3)),
    ),
    "types": ([step("ensure_dtype", dtype="float32"), step("scale_linear", gain=0.37, offset=0.0),
               step("ensure_dtype", dtype="int16")], lambda x: (x * np.float32(0.37)).astype(np.int16)),
}  # fmt: skip


def read(tmp_path, before=(), behind=()):
    folder = packages.package(
        tmp_path / "pkg", None, RAW, RAW, before=before, behind=behind, weights={"onnx": {"source": "n"}}
    )
    return described(Files(folder), "rdf.yaml")


def fed(said, x):
    """What the network gets of `x` (1, c, *space)."""
    found = processing.before_of(said, said.inputs[0])
    scale = scaling(Normalization.model_validate(found.normalization()), list(x[0]))
    y = torch.from_numpy(np.stack([scale.normalised(v, c) for c, v in enumerate(x[0])])[None])
    for made in found.steps:
        y = made.on_torch(y)
    return y.numpy()


@pytest.mark.parametrize("name", BEFORE)
def test_what_the_network_is_fed(tmp_path, name):
    steps, expected = BEFORE[name]
    got = fed(read(tmp_path, before=steps), RAW)
    np.testing.assert_allclose(got, expected(RAW.astype(np.float64)), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", BEFORE)
def test_the_library_of_the_format_feeds_the_same(tmp_path, name):
    core = pytest.importorskip("bioimageio.core.proc_ops")
    got, wanted = fed(read(tmp_path, before=BEFORE[name][0]), RAW), by_library(core, BEFORE[name][0], RAW)
    # of what is cut off it takes a value that is there, where NumPy's lies between two
    atol = 3e-3 * np.abs(wanted).max() if "cut off" in name or "a percentile" in name else 2e-5
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=atol)


def by_library(core, steps, x):
    """The steps as bioimageio.core does them."""
    from bioimageio.core import Sample, Tensor
    from bioimageio.core.stat_calculators import compute_measures
    from bioimageio.spec.model import v0_5

    kinds = {
        "zero_mean_unit_variance": v0_5.ZeroMeanUnitVarianceDescr, "scale_range": v0_5.ScaleRangeDescr,
        "fixed_zero_mean_unit_variance": v0_5.FixedZeroMeanUnitVarianceDescr, "scale_linear": v0_5.ScaleLinearDescr,
        "clip": v0_5.ClipDescr, "binarize": v0_5.BinarizeDescr, "sigmoid": v0_5.SigmoidDescr,
        "softmax": v0_5.SoftmaxDescr, "ensure_dtype": v0_5.EnsureDtypeDescr,
    }  # fmt: skip
    sample = Sample(members={"raw": Tensor(x, ("batch", "channel", "y", "x"))}, stat={}, id="s")
    for said in steps:
        operation = core.get_proc(
            kinds[said["id"]].model_validate({k: v for k, v in said.items() if v}),
            v0_5.InputTensorDescr.model_construct(id="raw"),
        )
        sample.stat |= compute_measures(operation.required_measures, [sample])
        operation(sample)
    return np.asarray(sample.members["raw"].data)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([step("zero_mean_unit_variance", axes=["x"])], "measured apart along y"),
        ([step("zero_mean_unit_variance", axes=CZYX), step("clip", min=0.0), step("scale_range", axes=CZYX)], "normalised already"),
        ([step("scale_range", axes=CZYX, reference_tensor="other")], "measured of other"),
        ([step("custom_processing")], "custom_processing"),
        ([step("softmax", axis="x")], "along x"),
        ([step("scale_linear", gain=[1.0, 2.0], offset=[0.0, 0.0], axis="y")], "along y"),
        ([step("scale_range", axes=CZYX), step("zero_mean_unit_variance", axes=["y", "x"], eps=0.01)], "adds 0.01"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_before_the_network_is_named(tmp_path, steps, why):
    said = read(tmp_path, before=steps)
    with pytest.raises(ModelError, match=why):
        processing.before_of(said, said.inputs[0])


@pytest.mark.parametrize("name", ["scale_mean_variance", "scale_range", "stardist_postprocessing", "custom"])
def test_what_has_no_counterpart_behind_it_is_left_out_by_name(tmp_path, name):
    said = read(tmp_path, behind=[step(name, axes=["y", "x"], reference_tensor="raw"), step("clip", min=0, max=1)])
    found = processing.behind_of(said, said.inputs[0], said.outputs[0])
    assert found.other[0].startswith(f"postprocessing {name}: ")
    assert found.other[1] == "clip, which follows that"
    assert not found.steps


def test_steps_before_and_behind_have_names_of_their_own():
    """A Cast in front of the network and one behind it had the same."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) { y = Relu(x) }'
    )
    made = wrapped_graph(proto, [Cast("bool"), Cast("float32")], [Sigmoid()], "y", 2)
    onnx.checker.check_model(made)
    names = [name for made_by in made.graph.node for name in made_by.output]
    assert len(names) == len(set(names))


def test_branches_of_a_graph_read_what_steps_make_of_its_input():
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y) {
        mean = ReduceMean <keepdims = 0> (x)
        zero = Constant <value_float = 0.0> ()
        positive = Greater(mean, zero)
        y = If (positive) <
            then_branch = t () => (float[1, 1, 2, 2] a) { a = Identity(x) },
            else_branch = e () => (float[1, 1, 2, 2] b) { b = Neg(x) }
        >
    }"""
    made = wrapped_graph(onnx.parser.parse_model(text), [Affine((2.0,), (1.0,))], [], "y", 2)
    given = np.float32([[[[1, 2], [3, 4]]]])
    evaluator = ReferenceEvaluator(made)
    np.testing.assert_allclose(evaluator.run(None, {"unet_engine_input": given})[0], 2 * given + 1)


def test_a_clip_to_a_percentile_of_the_output_is_left_out_whatever_its_other_end(tmp_path):
    said = read(tmp_path, behind=[step("clip", min=0.0, max_percentile=99.0)])
    found = processing.behind_of(said, said.inputs[0], said.outputs[0])
    assert not found.steps
    assert "clip to percentiles" in found.other[0]


def test_values_along_another_axis_than_channels_behind_the_network_are_named(tmp_path):
    said = read(tmp_path, behind=[step("scale_linear", gain=[1.0, 2.0], axis="y")])
    with pytest.raises(ModelError, match="has values along y"):
        processing.behind_of(said, said.inputs[0], said.outputs[0])


@pytest.mark.parametrize("first", [[], [step("sigmoid")]])
def test_channels_may_have_thresholds_of_their_own(tmp_path, first):
    """They are taken off in the graph: masks are those of the package, what lies before them is not, which is told."""
    behind = [*first, step("binarize", threshold=[0.2, 0.7], axis="channel"), step("ensure_dtype", dtype="uint8")]
    said = read(tmp_path, behind=behind)
    found = processing.behind_of(said, said.inputs[0], said.outputs[0])
    assert (found.activation, found.threshold, found.finished_as) == ("sigmoid", 0.5, "probabilities_each")
    (told,) = found.left_out
    assert "thresholds are taken off" in told
    y = np.random.default_rng(1).standard_normal((2, 6, 7)).astype(np.float32)
    (made,) = found.steps
    got = made.on_torch(torch.from_numpy(y)[None])[0].numpy()
    values = 1 / (1 + np.exp(-y)) if first else y
    np.testing.assert_array_equal(got > 0, values > np.array([0.2, 0.7]).reshape(2, 1, 1))
    np.testing.assert_array_equal(found.finish[-1](got), got > 0)


BEHIND = {
    "nothing": ([], None, lambda y: y),
    "sigmoid": ([step("sigmoid")], "sigmoid", lambda y: 1 / (1 + np.exp(-y))),
    "softmax": ([step("softmax", axis="channel")], "softmax", lambda y: np.exp(y) / np.exp(y).sum(0)),
    "linear": ([step("scale_linear", gain=2.0, offset=1.0)], None, lambda y: 2 * y + 1),
    "clip": ([step("clip", min=-0.5, max=0.5)], None, lambda y: y.clip(-0.5, 0.5)),
    "sigmoid, then linear": (
        [step("sigmoid"), step("scale_linear", gain=255.0, offset=0.0)],
        None,
        lambda y: 255 / (1 + np.exp(-y)),
    ),
    "linear, then sigmoid": (
        [step("scale_linear", gain=3.0, offset=0.0), step("sigmoid")],
        "sigmoid",
        lambda y: 1 / (1 + np.exp(-3 * y)),
    ),
    "threshold": ([step("sigmoid"), step("binarize", threshold=0.5)], "sigmoid", lambda y: y > 0),
    "another threshold": ([step("sigmoid"), step("binarize", threshold=0.2)], "sigmoid", lambda y: y > np.log(0.25)),
    "threshold alone": ([step("binarize", threshold=0.2)], None, lambda y: y > 0.2),
    "type": ([step("sigmoid"), step("ensure_dtype", dtype="float32")], "sigmoid", lambda y: 1 / (1 + np.exp(-y))),
}


@pytest.mark.parametrize("name", BEHIND)
def test_what_follows_the_network(tmp_path, name):
    steps, activation, expected = BEHIND[name]
    said = read(tmp_path, behind=steps)
    found = processing.behind_of(said, said.inputs[0], said.outputs[0])
    assert found.activation == activation
    assert not found.left_out
    y = np.random.default_rng(1).standard_normal((2, 6, 7)).astype(np.float32)
    got = torch.from_numpy(y)[None]
    for made in found.steps:
        got = made.on_torch(got)
    values = got[0].numpy()
    for finish in found.finish:
        values = finish(values)
    np.testing.assert_allclose(values, expected(y), rtol=1e-5, atol=1e-6)


def test_the_same_steps_around_the_same_graph_give_the_same_bytes_beside_names_that_are_taken():
    """Names held a number of the process, so that importing again gave another hash."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y) {
        unet_engine_mul = Abs(x)
        some = Relu(unet_engine_mul)
        zero = Constant <value_float = 0.0> ()
        mean = ReduceMean <keepdims = 0> (some)
        positive = Greater(mean, zero)
        y = If (positive) <
            then_branch = t () => (float[1, 1, 2, 2] a) { a = Identity(some) },
            else_branch = e () => (float[1, 1, 2, 2] unet_engine_input) { unet_engine_input = Neg(some) }
        >
    }"""
    proto = onnx.parser.parse_model(text)
    made, again = (wrapped_graph(proto, [Affine((2.0,), (1.0,))], [Sigmoid()], "y", 2) for _ in range(2))
    assert made.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    onnx.checker.check_model(made)
    name = made.graph.input[0].name
    found = ReferenceEvaluator(made).run(None, {name: np.zeros((1, 1, 2, 2), np.float32)})[0]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.ones((1, 1, 2, 2)))), rtol=1e-6)


def test_numbers_of_a_mask_may_be_any(tmp_path):
    behind = [step("binarize", threshold=0.5), step("scale_linear", gain=255.0), step("ensure_dtype", dtype="uint8")]
    said = read(tmp_path, behind=behind)
    found = processing.behind_of(said, said.inputs[0], said.outputs[0])
    assert (found.other, found.left_out) == ([], ["scale_linear, which follows that"])


def test_in_format_04_a_mean_that_is_said_is_fixed_unless_told_otherwise(tmp_path):
    """It was measured, as the mode is not said: fixed is what it is then."""
    said = read(tmp_path, before=[step("zero_mean_unit_variance", axes="yx", mean=[300.0, 50.0], std=[120.0, 9.0])])
    np.testing.assert_allclose(
        fed(said, RAW),
        (RAW - np.reshape([300, 50], (1, 2, 1, 1))) / np.reshape([120, 9], (1, 2, 1, 1)),
        rtol=1e-4,
        atol=1e-4,
    )
