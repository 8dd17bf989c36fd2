"""A library that computes something else than the model file says is found out once, and not used unless asked for."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.graphs import graph, node
from support.volumes import fake_model, make_volume, result_of
from unet_engine.backends import second_opinion
from unet_engine.backends.base import Setup
from unet_engine.backends.libraries import Library
from unet_engine.backends.second_opinion import Opinion, apart
from unet_engine.model.file import open_model
from unet_engine.prepare.second import compared
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("asking")

IMAGE = np.random.default_rng(0).normal(0, 1, (2, 32, 32)).astype(np.float32)
TWICE = np.float32([1, 1, 2, 2])


def resize(how, given, made, factor="s", **more):
    return node("Resize", f"{given}  {factor}", made, mode=how, **more)


POOLED = [
    node("AveragePool", "x", "p", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1,
         count_include_pad=1),
    resize("nearest", "p", "u", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    node("Slice", "u two end axes", "y"),
]  # fmt: skip
RESIZED = [
    resize("nearest", "x", "d", "h", coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil"),
    resize("nearest", "d", "y", coordinate_transformation_mode="asymmetric", nearest_mode="round_prefer_ceil"),
]
SYMMETRIC = [
    resize("linear", "x", "d", "h"),
    resize("linear", "d", "y", coordinate_transformation_mode="half_pixel_symmetric"),
]
CONSTANTS = {
    "s": TWICE, "h": np.float32([1, 1, 0.5, 0.5]), "two": np.array([2, 2]), "end": np.array([34, 34]),
    "axes": np.array([2, 3]),
}  # fmt: skip


def network(folder, nodes, name="net.onnx"):
    return graph(Path(folder) / name, nodes, shape=(1, 1, 32, 32), opset=19, **CONSTANTS)


def truth(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options)
    return np.stack([session.run(None, {"x": plane[None, None]})[0][0, 0] for plane in IMAGE])


@pytest.fixture
def scan(tmp_path):
    return make_volume(tmp_path / "scan.zarr", IMAGE, chunks=(1, 32, 32))


def run(scan, model, out, *flags):
    return cli(
        "run", "--in", scan, "--model", model, "--out", out, "--output", "logits", "--overwrite", "--json", *flags
    )


def test_a_pooling_that_is_wrong_is_computed_by_the_other_library(tmp_path, scan):
    model, out = network(tmp_path, POOLED), tmp_path / "o.zarr"
    said = run(scan, model, out)
    assert said.code == 0, said.err
    assert (said.json["backend"], "running with onnxruntime" in said.err) == ("onnxruntime", True)
    assert "openvino" in said.err
    assert "computes something else than the file says" in said.err
    np.testing.assert_allclose(result_of(out)[0], truth(model), atol=1e-5)


def test_strict_and_a_library_that_was_asked_for(tmp_path, scan, monkeypatch):
    """All of it is asked once."""
    model, out = network(tmp_path, POOLED), tmp_path / "o.zarr"
    refused = run(scan, model, out, "--strict")
    assert (refused.code, "running with onnxruntime" in refused.error) == (6, True)
    monkeypatch.setattr(second_opinion, "_found", lambda *_: pytest.fail("asked twice"))
    kept = run(scan, model, out, "--backend", "openvino")
    assert (kept.code, kept.json["backend"]) == (0, "openvino")
    assert "use --backend onnxruntime" in kept.err
    assert np.abs(result_of(out)[0] - truth(model)).max() > 0.05
    assert run(scan, model, out, "--backend", "openvino", "--strict").code == 6
    assert run(scan, model, out).json["backend"] == "onnxruntime"


def test_the_reference_evaluator_clears_a_library_that_is_right(tmp_path, scan):
    """OpenVINO is asked about ONNX Runtime, and is the one that is wrong."""
    model = network(tmp_path, POOLED)
    said = run(scan, model, tmp_path / "o.zarr", "--backend", "onnxruntime", "--strict")
    assert (said.code, "computes" in said.err) == (0, False)
    setup = Setup(open_model(model), (32, 32))
    found = second_opinion.known(setup, "onnxruntime")
    assert (found.wrong, found.why) == ("second", "ONNX's reference evaluator says so")


@pytest.mark.parametrize(("kind", "axis"), [("Softmax", 1), ("LogSoftmax", None), ("Softmax", -2), ("Hardmax", 2)])
def test_a_softmax_of_old_is_of_all_axes_behind_its_own(tmp_path, scan, monkeypatch, kind, axis):
    """Before opset 13. OpenVINO takes one axis of it, so it is given one; the reference evaluator is not asked."""
    nodes = [
        node(kind, "x", "s", **({} if axis is None else {"axis": axis})),
        node("Mul", "s k", "t"),
        node("Add", "x t", "y"),
    ]
    model = graph(tmp_path / "net.onnx", nodes, shape=(1, 1, 32, 32), opset=11, k=np.float32(100))
    monkeypatch.setattr(second_opinion, "asked", lambda *_: None)  # as where no other library is installed
    said = run(scan, model, tmp_path / "o.zarr")
    assert said.code == 0, said.err
    assert said.json["backend"] == "openvino"
    np.testing.assert_allclose(result_of(tmp_path / "o.zarr")[0], truth(model), atol=1e-5)


def test_who_is_right_where_nobody_says_so(tmp_path, monkeypatch):
    setup = Setup(open_model(network(tmp_path, POOLED)), (32, 32))
    monkeypatch.setattr(second_opinion, "_reference", lambda *_: None)
    for library, other, wrong in (("openvino", "onnxruntime", "first"), ("onnxruntime", "openvino", "second")):
        found = second_opinion.compare(setup, library, second_opinion.Other(other), IMAGE[:1])
        assert (found.wrong, found.why) == (wrong, "which is taken for the reference")
        assert 0.02 < found.difference < 1


def test_a_network_that_is_computed_as_it_says(tmp_path, scan):
    model, out = network(tmp_path, RESIZED), tmp_path / "o.zarr"
    said = run(scan, model, out, "--strict")
    assert (said.code, said.json["backend"]) == (0, "openvino")
    np.testing.assert_allclose(result_of(out)[0], truth(model), atol=1e-5)
    found = second_opinion.known(Setup(open_model(model), (32, 32)), "openvino")
    assert (found.wrong, found.difference < 1e-5) == ("", True)
    assert found.text.startswith("openvino ")


def test_an_operator_that_one_library_lacks(tmp_path, scan):
    model, out = network(tmp_path, SYMMETRIC), tmp_path / "o.zarr"
    said = run(scan, model, out)
    assert said.code == 0, said.err
    assert "refuses the network" in said.err
    assert said.json["backend"] == "onnxruntime"
    np.testing.assert_allclose(result_of(out)[0], truth(model), atol=1e-5)
    assert run(scan, model, out, "--backend", "openvino").code == 5


def test_parts_take_the_same_library(tmp_path, scan):
    model, out = network(tmp_path, POOLED), str(tmp_path / "o.zarr")
    plans = [unet_engine.make_plan(scan, model=model, out=out, part=f"{i}/2") for i in (1, 2)]
    assert [plan.identity["backend"].split()[0] for plan in plans] == ["onnxruntime"] * 2
    assert plans[0].digest == plans[1].digest


def test_a_cache_that_cannot_be_used_is_done_without(tmp_path, scan, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "file"))
    said = run(scan, network(tmp_path, POOLED), tmp_path / "o.zarr")
    assert (said.code, said.json["backend"]) == (0, "onnxruntime")


def test_a_damaged_opinion_counts_as_none(tmp_path, asking):
    model = network(tmp_path, RESIZED)
    asked(model)
    (kept,) = asking.glob("*.opinion")
    kept.write_bytes(kept.read_bytes()[:-9])
    assert asked(model).difference < 1e-5


def asked(model):
    return second_opinion.asked(Setup(open_model(model), (32, 32)), "openvino", IMAGE[:1])


def test_several_at_once_agree(tmp_path, asking):
    model = network(tmp_path, POOLED)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(asked, [model, model]))
    assert found[0] == found[1]
    assert len(list(asking.glob("*.opinion"))) == 1


def test_another_library_or_window_is_asked_again(tmp_path, monkeypatch):
    setup = Setup(open_model(network(tmp_path, RESIZED)), (32, 32))
    second_opinion.asked(setup, "openvino", IMAGE[:1])
    assert second_opinion.known(setup, "openvino") is not None
    assert second_opinion.known(setup, "openvino", "noise") is None
    assert second_opinion.known(Setup(setup.model, (64, 64)), "openvino") is None
    monkeypatch.setattr(second_opinion, "version_of", lambda name: "0.1")
    assert second_opinion.known(setup, "openvino") is None


def test_of_a_large_window_its_middle_is_compared(asking, monkeypatch, tiny_onnx):
    """Both libraries at once held 16 GB for a window of a whole volume."""
    monkeypatch.setattr(second_opinion, "LARGEST", 16**3)
    large, given = Setup(open_model(tiny_onnx), (32, 16, 16)), []
    monkeypatch.setattr(np, "save", lambda path, window, save=np.save: (given.append(window), save(path, window)))
    image = np.random.default_rng(0).standard_normal((1, 32, 16, 16)).astype(np.float32)
    found = second_opinion.asked(large, "openvino", image)
    assert found.difference < 1e-4
    assert np.array_equal(given[0], image[:, 8:24])
    assert second_opinion.known(large, "openvino") == found
    assert second_opinion.known(replace(large, window=(16, 16, 16)), "openvino") == found


def test_nobody_to_ask(tmp_path, monkeypatch, scan):
    assert second_opinion.other_for(open_model(fake_model(tmp_path)), "fake", "cpu") is None
    model = open_model(network(tmp_path, POOLED))
    assert second_opinion.other_for(model, "tensorrt", "cuda:0").library == "onnxruntime"
    monkeypatch.setattr(Library, "installed", property(lambda library: library.name != "onnxruntime"))
    assert second_opinion.other_for(model, "openvino", "cpu") is None
    assert run(scan, model.path, tmp_path / "o.zarr", "--strict").json["backend"] == "openvino"


def test_a_process_that_fails_is_no_verdict(tmp_path, monkeypatch, asking):
    monkeypatch.setattr("sys.executable", "false")
    found = asked(network(tmp_path, POOLED))
    assert (found.wrong, found.difference) == ("", None)
    assert "was not compared with onnxruntime" in found.text
    assert list(asking.glob("*")) == []


@pytest.mark.parametrize("cuda", [True, False])
def test_on_a_gpu_the_other_library_must_see_it(tmp_path, scan, monkeypatch, cuda):
    """Else the CPU is named, and nothing is switched."""
    surveyed = survey(Settings.of(input=scan, model=network(tmp_path, POOLED), device="cpu", output="logits"))
    surveyed = replace(surveyed, backend="tensorrt", devices=("cuda:0",))
    monkeypatch.setattr(second_opinion, "known", lambda *_: None)
    monkeypatch.setattr(second_opinion, "asked", lambda *_: Opinion("tensorrt 1", "onnxruntime 1", 0.1, "first", "x"))
    monkeypatch.setattr("unet_engine.backends.onnxruntime.sees_gpu", lambda: cuda)
    notes = []
    found = compared(surveyed, lambda: [IMAGE[:1]], notes)
    assert found.backend == ("onnxruntime" if cuda else "tensorrt")
    assert ("running with onnxruntime" if cuda else "; use --device cpu") in notes[0]


def test_how_far_apart():
    image = IMAGE[None, 0] * np.float32(10)
    span = image.max() - image.min()
    assert apart(image, image + np.float32(0.5)) == pytest.approx(0.5 / span, rel=1e-3)
    assert apart(image, np.where(image > 9, np.nan, image)) is None
    assert apart(image, image[:, 1:]) == np.inf
    labels = np.rint(image)
    other = labels.copy()
    other[0, 0, 0] += 7
    assert apart(labels, other) == 1 / 1024
    assert apart(np.zeros((1, 4, 4)), np.zeros((1, 4, 4))) == 0


def test_what_people_are_told():
    assert Opinion("a 1", "b 2", 0.13, "second", "c says so").text.startswith("b 2 computes something else")
    assert Opinion("a 1", "b 2", None, "", "no time").text == "a 1 was not compared with b 2: no time"
