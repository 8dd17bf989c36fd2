"""What a network gives where there is nothing: said, or found by running it, and only where it is one value."""

import numpy as np
import pytest

from support.command_line import cli
from support.graphs import graph, node

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
from torch import nn  # noqa: E402

from unet_engine.errors import ModelError, SettingsError  # noqa: E402
from unet_engine.model.file import open_model  # noqa: E402
from unet_engine.model.normalization import Normalization  # noqa: E402
from unet_engine.model.spec import ModelSpec  # noqa: E402
from unet_export.conversion.empty import empty_of  # noqa: E402


def spec_of(window=(16, 16), step=(2, 2), normalization=None):
    return ModelSpec(
        name="net", axes="yx", channels_in=1, channels_out=2, window=window,
        window_min=(16, 16) if any(step) else window,
        window_step=step, margin=(0, 0), background=100,
        normalization=normalization or Normalization(mode="range", low=0, high=200),
    )  # fmt: skip


def test_empty_is_what_the_middle_of_a_window_of_background_gives():
    network = nn.Conv2d(1, 2, 3, padding=1)
    found = empty_of("auto", spec_of(), network)
    expected = 0.5 * network.weight.sum((1, 2, 3)) + network.bias
    assert found == pytest.approx(expected.tolist(), rel=1e-4)
    assert empty_of("4,-2.5", spec_of(), network) == (4, -2.5)


def test_windows_grow_until_borders_do_not_reach_the_middle():
    network = nn.Sequential(nn.Conv2d(1, 2, 13, padding=6), nn.Conv2d(2, 2, 1))
    nn.init.constant_(network[0].weight, 0.1)
    seen = []

    def run(x):
        seen.append(tuple(x.shape[2:]))
        return network(x)

    found = empty_of("auto", spec_of(), run)
    assert seen[0] == (16, 16)
    assert len(seen) > 1
    far = network(torch.full((1, 1, 64, 64), 0.5))[0, :, 32, 32]
    assert found == pytest.approx(far.tolist(), rel=1e-4)
    with pytest.raises(ModelError, match=r"vary by .* in the middle of windows of 16×16; give one number"):
        empty_of("auto", spec_of(step=(0, 0)), network)


def test_what_cannot_be_known_is_asked_for():
    with pytest.raises(SettingsError, match="under zscore depends on the volume"):
        empty_of("auto", spec_of(normalization=Normalization(mode="zscore")), nn.Conv2d(1, 2, 1))
    with pytest.raises(SettingsError, match="3 numbers for 2 output channels"):
        empty_of("1,2,3", spec_of(), nn.Conv2d(1, 2, 1))
    with pytest.raises(SettingsError, match="'much'"):
        empty_of("much", spec_of(), nn.Conv2d(1, 2, 1))


def test_any_model_skips_background_once_it_was_exported_with_empty(tmp_path):
    import zarr

    slopes, offsets = np.array([1, 2], np.float32).reshape(2, 1, 1, 1), np.array([0, -128], np.float32)
    foreign = graph(tmp_path / "f.onnx", [node("Conv", "x w b", "y")], shape=(1, 1, 16, 16), w=slopes, b=offsets)
    said = cli("export", foreign, "--out", tmp_path / "n.onnx", "--empty", "auto", "--background", "7")
    assert said.code == 0, said.err
    assert open_model(tmp_path / "n.onnx").spec.empty == (7, -114)
    voxels = np.full((64, 64), 7, np.uint8)
    voxels[:16, :16] = 200
    zarr.save_array(str(tmp_path / "v.zarr"), voxels)
    said = cli(
        "run", "--in", tmp_path / "v.zarr", "--model", tmp_path / "n.onnx", "--out", tmp_path / "o.zarr", "--json",
        "--overlap", "0",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert said.json["windows_skipped"] == 15
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "o.zarr/0"))[:], voxels > 128)
