"""Channels that lie in files of their own are the channels of one volume, in the order in which they are named."""

import pickle

import numpy as np
import pytest
import zarr

from support.command_line import cli
from support.volumes import fake_model, identity, make_volume
from unet_engine.endings import together
from unet_engine.errors import InputError, SettingsError
from unet_engine.paths import absolute, parts, plain, unusable
from unet_engine.plan.box import Box
from unet_engine.prepare.prepare import prepare
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings
from unet_engine.volumes.formats import located, open_stored, open_volume
from unet_engine.volumes.pick import Pick
from unet_engine.volumes.reference_systems import same_system

RNG = np.random.default_rng(3)
VOXELS = RNG.integers(0, 200, (3, 6, 20, 24)).astype("u1")
BOX = Box((0, 3, 5), (6, 20, 21))
INSIDE = (slice(None), *BOX.slices())


def files(folder, arrays=VOXELS, **more):
    return [
        make_volume(folder / f"t_{name}.zarr", a, ome="0.5", axes="zyx", **more)
        for name, a in zip("ab", arrays, strict=False)
    ]


def test_files_are_channels_in_their_order(tmp_path):
    paths = files(tmp_path, scale=(2, 1, 1), unit="micrometer")
    volume = open_volume("+".join(reversed(paths)))
    assert (volume.axes, volume.channel_names, volume.spacing) == ("czyx", ("b", "a"), (2, 1, 1))
    assert np.array_equal(volume.read(BOX), VOXELS[[1, 0]][INSIDE])
    assert "t_b.zarr (b), t_a.zarr (a)" in volume.notes[0]
    assert volume.facts()["joined"] == paths[::-1]
    some = pickle.loads(pickle.dumps(open_volume("+".join(paths), None, Pick(channels=("b",)))))
    assert np.array_equal(some.read(BOX), VOXELS[[1]][INSIDE])


def test_a_file_of_several_channels_keeps_them(tmp_path):
    np.save(tmp_path / "rgb.npy", VOXELS)
    np.save(tmp_path / "height.npy", VOXELS[0].astype("f4") / 8)
    path = f"{tmp_path}/rgb.npy+{tmp_path}/height.npy"
    volume = open_stored(path, "czyx")
    assert (volume.channels, volume.dtype) == (4, np.float32)
    every = np.stack([*VOXELS, VOXELS[0] / np.float32(8)])
    assert np.array_equal(volume.read(BOX), every[INSIDE])
    assert np.array_equal(volume.picked(Pick(channels=(3, 1))).read(BOX), every[[3, 1]][INSIDE])
    assert np.array_equal(volume.stored((slice(1, 4), *BOX.slices())), every[1:][INSIDE])
    assert any("are read as float32" in note for note in volume.notes)


@pytest.mark.parametrize(("wrong", "said"), [
    ({"scale": (3, 1, 1)}, r"has voxels of 3×1×1 micrometer, unlike the 2×1×1 micrometer of"),
    ({"translation": (0, 5, 0)}, "does not lie where"),
    ({"arrays": VOXELS[:, :5]}, "is 5×20×24, unlike the 6×20×24 of"),
])  # fmt: skip
def test_other_voxels_are_no_channel(tmp_path, wrong, said):
    said_of = {"scale": (2, 1, 1), "unit": "micrometer"}
    (tmp_path / "o").mkdir()
    paths = [files(tmp_path, **said_of)[0], files(tmp_path / "o", **{**said_of, **wrong})[1]]
    with pytest.raises(InputError, match=said):
        open_volume("+".join(paths))


def test_types_that_none_holds_are_refused(tmp_path):
    paths = files(tmp_path, [VOXELS[0].astype("i8"), VOXELS[1].astype("f4")])
    with pytest.raises(InputError, match="no type holds the numbers of both"):
        open_volume("+".join(paths))


def test_a_file_that_says_nothing_lies_where_the_others_do(tmp_path):
    np.save(tmp_path / "b.npy", VOXELS[1])
    volume = open_volume(f"{tmp_path}/b.npy+{files(tmp_path, scale=(2, 1, 1))[0]}")
    assert volume.spacing == (2, 1, 1)
    assert any("does not say where it lies" in note for note in volume.notes)


def test_what_a_plus_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "b+c.npy", "d"):
        (tmp_path / name).touch()
    assert parts("b+c.npy") == ("b+c.npy",)
    assert parts("a.npy+b+c.npy+e.npy") == ("a.npy", "b+c.npy", "e.npy")
    assert parts("x.npy+y.npy") == ("x.npy+y.npy",)
    assert parts("s3://b/a+1.zarr+s3://b/b.zarr+a.npy+d") == ("s3://b/a+1.zarr", "s3://b/b.zarr+a.npy+d")
    assert parts("a.npy+https://h/b.tif") == ("a.npy", "https://h/b.tif")
    assert plain("file:///x/a%2B.npy+file:///x/b.npy") == "/x/a+.npy+/x/b.npy"
    assert located("a.npy+d", None, None) == "a.npy+d"
    assert not unusable("+".join(["a.npy", *["d"] * 200]))
    assert absolute("x+y.zarr") == f"{tmp_path}/x+y.zarr"


