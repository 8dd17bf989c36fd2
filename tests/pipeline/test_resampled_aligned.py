"""Resampling as MONAI's Spacing does it: first voxels aligned, interpolated before normalising, and probabilities
brought back. The reference does it with SciPy on whole volumes."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

import unet_engine
from support.volumes import fake_model, make_volume, result_of
from unet_engine.model.spec import Resampling

ndimage = pytest.importorskip("scipy.ndimage")
SHAPE, OWN, WANTED = (19, 23, 31), (1.0, 1.3, 0.7), (1.7, 0.9, 0.7004)
HOW = {"image": 1, "output": 1, "image_apart": 1, "output_apart": 1, "apart": "never", "aligned": "first"}


def scan(folder, array, **options):
    return make_volume(
        f"{folder}/v.zarr", array, axes="czyx", ome="0.5", unit="millimeter", scale=(1.0, *OWN), chunks=(1, 7, 7, 7),
        **options,
    )  # fmt: skip


def model(folder, *, channels=1, **spec):
    values = {"channels_in": channels, "channels_out": channels, "spacing": list(WANTED), "spacing_unit": "millimeter",
              "window": (8, 12, 16), "window_min": (4, 4, 4), **spec}  # fmt: skip
    return fake_model(folder, **values)


def run(folder, path, network, out="o", **options):
    options = {"blend": "crop", "output": "logits", **options}
    return unet_engine.run(path, model=network, out=f"{folder}/{out}.zarr", **options).out


def moved(array, steps, shape, order=1):
    """`array` (c, *S) at multiples of `steps`, going on with its last voxels."""
    at = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, steps, strict=True)), indexing="ij")
    return np.stack([ndimage.map_coordinates(c, at, order=order, mode="nearest") for c in array])


STEPS = [WANTED[0] / OWN[0], WANTED[1] / OWN[1], 1.0]
"""The last spacings are the same but for what MONAI lets pass."""
NEW = (round(18 / STEPS[0] + 1), round(22 / STEPS[1] + 1), 31)


@pytest.mark.parametrize("first", ["normalised", "interpolated"])
def test_what_is_done_first(tmp_path, first):
    array = np.random.default_rng(0).normal(50, 100, (1, *SHAPE)).astype(np.float32)
    network = model(tmp_path, resampling=HOW | {"first": first}, normalization="range:0,100,clip", background=-5)
    found = result_of(run(tmp_path, scan(tmp_path, array), network))

    def normal(x):
        return np.clip(x, 0, 100) / 100

    there = normal(moved(array, STEPS, NEW)) if first == "interpolated" else moved(normal(array), STEPS, NEW)
    np.testing.assert_allclose(found, moved(there, [1 / s for s in STEPS], SHAPE), atol=2e-5)


def test_parts_regions_and_workers_change_no_byte(tmp_path):
    array = np.random.default_rng(1).normal(size=(2, *SHAPE)).astype(np.float32)
    network = model(
        tmp_path, channels=2, activation="softmax", resampling=HOW | {"of": "probabilities", "first": "interpolated"}
    )
    path, options = scan(tmp_path, array), {"output": "probabilities", "dtype": "float32"}
    whole = result_of(run(tmp_path, path, network, **options))
    part = result_of(run(tmp_path, path, network, "r", roi="3:17,0:20,5:31", **options))
    np.testing.assert_array_equal(part, whole[:, 3:17, :20, 5:31])
    for i in (2, 1):
        out = run(tmp_path, path, network, "p", part=f"{i}/2", **options)
    np.testing.assert_array_equal(result_of(out), whole)
    grid = result_of(run(tmp_path, path, network, "g", grid="model", **options))
    assert grid.shape == (2, *NEW)
    np.testing.assert_allclose(whole, moved(grid, [1 / s for s in STEPS], SHAPE), atol=2e-5)
    labels = result_of(run(tmp_path, path, network, "l", output="labels"))
    clear = np.abs(whole[0] - whole[1]) > 1e-4
    np.testing.assert_array_equal(labels[clear], whole.argmax(0)[clear])


def test_what_was_not_measured_and_what_is_no_number(tmp_path):
    array = np.random.default_rng(2).normal(50, 9, (1, *SHAPE)).astype(np.float32)
    array[0, 4, 4, 4] = np.nan
    path = scan(tmp_path, array)
    network = model(tmp_path, resampling=HOW | {"first": "interpolated"}, normalization="range:0,100")
    with pytest.raises(unet_engine.errors.DataError, match="z=4 y=4 x=4"):
        run(tmp_path, path, network)
    found = result_of(run(tmp_path, path, network, "n", replace_nonfinite=30.0, overwrite=True))
    array[0, 4, 4, 4] = 30
    other = scan(tmp_path / "b", array)
    np.testing.assert_array_equal(found, result_of(run(tmp_path, other, network, "m")))
    array[0, 4, 4, 4] = 0  # what is normalised to 0
    third = result_of(run(tmp_path, scan(tmp_path / "c", array), network, "q", nodata="30", outside="keep"))
    filled = array.copy()
    filled[0, 4, 4, 4] = 30
    np.testing.assert_array_equal(
        third, result_of(run(tmp_path, scan(tmp_path / "d", filled), network, "s", nodata="30", outside="keep"))
    )


def test_the_place_of_the_first_voxel_stays(tmp_path):
    path = scan(tmp_path, np.ones((1, *SHAPE), np.float32), translation=(0.0, 5.0, 6.0, 7.0))
    out = run(tmp_path, path, model(tmp_path, resampling=HOW), grid="model")
    scales = zarr.open_group(out, mode="r").attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    np.testing.assert_allclose(scales[0]["scale"][1:], [WANTED[0], WANTED[1], OWN[2]])
    assert scales[1]["translation"][1:] == [5.0, 6.0, 7.0]


def test_what_is_as_before_is_not_said():
    assert set(Resampling().model_dump()) == {"image", "image_apart", "output", "output_apart", "apart"}
    assert Resampling(aligned="first").model_dump()["aligned"] == "first"
