"""GeoTIFF, VRT and JPEG 2000 are read by window as rasterio reads them whole, with nodata, mask and place on the
map."""

import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

from support import ranges
from support.command_line import cli
from support.shares import share
from support.spoiled import check_refused
from support.volumes import fake_model, identity, make_volume, open_meant
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.postprocess.convert import convert
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.pick import Meant, Pick
from unet_engine.volumes.validity import unmeasured

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("rasterio.shutil")
pytest.importorskip("rasterio.vrt")

RNG = np.random.default_rng(5)
BANDS = RNG.integers(1, 255, (3, 90, 120), np.uint8)
NORTH_UP = rasterio.Affine(5, 0, 400000, 0, -5, 5200000)
TURNED = rasterio.Affine(3, 4, 1000, 4, -3, 2000)
SHARED = Path(__file__).parents[2].parent / "shared"


def geotiff(path, bands=BANDS, transform=NORTH_UP, crs="EPSG:32632", mask=None, alpha=None, **options):
    stored = bands if alpha is None else np.concatenate([bands, alpha[np.newaxis]])
    options = {"driver": "GTiff", "count": len(stored), "height": 90, "width": 120, "dtype": stored.dtype, **options}
    if alpha is not None and len(stored) not in (2, 4):  # GDAL makes a colour of the last of three
        options |= {"alpha": "unspecified", "photometric": "MINISBLACK"}
    elif alpha is not None:
        options["alpha"] = "yes"
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", crs=crs, transform=transform, **options) as data,
    ):
        if "photometric" in options:
            gray, undefined, last = (rasterio.enums.ColorInterp[name] for name in ("gray", "undefined", "alpha"))
            data.colorinterp = [gray, *[undefined] * (len(stored) - 2), last]
        data.write(stored)
        if mask is not None:
            data.write_mask(mask)
    return str(path)


def whole(volume):
    return volume.read(Box.of_shape(volume.shape))


@pytest.mark.parametrize(
    "options",
    [{}, {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "deflate"}, {"interleave": "pixel"}],
)
def test_windows_are_what_was_written(tmp_path, options):
    volume = open_volume(geotiff(tmp_path / "a.tif", **options))
    assert (volume.axes, volume.stored_shape, volume.unit) == ("cyx", (3, 90, 120), "meter")
    assert np.array_equal(whole(volume), BANDS)
    assert np.array_equal(volume.read(Box((7, 50), (80, 119))), BANDS[:, 7:80, 50:119])
    one = open_volume(geotiff(tmp_path / "b.tif", BANDS[:1]))
    assert one.axes == "yx"
    assert np.array_equal(whole(one), BANDS[:1])


@pytest.mark.parametrize("picked", [("1",), ("2", "0"), ("2", "1")])
def test_some_bands_are_read_as_they_are_named(tmp_path, picked):
    volume = open_volume(geotiff(tmp_path / "a.tif"), None, Pick(channels=picked))
    assert np.array_equal(whole(volume), BANDS[list(map(int, picked))])


def test_a_palette_is_told(tmp_path):
    path = geotiff(tmp_path / "a.tif", BANDS[:1])
    with rasterio.open(path, "r+") as data:
        data.write_colormap(1, {0: (0, 0, 0, 255), 1: (9, 8, 7, 255)})
    assert "values number classes or colours" in " ".join(open_volume(path).notes)

    with rasterio.open(path, "r+") as data:
        data.update_tags(UNET_ENGINE='{"unet_engine": {}}')
    assert "labels that unet-engine wrote" in " ".join(open_volume(path).notes)


def test_bands_as_planes(tmp_path):
    volume = open_volume(geotiff(tmp_path / "a.tif"), "zyx")
    assert np.array_equal(volume.read(Box((1, 7, 50), (2, 80, 119)))[0], BANDS[1:2, 7:80, 50:119])