@pytest.mark.parametrize(("paths", "called", "names"), [
    (["x/case_0000.nii.gz", "x/case_0001.nii.gz"], "x/case.nii.gz", ("0000", "0001")),
    (["T32_B02_10m.jp2", "T32_B8A_10m.jp2"], "T32_10m.jp2", ("B02", "B8A")),
    (["red_t1.tif", "nir_t1.tif"], "t1.tif", ("red", "nir")),
    (["scan.tif", "scan_dem.tif"], "scan.tif", ("scan", "scan_dem")),
    (["r/a.tif", "g/a.tif"], "r/a.tif", ("r", "g")),
    (["a.h5:/raw/c1", "a.h5:/raw/c2"], "a.h5", ("raw/c1", "raw/c2")),
])  # fmt: skip
def test_what_they_are_called_together(paths, called, names):
    assert together(paths) == (called, names)


def test_each_mask_says_what_was_measured_of_its_own(tmp_path):
    layers = np.full((2, 2, 5, 6), 255, "u1")
    layers[0, 1, 0], layers[1, 1, :, 0] = 0, 0
    paths = []
    for name, layer in zip("ab", layers, strict=True):
        paths.append(make_volume(tmp_path / f"{name}.zarr", layer, axes="cyx"))
        zarr.open_array(paths[-1], mode="a").attrs["band_names"] = ["gray", "alpha"]
    volume = open_volume("+".join(paths))
    assert volume.channels == 2
    box = Box.of_shape((5, 6))
    there = layers[:, 1] > 0
    assert np.array_equal(volume.gaps.read(box), there)
    assert np.array_equal(volume.validity.read(box)[0], there.any(axis=0))
    assert volume.picked(Pick(channels=(1,))).gaps is None
    assert np.array_equal(volume.picked(Pick(channels=(1,))).validity.read(box)[0] > 0, there[1])
    whole = volume.taken_whole()
    assert (whole.validity, whole.gaps) == (None, None)


WORDED = ["EPSG:32633", "+proj=utm +zone=33 +datum=WGS84 +units=m +no_defs", "urn:ogc:def:crs:EPSG::32633"]


def test_a_reference_system_in_other_words_is_the_same():
    pyproj = pytest.importorskip("pyproj")
    pytest.importorskip("rasterio")
    crs = pyproj.CRS("EPSG:32633")
    words = [crs.to_wkt(kind) for kind in ("WKT2_2019", "WKT1_GDAL", "WKT1_ESRI")]
    words += [words[1].replace("WGS 84 / UTM zone 33N", "a map").replace(',AUTHORITY["EPSG","32633"]', ""), *WORDED]
    words += [crs.to_json(), pyproj.CRS("EPSG:32633+5773").to_wkt()]  # and heights
    assert all(same_system(one, words[0]) and same_system(words[0], one) for one in words)
    others = ["EPSG:32632", "EPSG:25833", "EPSG:4326", pyproj.CRS("EPSG:32733").to_wkt()]
    assert not any(same_system(one, words[0]) for one in others)
    assert same_system("OGC:CRS84", "EPSG:4326")
    assert same_system("LPS", "RAS") is False


def geotiff(path, transform, crs="EPSG:32633", **tags):
    rasterio = pytest.importorskip("rasterio")
    about = {"driver": "GTiff", "width": 24, "height": 20, "count": 1, "dtype": "uint8", "crs": crs}
    with rasterio.open(path, "w", **about, transform=rasterio.Affine(*transform)) as file:
        file.write(VOXELS[:1, 0])
        file.update_tags(**tags)
    return str(path)


NORTH_UP = (10, 0, 399960, 0, -10, 5300040)


def test_maps_that_round_or_word_otherwise_are_one_grid(tmp_path):
    first = geotiff(tmp_path / "a.tif", NORTH_UP)
    beside = geotiff(tmp_path / "b.tif", (10, 0, 399960 + 1e-8, 0, -10 - 1e-10, 5300040 - 1e-8), WORDED[1])
    point = geotiff(tmp_path / "p.tif", NORTH_UP, AREA_OR_POINT="Point")
    bare = geotiff(tmp_path / "c.tif", NORTH_UP, None)
    volume = open_volume("+".join([bare, first, beside, point]))
    assert volume.channels == 4
    assert "32633" in volume.frame.crs
    assert any("c.tif does not say in which coordinate system it lies" in note for note in volume.notes)
    half = geotiff(tmp_path / "h.tif", (10, 0, 399965, 0, -10, 5300035))
    for other, said in (
        (half, "does not lie where"),
        (geotiff(tmp_path / "z.tif", NORTH_UP, "EPSG:32632"), "in another"),
    ):
        with pytest.raises(InputError, match=said):
            open_volume(f"{first}+{other}")


