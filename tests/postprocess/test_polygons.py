"""Outlines of objects of a map: those of GDAL on the whole, whatever blocks they were made in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.command_line import cli
from support.volumes import make_volume
from unet_engine.postprocess.base import Boxes
from unet_engine.postprocess.polygons import Polygons
from unet_engine.postprocess.source import Source

features = pytest.importorskip("rasterio.features")
geopandas = pytest.importorskip("geopandas")
shapely = pytest.importorskip("shapely")


def outlines(source, shape, block):
    work = Polygons(source, Boxes(shape, block))
    return work.reduce([(index, work.look(index, box)) for index, box in work.boxes])


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_blocks_do_not_show(seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    shape, block = tuple(rng.integers(1, 10, 2)), tuple(rng.integers(1, 5, 2))
    labels = rng.integers(0, 3, shape).astype("u2") * 1000
    source = Source.of(make_volume(tmp_path_factory.mktemp("p") / "l.zarr", labels))
    found, whole = outlines(source, shape, block), outlines(source, shape, shape)
    assert list(found) == list(whole) == np.unique(labels[labels > 0]).tolist()
    for number, shape_of in found.items():
        assert shapely.to_wkb(shape_of) == shapely.to_wkb(whole[number])
        assert shape_of.is_valid
        np.testing.assert_array_equal(
            features.rasterize([shape_of], labels.shape, fill=0, default_value=1), labels == number
        )


def map_of(path, crs="EPSG:32633"):
    rasterio = pytest.importorskip("rasterio")
    labels = np.zeros((40, 60), np.uint8)
    labels[3:10, 5:50], labels[20:35, 10:20], labels[25:28, 13:15] = 1, 2, 0
    with rasterio.open(
        path, "w", driver="GTiff", width=60, height=40, count=1, dtype="uint8", crs=crs,
        transform=rasterio.Affine(0.6, 0, 500000, 0, -0.6, 4100000), tiled=True, blockxsize=16, blockysize=16,
    ) as file:  # fmt: skip
        file.write(labels, 1)
    return labels


@pytest.mark.parametrize("ending", ["gpkg", "parquet"])
def test_polygons_lie_where_the_map_says(tmp_path, monkeypatch, ending):
    labels = map_of(tmp_path / "map.tif")
    monkeypatch.setattr("unet_engine.postprocess.polygons.VOXELS", 256)
    out = tmp_path / f"p.{ending}"
    said = cli("polygons", tmp_path / "map.tif", out)
    assert said.code == 0, said.err
    found = geopandas.read_file(out) if ending == "gpkg" else geopandas.read_parquet(out)
    assert found.crs.to_epsg() == 32633
    assert found["pixels"].tolist() == [(labels == 1).sum(), (labels == 2).sum()]
    np.testing.assert_allclose(found["area"], found.geometry.area)
    np.testing.assert_allclose(found.geometry.area, found["pixels"] * 0.36)
    np.testing.assert_allclose(
        found.total_bounds, [500000 + 5 * 0.6, 4100000 - 35 * 0.6, 500000 + 50 * 0.6, 4100000 - 3 * 0.6]
    )
    assert len(found.geometry[1].geoms[0].interiors) == 1


def test_objects_of_a_map_keep_its_coordinates(tmp_path):
    map_of(tmp_path / "map.tif")
    assert cli("components", tmp_path / "map.tif", tmp_path / "o.zarr", "--fill-holes", "--durable", "no").code == 0
    assert cli("polygons", tmp_path / "o.zarr", tmp_path / "p.gpkg").code == 0
    assert cli("table", tmp_path / "o.zarr", tmp_path / "t.csv").code == 0
    found = geopandas.read_file(tmp_path / "p.gpkg")
    assert found.crs.to_epsg() == 32633
    assert found["class"].tolist() == [1, 2]
    assert [len(shape.geoms[0].interiors) for shape in found.geometry] == [0, 0]
    np.testing.assert_allclose(found.geometry[0].bounds, [500003, 4099994, 500030, 4099998.2])
    rows = [line.split(",") for line in (tmp_path / "t.csv").read_text().splitlines()]
    row = dict(zip(rows[0], rows[1], strict=True))
    assert [float(row[k]) for k in ("min_x", "min_y", "max_x", "max_y")] == pytest.approx(found.geometry[0].bounds)
    assert float(row["area"]) == pytest.approx(found.geometry[0].area)


def test_a_volume_of_three_axes_is_refused(tmp_path):
    path = make_volume(tmp_path / "l.zarr", np.ones((3, 4, 5), np.uint8))
    said = cli("polygons", path, tmp_path / "p.gpkg")
    assert (said.code, "2D" in said.error) == (3, True)
    assert cli("polygons", path, tmp_path / "p.shp").code == 2


def test_an_empty_map_has_no_polygons(tmp_path):
    path = make_volume(tmp_path / "l.zarr", np.zeros((4, 5), np.uint8))
    for ending in ("gpkg", "parquet", "geojson"):
        said = cli("polygons", path, tmp_path / f"p.{ending}")
        assert said.code == 0, said.err
