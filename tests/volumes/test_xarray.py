"""Zarr as xarray and rioxarray write it: axes by name, coordinates as spacing, the projection kept."""

import numpy as np
import pytest
import zarr

from support.volumes import make_volume
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.volumes.formats import open_volume

BANDS = np.random.default_rng(8).integers(0, 99, (3, 20, 30), np.uint8)


def dataset(path, version, name="red", y=None, dims=("band", "y", "x")):
    """What rioxarray makes of a raster: a variable, its coordinates, and ``spatial_ref``."""
    group = zarr.create_group(path, zarr_format=version)
    coordinates = {
        "band": np.arange(3), "y": 100 - 10 * np.arange(20.0) if y is None else y, "x": 500 + 5 * np.arange(30.0),
    }  # fmt: skip
    for key, values in {name: BANDS, **coordinates, "spatial_ref": np.zeros((), "i8")}.items():
        names = list(dims) if key == name else [key] if np.ndim(values) else []
        array = group.create_array(key, data=np.asarray(values), dimension_names=names if version == 3 else None)
        if version == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = names
    group[name].attrs["grid_mapping"] = "spatial_ref"
    group["spatial_ref"].attrs["crs_wkt"] = 'PROJCS["somewhere"]'
    return str(path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("inside", ["", "/red"])
def test_a_raster_of_rioxarray(tmp_path, version, inside):
    volume = open_volume(dataset(tmp_path / "a.zarr", version) + inside)
    assert (volume.axes, volume.channels, volume.shape) == ("cyx", 3, (20, 30))
    assert (volume.spacing, volume.translation) == ((-10, 5), (100, 500))
    assert (volume.frame.crs, volume.frame.origin) == ('PROJCS["somewhere"]', (500, 100))
    assert np.array_equal(volume.read(Box.of_shape((20, 30))), BANDS)


def test_what_is_not_evenly_spaced_or_not_known_says_nothing(tmp_path):
    volume = open_volume(dataset(tmp_path / "a.zarr", 3, y=np.arange(20.0) ** 2))
    assert (volume.axes, volume.spacing, volume.frame) == ("cyx", None, None)
    with pytest.raises(InputError, match="'wavelet' may be anything"):
        open_volume(dataset(tmp_path / "b.zarr", 3, dims=("wavelet", "y", "x")))


def test_several_variables_are_listed(tmp_path):
    path = dataset(tmp_path / "a.zarr", 3)
    zarr.open_group(path, mode="r+").create_array("green", data=BANDS, dimension_names=["band", "y", "x"])
    with pytest.raises(InputError, match=r"name one of the arrays in it \(band, green, red"):
        open_volume(path)


def test_a_group_of_one_array_without_names_is_not_guessed_at(tmp_path):
    zarr.create_group(tmp_path / "g.zarr")
    make_volume(tmp_path / "g.zarr/raw", BANDS)
    with pytest.raises(InputError, match="name one of the arrays in it"):
        open_volume(str(tmp_path / "g.zarr"))
