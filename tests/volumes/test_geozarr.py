"""Pyramids of GeoZarr, in the layouts of its conventions: which levels there are, and where each lies on the map."""

import json

import numpy as np
import pytest
import zarr

from support.command_line import cli
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.volumes.collection import image_of
from unet_engine.volumes.formats import located, open_volume

rasterio = pytest.importorskip("rasterio")

TRANSFORM = [10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0]
SCENE = np.random.default_rng(3).integers(1, 4000, (60, 48), dtype=np.uint16)
CRS = {"proj:code": "EPSG:32633"}


def level_of(factor):
    return SCENE[::factor, ::factor]


def transform_of(factor):
    return [10.0 * factor, 0.0, 500000.0, 0.0, -10.0 * factor, 5000000.0]


def group(path, attributes, version=3):
    root = zarr.create_group(str(path), zarr_format=version)
    root.attrs.update(attributes)
    return root


def add(root, name, values, dims=("y", "x"), **attributes):
    names = {"dimension_names": list(dims)} if root.metadata.zarr_format == 3 else {}
    array = root.create_array(name, data=values, chunks=(16,) * values.ndim, **names)
    array.attrs.update(attributes if names else {"_ARRAY_DIMENSIONS": list(dims), **attributes})


def layout(*entries, **others):
    return {"multiscales": {"layout": list(entries)}, **CRS, **others}


def check(path, factors=(1, 2, 4), image=None, scale=10.0):
    """Each level has its pixels, and lies where rasterio's transform says."""
    for number, factor in enumerate(factors):
        volume = open_volume(located(str(path), image, number))
        values = level_of(factor)
        assert volume.shape == values.shape
        np.testing.assert_array_equal(volume.read(Box.of_shape(volume.shape))[0], values)
        expected = rasterio.Affine(*transform_of(factor)) @ (0.5, 0.5)
        assert volume.frame is not None, number
        assert volume.frame.origin == pytest.approx(expected)
        assert volume.spacing == pytest.approx((-scale * factor, scale * factor))
        assert rasterio.crs.CRS.from_wkt(volume.frame.crs).to_epsg() == 32633
        assert volume.unit == "meter"


@pytest.mark.parametrize("kind", ["absolute", "absolute in draft", "relative", "centred", "box"])
@pytest.mark.parametrize("nested", [False, True])
def test_levels_of_a_layout(tmp_path, kind, nested):
    entries = []
    for n, factor in enumerate((1, 2, 4)):
        entry = {"asset": str(n), "transform": {"scale": [1.0, 1.0] if n == 0 else [2.0, 2.0]}}
        if n:
            entry["derived_from"] = str(n - 1)
            entry["transform"]["translation"] = [0.5, 0.5] if kind == "centred" else [0.0, 0.0]
        if kind == "absolute":
            entry |= {"spatial:transform": transform_of(factor), "spatial:shape": list(level_of(factor).shape)}
        if kind == "absolute in draft":
            entry |= {"proj:transform": transform_of(factor)}
        entries.append(entry)
    others = {"spatial:dimensions": ["y", "x"]}
    if kind in ("relative", "centred"):
        others["spatial:transform"] = TRANSFORM
    if kind == "box":
        others["spatial:bbox"] = [500000.0, 5000000.0 - 600, 500000.0 + 480, 5000000.0]
    root = group(tmp_path / "a.zarr", layout(*entries, **others))
    for n, factor in enumerate((1, 2, 4)):
        add(root.create_group(str(n)) if nested else root, "data" if nested else str(n), level_of(factor))
    check(tmp_path / "a.zarr")
    said = cli("info", tmp_path / "a.zarr", "--json").json
    assert (said["levels"], said["axes"], said["shape"]) == (["60×48", "30×24", "15×12"], "yx", [60, 48])
    with pytest.raises(InputError, match=r"--level 3: .* has 3 levels \("):
        located(str(tmp_path / "a.zarr"), None, 3)
    assert image_of(str(tmp_path / "a.zarr")) is None  # labels are put into images of OME-Zarr alone


