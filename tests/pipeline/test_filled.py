"""Voxels outside of what is not 0 in any channel, holes filled, become 0, as nnU-Net has it; all others are normalised
by figures of what is inside: the same for any executor, block and region."""

import numpy as np
import pytest

import unet_engine
from support.volumes import fake_model, make_volume, result_of
from unet_engine.errors import SettingsError

ndimage = pytest.importorskip("scipy.ndimage")
SHAPE = (27, 33, 30)
RNG = np.random.default_rng(31)


def scan_of(channels):
    """A ball of noise with three holes, one of them open, and parts that are 0 in a channel alone."""
    middle = np.stack(np.meshgrid(*(np.arange(n) - n / 2 for n in SHAPE), indexing="ij"))
    values = RNG.integers(0, 6, (channels, *SHAPE)).astype(np.int16) * 50
    values[:, np.sqrt((middle**2).sum(0)) > 12] = 0
    values[:, 10:15, 12:19, 11:20] = 0
    values[:, 18:20, 20:22, 9:12] = 0
    values[:, 12:14, :9, 14:16] = 0
    return values


def expected_of(values, filled):
    inside = ndimage.binary_fill_holes((values != 0).any(0))
    found = []
    for channel, is_filled in zip(values.astype(np.float64), filled, strict=True):
        of = channel[inside] if is_filled else channel
        normal = (channel - of.mean()) / of.std()
        found.append(np.where(inside, normal, 0) if is_filled else normal)
    return np.stack(found)


def run(path, folder, how, channels, **options):
    spec = {
        key: options.pop(key) for key in ("crop", "empty", "spacing", "spacing_unit", "resampling") if key in options
    }
    net = fake_model(folder, name="n" + str(len(list(folder.iterdir()))), channels_in=channels, channels_out=channels,
                     normalization=how, **spec)  # fmt: skip
    out = str(folder / f"{len(list(folder.iterdir()))}.zarr")
    options = {"model": net, "out": out, "output": "logits", "blend": "crop", "padding": "constant", **options}
    return result_of(unet_engine.run(path, **options).out)


WAYS = {"zscore:foreground=filled": (True, True), "zscore:foreground=filled;zscore:whole": (True, False)}


@pytest.fixture
def scan(tmp_path):
    values = scan_of(2)
    return values, make_volume(tmp_path / "scan.zarr", values, axes="czyx", chunks=(2, 8, 16, 8))


@pytest.mark.parametrize("device", ["cpu", "simulated"])
@pytest.mark.parametrize("how", WAYS)
def test_holes_and_voxels_of_other_channels_are_inside(scan, tmp_path, how, device):
    values, path = scan
    found = run(path, tmp_path, how, 2, device=device)
    np.testing.assert_allclose(found, expected_of(values, WAYS[how]), atol=2e-6)
    assert (found[0, 0] == 0).all()
    assert (found[0, 10:15, 12:19, 11:20] < -0.5).all()


def test_regions_parts_and_devices_give_the_same_bytes(scan, tmp_path):
    _, path = scan
    how = "zscore:foreground=filled,whole"
    whole = run(path, tmp_path, how, 2)
    np.testing.assert_array_equal(run(path, tmp_path, how, 2, device="fake:0,fake:1"), whole)
    np.testing.assert_array_equal(run(path, tmp_path, how, 2, roi="9:20,3:30,5:29"), whole[:, 9:20, 3:30, 5:29])
    np.testing.assert_array_equal(run(path, tmp_path, how, 2, crop="nonzero"), whole)


def test_what_is_not_stored_may_be_a_hole(tmp_path):
    """Chunks of nothing but 0 are absent, and a window of them alone would be left out as background."""
    values = np.full((1, 24, 24, 24), 100, np.int16)
    values[0, ::2] += 50
    values[0, 8:16, 8:16, 8:16] = 0
    values[0, 20:] = 0
    path = make_volume(tmp_path / "scan.zarr", values[0], axes="zyx", chunks=(8, 8, 8))
    found = run(path, tmp_path, "zscore:foreground=filled", 1, empty=[0.0], window=(8, 8, 8))
    np.testing.assert_allclose(found, expected_of(values, (True,)), atol=2e-6)


def test_a_model_that_normalises_what_was_interpolated_is_refused(tmp_path):
    path = make_volume(tmp_path / "s.zarr", scan_of(1)[0], axes="zyx", ome="0.5", scale=(1, 1, 1), unit="millimeter")
    with pytest.raises(SettingsError, match="use foreground in place of foreground=filled"):
        run(path, tmp_path, "zscore:foreground=filled", 1, spacing=[2.0, 2.0, 2.0], spacing_unit="millimeter",
            resampling={"first": "interpolated"})  # fmt: skip


def test_on_another_grid_voxels_are_normalised_before(tmp_path):
    values = scan_of(1)
    path = make_volume(tmp_path / "s.zarr", values[0], axes="zyx", ome="0.5", scale=(1, 1, 1), unit="millimeter")
    found = run(path, tmp_path, "zscore:foreground=filled", 1, spacing=[0.5, 0.5, 0.5], spacing_unit="millimeter",
                resampling={"image": 1}, grid="model")  # fmt: skip
    normal = expected_of(values, (True,))[0]
    expected = ndimage.zoom(normal, 2, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(found[0] if found.ndim == 4 else found, expected, atol=1e-5)
