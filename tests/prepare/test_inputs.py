"""A network that is fed what it cannot have been trained on: said, naming --normalize, and an error under --strict."""

import numpy as np
import pytest

from support.command_line import cli
from support.graphs import convolution, graph, node
from support.volumes import make_volume
from unet_engine.model.file import open_model
from unet_engine.model.onnx_beginning import first_layer
from unet_engine.prepare.inputs import unlikely
from unet_engine.volumes.normalize import scaling

CONV = node("Conv", "c k", "y")
RNG = np.random.default_rng(0)
GREY = RNG.integers(122, 4096, (16, 32, 32)).astype(np.uint16)


def foreign(folder, *before, channels=1, **constants):
    """A network without a spec: `before` from x to c, then one convolution."""
    nodes = [*before, node("Conv", "c k" if before else "x k", "y")]
    return graph(
        folder / "net.onnx",
        nodes,
        shape=(None, channels, 16, 16),
        k=convolution(channels_in=channels, channels_out=2),
        **constants,
    )


def doubt(model, values, *, said=False):
    opened = open_model(model, (16, 16))
    values = [np.asarray(v) for v in (values if isinstance(values, list) else [values])]
    return unlikely(opened, values, scaling(opened.spec.normalization, values), said=said)


def test_raw_grey_levels_in_a_run(tmp_path):
    volume, model = make_volume(tmp_path / "scan.zarr", GREY), foreign(tmp_path)
    asked = ["run", "--in", volume, "--model", model, "--out", str(tmp_path / "o.zarr"), "--overwrite"]
    said = cli(*asked)
    assert said.code == 0
    assert "voxels are 160 to 4062 and --normalize is none" in said.err.replace("\n", " ")
    refused = cli(*asked, "--strict")
    assert (refused.code, "--normalize as in training" in refused.error) == (6, True)
    for how in ("zscore", "none", "range:0,4095"):
        assert cli(*asked, "--strict", "--normalize", how).code == 0, how
    assert cli("plan", *asked[1:-1], "--strict").code == 6
    (tmp_path / "net.toml").write_text("normalization = {mode = 'none'}\n")
    assert cli(*asked, "--strict").code == 0


NEAR = {
    "z-scores": RNG.standard_normal(10**5).astype(np.float32),
    "heavy-tailed z-scores": np.clip(RNG.standard_cauchy(10**5), -90, 90).astype(np.float32) / 5,
    "0 to 1": RNG.random(10**5).astype(np.float32),
    "one value": np.full(1000, 300, np.uint16),
    "labels": RNG.integers(0, 5, 10**5).astype(np.uint8),
    "nan": np.full(1000, np.nan, np.float32),
    "few hot voxels": np.where(RNG.random(10**5) < 1e-3, 3000, RNG.standard_normal(10**5)).astype(np.float32),
}


@pytest.mark.parametrize("values", NEAR)
def test_what_networks_are_fed_is_not_doubted(tmp_path, values):
    assert doubt(foreign(tmp_path), NEAR[values]) == ""


FAR = {
    "12 bits": GREY,
    "8 bits": RNG.integers(0, 256, 10**5).astype(np.uint8),
    "Hounsfield units": RNG.normal(0, 400, 10**5).astype(np.int16),
    "a bright spot in a hundred": np.where(RNG.random(10**5) < 0.02, 900, 0).astype(np.uint16),
    "some NaN": np.where(RNG.random(10**5) < 0.5, np.nan, RNG.normal(700, 50, 10**5)).astype(np.float32),
    "an electron density": RNG.random(10**5).astype(np.float32) * 1e-6,
}


@pytest.mark.parametrize("values", FAR)
def test_what_no_network_is_fed(tmp_path, values):
    assert "--normalize is none" in doubt(foreign(tmp_path), FAR[values])
    assert doubt(foreign(tmp_path), FAR[values], said=True) == ""


def test_the_channel_is_named(tmp_path):
    values = [RNG.random(1000).astype(np.float32), RNG.random(1000).astype(np.float32) * 900]
    assert doubt(foreign(tmp_path, channels=2), values).startswith("channel 1: voxels are ")