@pytest.mark.parametrize("version", [2, 3])
def test_coordinates_beside_an_array_say_more_than_its_pyramid(tmp_path, version):
    root = group(tmp_path / "a.zarr", layout({"asset": "full"}, {"asset": "half"}), version)
    for name, factor in (("full", 1), ("half", 2)):
        inside, (height, width) = root.create_group(name), level_of(factor).shape
        add(inside, "data", level_of(factor))
        for axis, count, start, step in (("x", width, 500000.0, 10.0), ("y", height, 5000000.0, -10.0)):
            values = start + step * factor * (np.arange(count) + 0.5)
            add(inside, axis, values, (axis,), units="m")
    check(tmp_path / "a.zarr", (1, 2))


def test_variables_of_a_scene_with_several_resolutions(tmp_path):
    entries = [
        {"asset": f"r{10 * f}m", "proj:transform": transform_of(f), **({} if f == 1 else {"derived_from": "r10m"})}
        for f in (1, 2, 4)
    ]
    root = group(tmp_path / "a.zarr", layout(*entries))
    for factor, names in ((1, ["b02"]), (2, ["b02", "b05"]), (4, ["b02", "b05", "b09"])):
        inside = root.create_group(f"r{10 * factor}m")
        for name in names:
            add(inside, name, level_of(factor))
    path = str(tmp_path / "a.zarr")
    with pytest.raises(InputError, match=r"holds 3 variables: b02, b05, b09; name one, e\.g\. --image b02"):
        open_volume(path)
    check(path, (1, 2, 4), "b02")
    check(path, (2, 4), "b05")
    assert open_volume(located(path, "b09", None)).frame == open_volume(f"{path}/r40m/b09").frame
    with pytest.raises(InputError, match=r"--image 'b1': .* has b02, b05, b09"):
        located(path, "b1", None)


def test_bands_that_each_level_holds_are_channels(tmp_path):
    entries = [
        {"asset": f"r{10 * f}m", "proj:transform": transform_of(f), **({} if f == 1 else {"derived_from": "r10m"})}
        for f in (2, 1, 4)
    ]
    root = group(tmp_path / "a.zarr", layout(*entries))
    for factor in (1, 2, 4):
        inside = root.create_group(f"r{10 * factor}m")
        for number, name in enumerate(["b2", "b10"]):
            add(inside, name, level_of(factor) + number)
    path = str(tmp_path / "a.zarr")
    for number, factor in enumerate((1, 2, 4)):
        volume = open_volume(located(path, None, number))
        assert volume.channel_names == ("b2", "b10")
        values = np.stack([level_of(factor), level_of(factor) + 1])
        np.testing.assert_array_equal(volume.read(Box.of_shape(volume.shape)), values)
        assert volume.frame.origin == pytest.approx(rasterio.Affine(*transform_of(factor)) @ (0.5, 0.5))
        assert any("taken as channels" in note for note in volume.notes)
    assert open_volume(located(path, None, None)).shape == SCENE.shape
    check(path, image="b2")
    said = cli("info", path)
    assert said.code == 0
    assert "60×48" in said.out


def test_the_finest_is_the_first_whatever_the_order(tmp_path):
    entries = [
        {"asset": "dem_20m", "proj:transform": transform_of(2)},
        {"asset": "dem_40m", "derived_from": "dem_20m", "transform": {"scale": [2.0, 2.0]}},
        {"asset": "dem_10m", "derived_from": "dem_20m", "transform": {"scale": [0.5, 0.5]}},
    ]
    root = group(tmp_path / "a.zarr", layout(*entries))
    for factor in (1, 2, 4):
        add(root, f"dem_{10 * factor}m", level_of(factor))
    check(tmp_path / "a.zarr")


def tiles(factors=(1, 2, 4), **limits):
    matrices = [
        {"id": str(n), "scaleDenominator": 10.0 * f / 0.28e-3, "cellSize": 10.0 * f, "pointOfOrigin": [500000.0, 5000000.0],
         "tileWidth": 16, "tileHeight": 16, "matrixWidth": 4, "matrixHeight": 4}
        for n, f in enumerate(factors)
    ]  # fmt: skip
    return {"multiscales": {
        "tile_matrix_set": {"id": "Native", "supportedCRS": "EPSG:32633", "orderedAxes": ["E", "N"], "tileMatrices": matrices},
        "resampling_method": "average", "tile_matrix_limits": limits,
    }}  # fmt: skip


