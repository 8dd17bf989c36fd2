"""What was not measured in one channel alone: its value, or its mask, says nothing of the others."""

import json

import numpy as np
import pytest
import zarr

from support.volumes import fake_model, make_volume, result_of
from unet_engine import run
from unet_engine.errors import OutputError
from unet_engine.execution import hands
from unet_engine.plan.box import Box
from unet_engine.postprocess.convert import convert
from unet_engine.postprocess.pyramid import Wanted, pyramid
from unet_engine.volumes import nodata
from unet_engine.volumes.formats import open_stored, open_volume
from unet_engine.volumes.nodata import as_attribute, said, said_of_each
from unet_engine.volumes.validity import unmeasured

SHAPE = (12, 14, 16)
RNG = np.random.default_rng(5)
COUNTS = RNG.integers(1, 9, SHAPE).astype("u1")
HEIGHTS = RNG.integers(0, 3, SHAPE).astype("f4") * 100
COUNTS[:6], HEIGHTS[4:8] = 0, -9999
COUNTS[8, 0], HEIGHTS[0, 0] = 100, 0
ABSENT = np.stack([COUNTS == 0, HEIGHTS == -9999])


@pytest.fixture
def parts(tmp_path):
    """Of one 0 means that nothing was measured, of the other it is a height like others."""
    counts = make_volume(tmp_path / "s_counts.zarr", COUNTS, axes="zyx", attributes={"_FillValue": 0})
    return f"{counts}+" + make_volume(tmp_path / "s_heights.zarr", HEIGHTS, axes="zyx", attributes={"nodata": -9999})


def absent_in(volume):
    box = Box.of_shape(volume.shape)
    return unmeasured(volume, box, volume.read(box))


def test_each_file_has_values_of_its_own(parts, tmp_path):
    volume = open_volume(parts)
    assert np.array_equal(absent_in(volume), ABSENT)
    assert volume.facts()["nodata_of"] == [["0"], ["-9999"]]
    options = {"input": parts, "model": fake_model(tmp_path, channels_in=2, channels_out=2), "normalize": "zscore"}
    found = run(**options, output="logits", blend="crop", outside=-50, out=str(tmp_path / "o.zarr"))
    image = np.stack([COUNTS, HEIGHTS]).astype("f8")
    scaled = [(one - one[~a].mean()) / one[~a].std() for one, a in zip(image, ABSENT, strict=True)]
    expected = np.where(ABSENT.all(axis=0), -50, np.where(ABSENT, 0, scaled))
    np.testing.assert_allclose(result_of(found.out), expected, atol=2e-4)
    assert any("0 in channel 0, -9999 in channel 1" in note for note in found.notes)
    said = dict(zarr.open_group(str(tmp_path / "o.zarr")).attrs)["unet_engine"]
    assert said["identity"]["nodata"] == [["0.0"], ["-9999.0"]]


@pytest.mark.parametrize("normalize", ["zscore:whole", "percentile:1,99,whole", "minmax"])
def test_what_is_measured_of_all_leaves_out_each_channels_own(parts, tmp_path, normalize):
    options = {"model": fake_model(tmp_path, channels_in=2, channels_out=2), "normalize": normalize, "blend": "crop"}
    both = run(input=parts, **options, output="logits", outside="keep", out=str(tmp_path / "o.zarr"))
    for c, path in enumerate(parts.split("+")):
        options["model"] = fake_model(tmp_path, name="one", channels_in=1, channels_out=1)
        alone = run(input=path, **options, output="logits", outside="keep", out=str(tmp_path / f"{c}.zarr"))
        np.testing.assert_allclose(result_of(both.out)[c][~ABSENT[c]], result_of(alone.out)[0][~ABSENT[c]], atol=1e-5)


def test_masks_and_values_are_one_rule(tmp_path):
    """One says it by a value, the other by alpha: as where both say it by a value."""
    masked = np.stack([np.where(ABSENT[1], 7, HEIGHTS), np.where(ABSENT[1], 0, 1)]).astype("f4")
    heights = make_volume(tmp_path / "h.zarr", masked, axes="czyx", attributes={"band_names": ["gray", "alpha"]})
    counts = make_volume(tmp_path / "c.zarr", COUNTS, axes="zyx", attributes={"_FillValue": 0})
    path = f"{counts}+{heights}"
    volume = open_volume(path)
    assert np.array_equal(absent_in(volume), ABSENT)
    assert volume.validity is None  # who has no mask may have been measured anywhere
    options = {"model": fake_model(tmp_path, channels_in=2, channels_out=2), "normalize": "zscore", "blend": "crop"}
    found = run(input=path, **options, output="logits", outside=-50, out=str(tmp_path / "o.zarr"))
    named = f"{counts}+" + make_volume(tmp_path / "n.zarr", HEIGHTS, axes="zyx", attributes={"nodata": -9999})
    twin = run(input=named, **options, output="logits", outside=-50, out=str(tmp_path / "p.zarr"))
    assert np.array_equal(result_of(found.out), result_of(twin.out))
    whole = run(input=path, **options, output="logits", nodata="none", out=str(tmp_path / "w.zarr"))
    image = np.stack([COUNTS, masked[0]]).astype("f8")
    scaled = [(one - one.mean()) / one.std() for one in image]
    np.testing.assert_allclose(result_of(whole.out), scaled, atol=2e-4)