SCALES = {
    "divides": [node("Div", "x a", "c")],
    "multiplies behind a cast": [node("Cast", "x", "f", to=1), node("Mul", "f b", "c")],
    "mean and deviation": [node("Sub", "x m", "s"), node("Div", "s d", "c")],
    "clips and divides": [node("Clip", "x zero top", "s"), node("Div", "s top", "c")],
    "a batch norm": [node("BatchNormalization", "x one zeros m4 v4", "c")],
    "an instance norm": [node("InstanceNormalization", "x one zeros", "c")],
    "its own mean": [node("ReduceMean", "x", "mean"), node("Sub", "x mean", "s"), node("Mul", "s b", "c")],
}
CONSTANTS = {
    "a": np.float32(4095), "b": np.float32(1 / 4095), "m": np.float32([[[2000]]]), "d": np.float32([[[1200]]]),
    "zero": np.float32(0), "top": np.float32(4095), "one": np.ones(1, np.float32), "zeros": np.zeros(1, np.float32),
    "m4": np.float32([2000]), "v4": np.float32([1.4e6]),
}  # fmt: skip


@pytest.mark.parametrize("before", SCALES)
def test_a_graph_that_scales_the_image_itself(tmp_path, before):
    assert doubt(foreign(tmp_path, *SCALES[before], **CONSTANTS), GREY) == ""


def test_a_graph_that_scales_but_not_enough(tmp_path):
    model = foreign(tmp_path, node("Div", "x a", "c"), a=np.float32(2))
    assert first_layer(open_model(model, (16, 16)).path, 100, 4000) == (50, 2000)
    assert "voxels are" in doubt(model, GREY)


def test_values_scaled_to_one_that_are_not(tmp_path):
    """A range that is not this volume's."""
    (tmp_path / "net.toml").write_text("normalization = {mode = 'range', low = 0, high = 255}\n")
    assert doubt(foreign(tmp_path), GREY // 16) == ""
    (tmp_path / "net.toml").unlink()
    opened = open_model(foreign(tmp_path), (16, 16)).normalized("range:0,255")
    assert "0 to 1 is meant" in unlikely(opened, [GREY], scaling(opened.spec.normalization, [GREY]), said=False)


def test_clipped_voxels_lie_where_they_are_clipped(tmp_path):
    values = GREY.astype(np.float32)
    opened = open_model(foreign(tmp_path), (16, 16)).normalized("range:0,255,clip")
    assert unlikely(opened, [values], scaling(opened.spec.normalization, [values]), said=False) == ""


TRAINED = {
    "z-scores fed with grey levels": ((-1.5, -0.5, 0.0, 0.5, 2.5), GREY, "none", True),
    "grey levels fed with grey levels": ((140, 1000, 2000, 3000, 4000), GREY, "none", False),
    "grey levels fed with 0 to 1": ((0, 60, 120, 180, 250), RNG.random(10**5), "none", True),
    "z-scores of another volume": ((-1.5, -0.5, 0.0, 0.5, 2.5), GREY, "zscore", False),
    "a dark region of the same": ((0, 60, 120, 180, 250), RNG.integers(0, 60, 10**5), "none", False),
}


@pytest.mark.parametrize("case", TRAINED)
@pytest.mark.parametrize("said", [True, False])
def test_statistics_of_the_training_settle_it(tmp_path, case, said):
    trained, values, how, unlike = TRAINED[case]
    opened = open_model(foreign(tmp_path), (16, 16)).normalized(how)
    spec = opened.spec.model_copy(update={"input_quantiles": (trained,)})
    nodes = [node("Conv", "x k", "y")]
    own = graph(tmp_path / "own.onnx", nodes, shape=(None, 1, 16, 16), k=convolution(channels_out=2), spec=spec)
    opened = open_model(own)
    said = unlikely(opened, [values], scaling(opened.spec.normalization, [values]), said=said)
    assert ("was trained on" in said) is unlike
