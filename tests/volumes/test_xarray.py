"""Zarr as xarray and rioxarray write it: axes by name, coordinates as spacing, the projection kept."""

import numpy as np
import pytest
import zarr

from support.volumes import make_volume
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.profiling.recorder import PLAIN
from unet_engine.profiling.stages import Stages
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


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("stored", "said", "wanted", "missing"),
    [
        ("i2", {"scale_factor": 0.5, "add_offset": 10.0}, lambda v: (v * 0.5 + 10).astype("f4"), 8.5),
        ("u1", {"add_offset": -1000}, lambda v: (v - 1000).astype("i2"), -997),
        ("i1", {"_Unsigned": "true"}, lambda v: (v % 256).astype("u1"), 253),
        ("i2", {"_Unsigned": "true", "scale_factor": 2.0}, lambda v: (v % 65536 * 2).astype("i4"), 2 * 65533),
        ("i2", {"scale_factor": 1.0, "add_offset": 0.0}, lambda v: v.astype("i2"), -3),
        ("f4", {"scale_factor": 0, "add_offset": "none"}, lambda v: v.astype("f4"), -3),
    ],
)
def test_packed_numbers_are_what_they_stand_for(tmp_path, version, stored, said, wanted, missing):
    order = ">" if version == 2 else "<"  # of which zarr's own codecs read the one, the native ones the other
    values = np.random.default_rng(3).integers(0, 200, (8, 8, 8)).astype(order + stored)
    fill = 3 if stored == "u1" else -3
    values[:4, :4, :4], values[7, 7, 7] = fill, 5
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=values.shape,
        chunks=(4, 4, 4),
        dtype=values.dtype,
        fill_value=fill,
        zarr_format=version,
    )
    array[:] = values
    array.attrs.update({**said, "missing_value": 5})
    volume = open_volume(str(tmp_path / "a.zarr"))
    box, true = Box.of_shape(values.shape), wanted(values.astype(np.int64))
    for recorder in (PLAIN, Stages()):
        voxels = volume.read(box, recorder)[0]
        assert voxels.dtype == true.dtype == volume.dtype
        assert np.array_equal(voxels, true)
    assert not volume.has_data(Box((0, 0, 0), (4, 4, 4)))
    assert volume.fill_value == missing == true[0, 0, 0]
    assert volume.nodata == (true[7, 7, 7],)
    changes = any(said.get(key) not in (None, 0, 1, "none") for key in said)
    assert any("is packed" in note for note in volume.notes) == changes


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


UTM = {"proj:code": "EPSG:32633"}
CORNER = {"spatial:transform": [10, 0, 500, 0, -10, 4000]}
MIDDLES = [[10, 0, 505], [0, -10, 3995]]


@pytest.mark.parametrize(
    ("of_projection", "of_array", "of_group", "affine"),
    [
        ({"crs_wkt": "EPSG:32633", "GeoTransform": "500 10 0 4000 0 -10"}, {}, {}, MIDDLES),
        ({"crs_wkt": "EPSG:32633", "GeoTransform": "500 8 6 4000 6 -8"}, {}, {}, [[8, 6, 507], [6, -8, 3999]]),
        (None, UTM | CORNER, {}, MIDDLES),
        (None, {}, UTM | CORNER, MIDDLES),
        (None, CORNER | {"spatial:registration": "node"}, UTM, [[10, 0, 500], [0, -10, 4000]]),
        (None, CORNER, {"proj:epsg": 32633}, MIDDLES),
        ({"epsg_code": "EPSG:32633"}, CORNER, {}, MIDDLES),
    ],
)
def test_a_transform_in_attributes_places_a_map_that_has_no_coordinates(
    tmp_path, of_projection, of_array, of_group, affine
):
    rasterio = pytest.importorskip("rasterio")
    utm = rasterio.crs.CRS.from_epsg(32633)
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=3, attributes=of_group)
    group.create_array("red", data=BANDS, dimension_names=["band", "y", "x"], attributes=of_array)
    if of_projection:
        said = of_projection | ({"crs_wkt": utm.to_wkt()} if "crs_wkt" in of_projection else {})
        group.create_array("spatial_ref", data=np.zeros((), "i8"), attributes=said, dimension_names=[])
    volume = open_volume(str(tmp_path / "a.zarr"))
    assert np.array_equal(volume.frame.affine, affine)
    assert rasterio.crs.CRS.from_wkt(volume.frame.crs) == utm
    assert (volume.axes, volume.unit) == ("cyx", "meter")


@pytest.mark.parametrize("transform", ["0 1 0 0 0 1", "1 2 3", "nan 1 0 0 0 1", "0 1 1 0 1 1", 7])
def test_a_transform_that_says_nothing_places_nothing(tmp_path, transform):
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=3)
    group.create_array("red", data=BANDS, dimension_names=["band", "y", "x"])
    group.create_array("spatial_ref", data=np.zeros((), "i8"), attributes={"GeoTransform": transform})
    assert open_volume(str(tmp_path / "a.zarr")).frame is None


def test_a_reference_system_that_nobody_knows_is_told_and_left_out(tmp_path):
    pytest.importorskip("rasterio")
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=3, attributes={"proj:code": "EPSG:999999", **CORNER})
    group.create_array("red", data=BANDS, dimension_names=["band", "y", "x"])
    volume = open_volume(str(tmp_path / "a.zarr"))
    assert volume.frame.crs is None
    assert any("EPSG:999999" in note for note in volume.notes)


def test_cf_may_list_the_coordinates_of_a_projection(tmp_path):
    path = dataset(tmp_path / "a.zarr", 3)
    zarr.open_group(path)["red"].attrs["grid_mapping"] = "spatial_ref: x y"
    assert open_volume(path).frame.crs == 'PROJCS["somewhere"]'


@pytest.mark.parametrize(
    ("fill", "on_map", "missing"),
    [(7, False, (7,)), (7, True, (7,)), (0, True, (0,)), (0, False, ()), (None, True, ())],
)
def test_a_fill_value_that_xarray_wrote_is_nodata(tmp_path, fill, on_map, missing):
    path = dataset(tmp_path / "a.zarr", 2)
    group = zarr.open_group(path)
    red = group.create_array("red", shape=BANDS.shape, dtype="u1", fill_value=fill, overwrite=True)
    red.attrs.update({"_ARRAY_DIMENSIONS": ["band", "y", "x"], "grid_mapping": "spatial_ref" if on_map else "none"})
    assert open_volume(path).nodata == missing