def test_a_value_is_one_of_its_files_own_type(tmp_path):
    """-9999.9 of float32 is another number than -9999.9 of float64, which is what both are read as."""
    layers = np.full((2, 4, 5), -9999.9), [np.float32, np.float64]
    paths = [
        make_volume(tmp_path / f"{n}.zarr", layer.astype(kind), axes="yx", attributes={"nodata": -9999.9})
        for n, (layer, kind) in enumerate(zip(*layers, strict=True))
    ]
    assert absent_in(open_volume("+".join(paths))).all()


@pytest.mark.parametrize("ending", ["zarr", "h5", "npy", "ome.tif"])
def test_converting_keeps_it(parts, tmp_path, ending):
    convert(parts, str(tmp_path / f"o.{ending}"))
    assert np.array_equal(absent_in(open_volume(str(tmp_path / f"o.{ending}"))), ABSENT)


def test_one_value_for_all_bands_is_not_enough(tmp_path):
    attributes = {"spatial_ref": "EPSG:32633", "crs_wkt": "", "GeoTransform": "0 10 0 0 0 -10"}
    paths = [
        make_volume(tmp_path / f"{n}.zarr", HEIGHTS[0], axes="yx", attributes={**attributes, "nodata": n})
        for n in (1, 2)
    ]
    pytest.importorskip("rasterio")

    from unet_engine.postprocess.content import content_of
    from unet_engine.postprocess.writers.geotiff import GeoTiffWriter

    content = content_of(open_stored("+".join(paths)))
    with pytest.raises(OutputError, match="one value of nodata for all bands"):
        GeoTiffWriter().check("o.tif", content)


def test_lists_of_as_many_values_as_channels_are_one_for_each():
    kind = np.dtype("f4")
    assert said_of_each({"nodatavals": [0, -1]}, kind, 2) == ((0.0,), (-1.0,))
    assert said_of_each({"nodatavals": [0, None], "_FillValue": 3}, kind, 2) == ((3.0, 0.0), (3.0,))
    assert said_of_each({"nodatavals": [0, 0]}, kind, 2) == said_of_each({"missing_value": [0, 1]}, kind, 2) == ()
    assert said({"nodatavals": [0, 0]}, kind) == (0.0,)
    for each in (((0.0,), (-1.0,)), ((0.0, 1.0), ()), ((0.0,), ()), ((0.0, 1.0),) * 2, ((0.0, 1.0),) * 3):
        named = {"nodatavals": json.loads(json.dumps(as_attribute(each)))}
        assert (said_of_each(named, kind, len(each)) or (said(named, kind),) * len(each)) == each


def test_a_pyramid_leaves_out_each_channels_own(tmp_path, parts):
    convert(parts, str(tmp_path / "o.zarr"))
    pyramid(Wanted(str(tmp_path / "o.zarr"), levels=2), hands.Here(), memory=2**24)
    found = open_stored(str(tmp_path / "o.zarr/1")).read(Box.of_shape(tuple(n // 2 for n in SHAPE)))
    assert found[1, 0, 0, 0] == HEIGHTS[:2, :2, :2].mean()
    assert found[0, 4, 0, 0] == COUNTS[8:10, :2, :2].mean()


@pytest.mark.parametrize("grid", ["scan", "model"])
def test_what_is_missing_in_a_channel_is_left_out_before_interpolating(tmp_path, grid):
    """By alpha or by a value, it is as though there were what is normalised to 0."""
    placed = {"ome": "0.5", "axes": "zyx", "scale": (1, 1, 1), "unit": "micrometer"}
    masked = np.stack([np.where(ABSENT[1], 7, HEIGHTS), np.where(ABSENT[1], 0, 1)]).astype("f4")
    heights = make_volume(tmp_path / "h.zarr", masked, **{**placed, "axes": "czyx", "scale": (1, 1, 1, 1)})
    zarr.open_group(heights, mode="r+")["0"].attrs["band_names"] = ["gray", "alpha"]
    counts = make_volume(tmp_path / "c.zarr", COUNTS, **placed, attributes={"_FillValue": 0})
    bare = [np.where(ABSENT[0], 5, COUNTS), np.where(ABSENT[1], 5, HEIGHTS).astype("f4")]
    twins = [make_volume(tmp_path / f"{n}.zarr", one, **placed) for n, one in enumerate(bare)]
    how = {"image": 1, "output": 1, "apart": "never"}
    spec = {"channels_in": 2, "channels_out": 2, "spacing": [2.0] * 3, "spacing_unit": "micrometer", "resampling": how}
    options = {
        "model": fake_model(tmp_path, **spec),
        "output": "logits",
        "normalize": "fixed:mean=5,std=1",
        "grid": grid,
    }
    found = result_of(run(input=f"{counts}+{heights}", **options, outside=-700, out=str(tmp_path / "o.zarr")).out)
    twin = result_of(run(input="+".join(twins), **options, out=str(tmp_path / "t.zarr")).out)
    outside = (found == -700).all(axis=0)
    if grid == "scan":
        assert np.array_equal(outside, ABSENT.all(axis=0))
    assert outside.any()
    np.testing.assert_allclose(found[:, ~outside], twin[:, ~outside], atol=2e-3)


@pytest.mark.parametrize("value", [0.0, -9999.0, 0.1, -3.4028234663852886e38, 16777217.0, np.nan, np.inf])
def test_a_value_is_told_as_the_number_that_it_is(value):
    """What goes on from an output reads it there."""
    (text,) = nodata.facts(((value,),))["nodata"]
    assert np.array_equal(float(text), value, equal_nan=True)