def test_sizes_without_a_place_lie_where_the_others_do(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    affine = [[-0.5, 0, 0, 9], [0, 0.5, 0, -7], [0, 0, 2, 30], [0, 0, 0, 1]]
    image = nibabel.Nifti1Image(VOXELS[0].T, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii")
    sizes = make_volume(tmp_path / "b.zarr", VOXELS[1], ome="0.5", axes="zyx", scale=(2, 0.5, 0.5), unit="millimeter")
    volume = open_volume(f"{sizes}+{tmp_path}/a.nii")
    assert volume.frame.origin == (9, -7, 30)
    assert any("b.zarr does not say where it lies" in note for note in volume.notes)


def test_a_run_opens_each_file_with_its_own_axes(tmp_path):
    """Channels last in one, first in another: told of one order for all, workers took its rows for channels."""
    voxels = RNG.integers(0, 200, (4, 3, 3, 3)).astype("u1")
    last = make_volume(tmp_path / "l.zarr", np.moveaxis(voxels[:3], 0, -1), axes="zyxc")
    path = f"{last}+{make_volume(tmp_path / 'f.zarr', voxels[3:], axes='czyx')}"
    assert np.array_equal(open_volume(path, open_volume(path).opened_by_axes).read(Box.of_shape((3, 3, 3))), voxels)
    model = fake_model(tmp_path, channels_in=4, channels_out=4)
    assert np.allclose(identity(path, tmp_path, model=model), voxels, atol=1e-3)
    np.save(tmp_path / "flat.npy", voxels[0])
    both = open_volume(f"{path}+{tmp_path}/flat.npy", "zyx")
    assert np.array_equal(both.read(Box.of_shape((3, 3, 3))), [*voxels, voxels[0]])


def test_labels_go_into_one_image(tmp_path):
    """And channels in files of their own are several."""
    for name in "ab":
        make_volume(str(tmp_path / f"{name}.zarr"), VOXELS[0, 0], axes="yx", ome="0.5")
    model = fake_model(tmp_path, axes="yx", channels_in=2)
    joined = f"{tmp_path}/a.zarr+{tmp_path}/b.zarr"
    with pytest.raises(SettingsError, match="images of their own, and labels go into one"):
        prepare(survey(Settings.of(input=joined, model=model, into="nuclei")))


@pytest.mark.parametrize("ending", ["nii", "nrrd"])
def test_a_time_point_of_joined_files_lies_where_these_do(tmp_path, ending):
    """As nibabel and pynrrd read what was written."""
    nibabel, nrrd = pytest.importorskip("nibabel"), pytest.importorskip("nrrd")
    affine = np.array([[-0.5, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    scans = RNG.integers(0, 200, (2, 24, 20, 9, 3), np.uint8)  # x, y, z, t of each channel
    for name, scan in zip("ab", scans, strict=True):
        image = nibabel.Nifti1Image(scan, affine)
        image.header.set_xyzt_units("mm", "sec")
        nibabel.save(image, tmp_path / f"{name}.nii")
    model, out = fake_model(tmp_path, channels_in=2, channels_out=2), tmp_path / f"o.{ending}"
    given = f"{tmp_path}/a.nii+{tmp_path}/b.nii"
    said = cli("run", "--in", given, "--model", model, "--normalize", "none", "--timepoint", 2, "--out", out)
    assert said.code == 0, said.err
    if ending == "nii":
        found, where = np.asarray(nibabel.load(out).dataobj), nibabel.load(out).affine
    else:
        found, header = nrrd.read(str(out))
        where = np.vstack([np.column_stack([header["space directions"].T, header["space origin"]]), affine[3]])
        assert header["space"] == "right-anterior-superior"
    np.testing.assert_array_equal(found, scans[1, ..., 2] > scans[0, ..., 2])
    np.testing.assert_allclose(where, affine)


def test_one_file_twice(tmp_path):
    path = files(tmp_path)[0]
    with pytest.raises(InputError, match="names one volume twice"):
        open_volume(f"{path}+{tmp_path}/./t_a.zarr")
    (tmp_path / "link.zarr").symlink_to(path)
    assert any("link.zarr is" in note for note in open_volume(f"{path}+{tmp_path}/link.zarr").notes)
