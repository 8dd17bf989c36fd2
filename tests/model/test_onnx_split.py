"""Convolutions of concatenated tensors as sums of convolutions."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import zarr
from onnx import helper
from onnx.reference import ReferenceEvaluator

import unet_engine
from support.graphs import graph, node
from support.volumes import fake_model, make_volume
from unet_engine.errors import BackendError, SettingsError
from unet_engine.model import onnx_network
from unet_engine.model.file import open_model
from unet_engine.model.onnx_network import network_of
from unet_engine.model.onnx_split import split
from unet_engine.model.spec import ModelSpec

RNG = np.random.default_rng(3)
WEIGHTS = {
    "a": RNG.standard_normal((2, 1, 3, 3)).astype("f4"), "b": RNG.standard_normal((3, 1, 1, 1)).astype("f4"),
    "c": RNG.standard_normal((4, 5, 3, 3)).astype("f4"), "d": RNG.standard_normal((4, 6, 1, 1)).astype("f4"),
    "bias": RNG.standard_normal(4).astype("f4"), "g": RNG.standard_normal((5, 1, 3, 3)).astype("f4"),
}  # fmt: skip
TWO = [node("Conv", "x a", "p", pads=[1] * 4), node("Conv", "x b", "q"), node("Relu", "q", "r")]
SPEC = ModelSpec(name="split", axes="yx", channels_in=1, channels_out=4, activation="softmax", window=(16, 16),
                 window_min=(16, 16), window_step=(2, 2), margin=(0, 0))  # fmt: skip


def net(path, nodes, spec=SPEC):
    used = {name for one in nodes for name in one.input}
    return graph(path, nodes, shape=(None, 1, None, None), spec=spec, **{k: v for k, v in WEIGHTS.items() if k in used})


@pytest.mark.parametrize("nodes", [
    [*TWO, node("Concat", "p r", "j", axis=1), node("Conv", "j c bias", "y", pads=[1] * 4)],
    [*TWO, node("Concat", "p r", "j", axis=-3), node("Conv", "j c", "y", auto_pad="SAME_UPPER")],
    [*TWO, node("Concat", "p r x", "j", axis=1), node("Conv", "j d bias", "y")],
    [*TWO, node("Concat", "p p p", "j", axis=1), node("Conv", "j d", "y", strides=[1, 1])],
])  # fmt: skip
def test_the_sum_is_the_convolution(tmp_path, nodes):
    model = onnx.load(net(tmp_path / "net.onnx", nodes))
    x = RNG.standard_normal((2, 1, 16, 18)).astype("f4")
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    assert split(model) == 1
    onnx.checker.check_model(model)
    assert not [one for one in model.graph.node if one.op_type == "Concat"]
    assert not {t.name for t in model.graph.initializer} & {"c", "d"}
    np.testing.assert_allclose(ReferenceEvaluator(model).run(None, {"x": x})[0], expected, atol=1e-5)


@pytest.mark.parametrize("nodes", [
    [*TWO, node("Concat", "p r", "j", axis=1), node("Conv", "j c", "k", pads=[1] * 4), node("ReduceMax", "j", "m"),
     node("Add", "k m", "y")],
    [*TWO, node("Concat", "p r", "j", axis=1), node("Conv", "j g", "k", group=5, pads=[1] * 4),
     node("Concat", "k", "y", axis=1)],
    [*TWO, node("Concat", "p p", "j", axis=2), node("Conv", "j wide", "y")],
    [*TWO, node("Concat", "p r", "j", axis=1), node("Identity", "c", "w"), node("Conv", "j w", "y", pads=[1] * 4)],
])  # fmt: skip
def test_others_are_left_as_they_are(tmp_path, nodes):
    path = graph(tmp_path / "net.onnx", nodes, shape=(None, 1, None, None), **WEIGHTS,
                 wide=RNG.standard_normal((4, 2, 1, 1)).astype("f4"))  # fmt: skip
    model = onnx.load(path)
    before = [helper.printable_node(one) for one in model.graph.node]
    assert split(model) == 0
    assert [helper.printable_node(one) for one in model.graph.node] == before


@pytest.fixture
def scene(tmp_path):
    path = net(
        tmp_path / "net.onnx", [*TWO, node("Concat", "p r", "j", axis=1), node("Conv", "j c bias", "y", pads=[1] * 4)]
    )
    return make_volume(tmp_path / "image.zarr", RNG.integers(0, 255, (40, 50), np.uint8)), path


def written(tmp_path, scene, name, **options):
    result = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / name), device="cpu", output="logits",
                             normalize="zscore", **options)  # fmt: skip
    return result, zarr.open_array(str(tmp_path / name / "0"), mode="r")[...]


@pytest.mark.parametrize("more", [{}, {"backend": "onnxruntime"}, {"blend_at": "features"}], ids=str)
def test_a_run_of_split_networks_is_another_run_with_the_same_outputs(tmp_path, scene, proved, more):
    if "blend_at" in more:
        ending = [*TWO, node("Concat", "p r", "j", axis=1), node("Conv", "j c bias", "k", pads=[1] * 4), node("Relu", "k", "l"),
                  node("Conv", "l e", "y")]  # fmt: skip
        weights = {k: v for k, v in WEIGHTS.items() if k in "abc" or k == "bias"}
        scene = scene[0], graph(tmp_path / "two.onnx", ending, shape=(None, 1, None, None), spec=SPEC, **weights,
                                e=RNG.standard_normal((4, 4, 1, 1)).astype("f4"))  # fmt: skip
    plain, expected = written(tmp_path, scene, "plain.zarr")
    asked = len(proved)
    result, logits = written(tmp_path, scene, "split.zarr", split_concat=True, **more)
    assert len(proved) > asked
    assert all(setup.model.splits for setup in proved[asked:])
    assert result.digest != plain.digest
    assert len(set(network_names(scene[1], splits=True))) > len(set(network_names(scene[1], splits=False)))
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.ptp(expected))


def network_names(path, *, splits):
    data = network_of(replace(open_model(path), splits=splits), 2)
    model = onnx.load_from_string(data) if isinstance(data, bytes) else onnx.load(data)
    return [one.output[0] for one in model.graph.node]


def test_what_gives_something_else_is_refused(tmp_path, scene, monkeypatch, proved):
    def wrong(model):
        for tensor in model.graph.initializer:
            if tensor.name == "b":
                tensor.CopyFrom(onnx.numpy_helper.from_array(2 * WEIGHTS["b"], "b"))

    monkeypatch.setattr(onnx_network, "split", wrong)
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(folder))
    with pytest.raises(BackendError, match=r"--split-concat: net\.onnx gives other numbers so"):
        written(tmp_path, scene, "split.zarr", split_concat=True)


def test_what_cannot_be_split_is_refused(tmp_path, scene, ramp):
    with pytest.raises(SettingsError, match=r"--split-concat: .* is no ONNX file"):
        unet_engine.run(ramp[1], model=fake_model(tmp_path), split_concat=True)
    with pytest.raises(SettingsError, match="--split-concat: it was measured on CPUs alone"):
        unet_engine.run(scene[0], model=scene[1], split_concat=True, device="simulated")