@pytest.mark.parametrize("denominators", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_levels_of_a_set_of_tile_matrices(tmp_path, denominators, swapped):
    said = tiles()
    for matrix in said["multiscales"]["tile_matrix_set"]["tileMatrices"]:
        if denominators:
            del matrix["cellSize"]
        if swapped:
            matrix["pointOfOrigin"].reverse()
    if swapped:
        said["multiscales"]["tile_matrix_set"]["orderedAxes"] = ["N", "E"]
    root = group(tmp_path / "a.zarr", said)
    for n, factor in enumerate((1, 2, 4)):
        add(root.create_group(str(n)), "band", level_of(factor))
    check(tmp_path / "a.zarr")


def test_tiles_that_begin_within_the_set_and_levels_that_are_not_there(tmp_path):
    said = tiles(
        (4, 2, 1), **{"2": {"tileMatrix": "2", "minTileCol": 3, "minTileRow": 2, "maxTileCol": 5, "maxTileRow": 5}}
    )
    root = group(tmp_path / "a.zarr", said)
    add(root.create_group("2"), "band", SCENE)
    add(root.create_group("1"), "band", level_of(2))
    fine, coarse = (open_volume(located(str(tmp_path / "a.zarr"), None, n)) for n in (0, 1))
    assert (fine.shape, coarse.shape) == ((60, 48), (30, 24))
    assert fine.frame.origin == pytest.approx((500000.0 + 3 * 160 + 5, 5000000.0 - 2 * 160 - 5))
    assert coarse.frame.origin == pytest.approx((500010.0, 4999990.0))


def test_a_set_that_is_only_named(tmp_path):
    root = group(tmp_path / "a.zarr", {"multiscales": {"tile_matrix_set": "WebMercatorQuad"}})
    for name, factor in (("8", 4), ("9", 2), ("10", 1)):
        inside = root.create_group(name)
        add(inside, "band", level_of(factor))
        add(inside, "spatial_ref", np.zeros(1), ("n",), crs_wkt=rasterio.crs.CRS.from_epsg(32633).to_wkt(),
            GeoTransform=" ".join(str(transform_of(factor)[i]) for i in (2, 0, 1, 5, 3, 4)))  # fmt: skip
    check(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    "said",
    [{"layout": 3}, {"layout": [{}]}, {"layout": [{"asset": "../other"}]}, {"layout": [{"asset": "none"}]},
     {"layout": [{"asset": "0", "transform": {"scale": ["a"]}}]}, {"tile_matrix_set": {"tileMatrices": 1}}],
)  # fmt: skip
def test_what_makes_no_sense_is_told_in_one_line(tmp_path, said):
    root = group(tmp_path / "a.zarr", {"multiscales": said})
    add(root, "0", SCENE)
    with pytest.raises(InputError) as error:
        open_volume(str(tmp_path / "a.zarr"))
    assert str(tmp_path) in str(error.value)
    assert open_volume(f"{tmp_path}/a.zarr/0").shape == SCENE.shape


def test_a_run_of_a_level_lies_on_it(tmp_path):
    from support.volumes import fake_model

    entries = [{"asset": "0"}, {"asset": "1", "derived_from": "0", "transform": {"scale": [2.0, 2.0]}}]
    root = group(tmp_path / "a.zarr", layout(*entries, **{"spatial:transform": TRANSFORM}))
    add(root, "0", SCENE)
    add(root, "1", level_of(2))
    model = fake_model(tmp_path, window=(16, 16), axes="yx")
    said = cli(
        "run", "--in", tmp_path / "a.zarr", "--level", "1", "--model", model, "--out", tmp_path / "o.tif", "--json"
    )
    assert said.code == 0, said.err
    with rasterio.open(tmp_path / "o.tif") as found:
        assert (found.shape, list(found.transform)[:6], found.crs.to_epsg()) == ((30, 24), transform_of(2), 32633)
    assert json.dumps(said.json)