@pytest.mark.parametrize("transform", [NORTH_UP, TURNED])
def test_where_pixels_lie(tmp_path, transform):
    volume = open_volume(geotiff(tmp_path / "a.tif", transform=transform))
    with rasterio.open(tmp_path / "a.tif") as theirs:
        wanted, wkt = theirs.xy(30, 40), theirs.crs.to_wkt()
    frame = volume.frame
    assert np.asarray(frame.origin) + np.asarray(frame.matrix) @ [30, 40] == pytest.approx(wanted)
    assert (frame.space, frame.crs) == ("crs", wkt)
    assert volume.spacing == pytest.approx((-5, 5) if transform is NORTH_UP else (5, 5))


def told_of(path, **where):
    """What is said of a raster of which no transform says where it lies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", driver="GTiff", width=12, height=9, count=1, dtype="uint8", **where) as data:
            data.write(BANDS[:1, :9, :12])
    volume = open_volume(str(path))
    assert (volume.frame, volume.spacing, volume.translation) == (None, None, (0, 0))
    assert np.array_equal(whole(volume)[0], BANDS[0, :9, :12])
    return " ".join(volume.notes)


def test_control_points_polynomials_and_a_crs_alone_are_no_place_and_are_told(tmp_path):
    from rasterio.control import GroundControlPoint
    from rasterio.rpc import RPC

    one, rest = [1.0] + [0.0] * 19, {"err_bias": None, "err_rand": None}
    rpc = RPC(1, 1, 1, 1, one, one, 5, 5, 1, 1, one, one, 6, 6, **rest)
    points = [GroundControlPoint(r, c, 10 + c, 50 - r) for r in (0, 9) for c in (0, 12)]
    assert "control points" in told_of(tmp_path / "a.tif", gcps=points, crs="EPSG:4326")
    assert "RPC" in told_of(tmp_path / "b.tif", rpcs=rpc)
    assert "RPC" in told_of(tmp_path / "c.tif", rpcs=rpc, crs="EPSG:4326")
    assert "names a reference system" in told_of(tmp_path / "d.tif", crs="EPSG:4326")


def test_a_world_file_says_where_a_tiff_lies(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", BANDS[0])
    (tmp_path / "a.tfw").write_text("2\n0\n0\n-3\n401\n5198.5\n")  # of the middle of the first pixel
    volume = open_volume(str(tmp_path / "a.tif"))
    assert (volume.spacing, volume.translation) == ((-3, 2), (5198.5, 401))
    assert np.array_equal(whole(volume)[0], BANDS[0])


def test_place_and_crs_of_a_region_go_to_the_output(tmp_path):
    path = geotiff(tmp_path / "a.tif", BANDS[:1])
    model = fake_model(tmp_path, axes="yx")
    found = identity(path, tmp_path, model=model, roi="16:80,24:100")
    zarr_twin = make_volume(tmp_path / "b-in.zarr", BANDS[0])
    twin = identity(zarr_twin, tmp_path, model=model, roi="16:80,24:100", out=str(tmp_path / "b.zarr"))
    assert found.tobytes() == twin.tobytes()
    frame = Frame.from_facts(dict(zarr.open_group(tmp_path / "out.zarr", mode="r").attrs)["unet_engine"]["frame"])
    with rasterio.open(path) as theirs:
        assert frame.origin == pytest.approx(theirs.xy(16, 24))
        assert rasterio.crs.CRS.from_wkt(frame.crs) == theirs.crs
    out = open_volume(str(tmp_path / "out.zarr"))
    assert (out.spacing, out.translation, out.unit) == ((-5, 5), (5200000 - 82.5, 400000 + 122.5), "meter")


@pytest.mark.parametrize("kind", share(["nodata", "mask", "alpha"], 2))
def test_no_label_where_nothing_was_measured(tmp_path, kind):
    there = np.full((90, 120), 255, np.uint8)
    there[20:50, :60] = 0
    bands = np.where(there, BANDS[:1], 0) if kind == "nodata" else BANDS[:1]
    path = geotiff(tmp_path / "a.tif", bands, **({"nodata": 0} if kind == "nodata" else {kind: there}))
    volume = open_volume(path)
    assert volume.channels == 1
    assert (volume.own_mask, volume.nodata) == ((None, (0,)) if kind == "nodata" else (f"{path}:mask", ()))
    options = {"model": fake_model(tmp_path, axes="yx"), "outside": 9.5}
    for workers in (None, 2) if kind == "alpha" else (None,):
        found = identity(path, tmp_path, **options, workers=workers, out=str(tmp_path / f"{workers}.zarr"))
        assert np.array_equal(found[0] == 9.5, there == 0)
    if kind != "nodata":
        assert np.array_equal(whole(open_volume(f"{path}:mask"))[0], there)
        options.pop("outside")
        plain = identity(path, tmp_path, **options, nodata="none", out=str(tmp_path / "none.zarr"))
        assert np.array_equal(plain[0], bands[0])


def test_what_is_no_channel_is_told(tmp_path):
    volume = open_volume(geotiff(tmp_path / "a.tif", alpha=np.full((90, 120), 255, np.uint8)))
    assert (volume.channels, "band 4 is alpha" in volume.notes[0]) == (3, True)


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_alpha_counts_beside_any_number_of_bands(tmp_path, bands):
    """GDAL itself makes a mask of it beside one or three."""
    there = np.full((90, 120), 255, np.uint8)
    there[20:50, :60] = 0
    volume = open_volume(geotiff(tmp_path / "a.tif", BANDS[np.arange(bands) % 3], alpha=there))
    assert volume.channels == bands
    assert np.array_equal(whole(volume.validity)[0], there)


def test_a_vrt_and_its_sources(tmp_path):
    geotiff(tmp_path / "a.tif", tiled=True, blockxsize=32, blockysize=32)
    with rasterio.open(tmp_path / "a.tif") as source, rasterio.vrt.WarpedVRT(source, crs="EPSG:3857") as warped:
        wanted = warped.read()
        rasterio.shutil.copy(warped, tmp_path / "b.vrt", driver="VRT")
    volume = open_volume(str(tmp_path / "b.vrt"))
    bands = wanted[: volume.channels]
    assert np.array_equal(volume.read(Box((5, 6), (40, 70))), bands[:, 5:40, 6:70])
    (tmp_path / "a.tif").unlink()
    with pytest.raises(InputError, match=r"is gone while it was read.*a\.tif"):
        volume.confirm()


def test_other_processes_and_threads_read_it(tmp_path):
    volume = open_volume(geotiff(tmp_path / "a.tif", tiled=True, blockxsize=16, blockysize=16)).with_missing(
        ((3.0,),) * 3
    )
    other = pickle.loads(pickle.dumps(volume))
    assert other.nodata == (3.0,)
    found = []

    def read():
        found.extend(np.array_equal(whole(other), BANDS) for _ in range(8))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 32


@pytest.mark.timeout(60)
def test_a_raster_behind_a_url(tmp_path):
    geotiff(tmp_path / "a.tif", tiled=True, blockxsize=32, blockysize=32)
    command = [sys.executable, ranges.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            assert np.array_equal(whole(open_volume(f"{url}/a.tif")), BANDS)
            with pytest.raises(InputError, match=r"no\.tif does not exist"):
                open_volume(f"{url}/no.tif")
        finally:
            server.kill()


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "lzw"}])
def test_spoiled_files_are_refused_in_one_line(tmp_path, capfd, options):
    path = Path(geotiff(tmp_path / "a.tif", **options))
    check_refused(path, path.read_bytes(), 100)
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared files here")
@pytest.mark.parametrize(
    "name", ["RGB.byte", "RGBA.uint16", "all-nodata", "cogeo", "float_nan", "rotated", "world.rgb"]
)
def test_real_files(name):
    path = SHARED / f"files/geotiff/{name}.tif"
    volume = open_volume(str(path))
    with rasterio.open(path) as theirs:
        wanted = theirs.read([1, 2, 3] if name == "RGBA.uint16" else None)
        measured = theirs.dataset_mask() > 0
    assert np.array_equal(whole(volume), wanted, equal_nan=name == "float_nan")
    if volume.own_mask:
        assert np.array_equal(result := whole(open_volume(volume.own_mask))[0] > 0, measured), result


@pytest.mark.parametrize(("place", "source", "said"), [("in.vrt", "a.tif", False), ("sub/out.vrt", "../a.tif", True)])
def test_a_vrt_tells_what_it_reads_outside_of_its_folder(tmp_path, place, source, said):
    geotiff(tmp_path / "a.tif", BANDS[:1])
    band = f'<SimpleSource><SourceFilename relativeToVRT="1">{source}</SourceFilename></SimpleSource>'
    text = f'<VRTRasterBand dataType="Byte" band="1">{band}</VRTRasterBand>'
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(f'<VRTDataset rasterXSize="120" rasterYSize="90">{text}</VRTDataset>')
    volume = open_volume(str(tmp_path / place))
    assert any(f"reads '{source}', outside of its folder" in note for note in volume.notes) == said
    assert np.array_equal(whole(volume)[0], BANDS[0])


@pytest.mark.parametrize("scales", [(0.0001, 0.0001), (0.5, 2.0)])
def test_bands_are_what_scale_and_offset_say(tmp_path, scales):
    """As slope and intercept of other formats are: they were left out."""
    stored = np.random.default_rng(3).integers(1, 9000, (2, 24, 20), dtype=np.uint16)
    stored[:, :4] = 0
    for name, nodata in (("all.tif", None), ("some.tif", 0)):
        with rasterio.open(
            tmp_path / name, "w", driver="GTiff", width=20, height=24, count=2, dtype="uint16", nodata=nodata,
            crs="EPSG:32633", transform=rasterio.transform.from_origin(0, 0, 10, 10),
        ) as file:  # fmt: skip
            file.write(stored)
            file.scales, file.offsets = scales, (-0.1, -0.1)
    expected = np.stack(
        [(band * scale - 0.1).astype("f4") for band, scale in zip(stored.astype("f8"), scales, strict=True)]
    )
    volume = open_volume(str(tmp_path / "all.tif"))
    assert volume.dtype == np.float32
    assert any("scale and offset of its bands" in note for note in volume.notes)
    np.testing.assert_array_equal(whole(volume), expected)
    some = open_volume(str(tmp_path / "some.tif"))
    assert np.array_equal(unmeasured(some, Box.of_shape(some.shape), whole(some)), stored == 0)


def test_each_band_has_its_own_nodata(tmp_path):
    stored = np.array([[[0, 5], [9, 0]], [[0, 9], [9, 4]]], "uint8")
    for number, band in enumerate(stored):
        with rasterio.open(
            tmp_path / f"{number}.tif", "w", driver="GTiff", width=2, height=2, count=1, dtype="uint8"
        ) as file:
            file.write(band[np.newaxis])
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{n + 1}"><NoDataValue>{value}</NoDataValue><SimpleSource><SourceFilename '
        f'relativeToVRT="1">{n}.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>'
        for n, value in enumerate((0, 9))
    )
    (tmp_path / "a.vrt").write_text(f'<VRTDataset rasterXSize="2" rasterYSize="2">{bands}</VRTDataset>')
    volume = open_volume(str(tmp_path / "a.vrt"))
    with rasterio.open(tmp_path / "a.vrt") as theirs:
        wanted, dataset = theirs.read_masks() == 0, theirs.dataset_mask() == 0
    box = Box.of_shape((2, 2))
    assert np.array_equal(unmeasured(volume, box, volume.read(box)), wanted)
    assert np.array_equal(wanted.all(axis=0), dataset)
    assert volume.picked(Pick(channels=(1,))).missing == ((9.0,),)


# --- levels ---


def leveled(path, bands=BANDS, **options):
    """A raster with overviews of a half and a quarter, whose pixels are their nearest."""
    geotiff(path, bands, tiled=True, blockxsize=16, blockysize=16, **options)
    with rasterio.open(path, "r+") as data:
        data.build_overviews([2, 4], rasterio.enums.Resampling.nearest)
    return str(path)


@pytest.mark.parametrize("transform", [NORTH_UP, TURNED])
def test_an_overview_is_a_level_with_its_own_place_on_the_map(tmp_path, transform):
    path = leveled(tmp_path / "a.tif", transform=transform, nodata=7)
    for level, factor in ((1, 2), (2, 4)):
        volume = open_meant(path, None, Meant(level=level))
        assert volume.path == f"{path}:level={level}"
        with rasterio.open(path, overview_level=level - 1) as theirs:
            assert np.array_equal(whole(volume), theirs.read())
            assert volume.frame.origin == pytest.approx(theirs.xy(0, 0))
            assert np.asarray(volume.frame.origin) + np.asarray(volume.frame.matrix) @ [20, 30] == pytest.approx(
                theirs.xy(20, 30)
            )
        assert tuple(map(abs, volume.spacing)) == pytest.approx((5 * factor, 5 * factor), rel=0.03)
        assert volume.nodata == (7,)
        assert np.array_equal(whole(pickle.loads(pickle.dumps(volume))), whole(volume))
    full = open_meant(path, None, Meant(level=0))
    assert (full.path, full.facts()["levels"]) == (path, ["full", "1/2", "1/4"])
    with pytest.raises(InputError, match=r"--level 3: .* has 2 overviews \(1/2, 1/4\)"):
        open_meant(path, None, Meant(level=3))
    with pytest.raises(InputError, match="one image alone"):
        open_meant(path, None, Meant(image="a"))


def test_the_mask_of_a_level_and_a_run_on_it(tmp_path):
    there = np.full((90, 120), 255, np.uint8)
    there[20:50, :60] = 0
    path = leveled(tmp_path / "a.tif", BANDS[:1], mask=there)
    volume = open_meant(path, None, Meant(level=1))
    assert volume.own_mask == f"{path}:level=1:mask"
    with rasterio.open(path, overview_level=0) as theirs:
        wanted, mask, transform = theirs.read(1), theirs.dataset_mask(), theirs.transform
    assert np.array_equal(whole(volume.validity)[0], mask)
    assert np.array_equal(whole(open_volume(volume.own_mask))[0], mask)
    model = fake_model(tmp_path, axes="yx")
    found = identity(path, tmp_path, model=model, level=1, outside=9.5)
    assert np.array_equal(found[0], np.where(mask, wanted, 9.5))
    done = cli("run", "--in", path, "--level", 1, "--model", model, "--output", "logits", "--out", tmp_path / "out.tif")
    assert done.code == 0, done.err
    with rasterio.open(tmp_path / "out.tif") as out:
        assert out.transform.almost_equals(transform)
        assert out.shape == wanted.shape


def test_a_raster_without_overviews_has_one_level(tmp_path):
    path = geotiff(tmp_path / "a.tif")
    assert "levels" not in open_volume(path).facts()
    with pytest.raises(InputError, match="has 0 overviews; count from 0"):
        open_meant(path, None, Meant(level=1))


def test_a_mask_goes_to_another_raster_and_is_told_of_other_formats(tmp_path):
    seen = np.ones((BANDS.shape[1], BANDS.shape[2]), bool)
    seen[:5] = False
    geotiff(tmp_path / "a.tif", mask=seen)
    for name in ("b.tif", "b.npy"):
        said = []
        convert(str(tmp_path / "a.tif"), str(tmp_path / name), tell=said.append)
        assert any("what alpha or a mask leaves out" in line for line in said) == (name == "b.npy")
    back = open_volume(str(tmp_path / "b.tif"))
    assert np.array_equal(back.validity.read(Box.of_shape(back.shape))[0] != 0, seen)
