"""Every format that is written is read again as it was: voxels, type, and where each voxel lies; and other people's
libraries read the same."""

import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import zarr

from support.command_line import cli
from support.spoiled import check_refused
from support.volumes import identity, make_volume
from unet_engine.endings import WRITTEN
from unet_engine.errors import InputError, OutputError
from unet_engine.plan.box import Box
from unet_engine.postprocess.content import content_of
from unet_engine.postprocess.convert import convert
from unet_engine.postprocess.deliver import deliver
from unet_engine.postprocess.formats import WRITERS, account_of
from unet_engine.volumes.base import Timing
from unet_engine.volumes.collection import time_of
from unet_engine.volumes.formats import open_stored, open_volume
from unet_engine.volumes.pick import Pick

nibabel = pytest.importorskip("nibabel")
nrrd = pytest.importorskip("nrrd")
SimpleITK = pytest.importorskip("SimpleITK")
RNG = np.random.default_rng(5)
ZYX = RNG.integers(-1000, 3000, (7, 20, 33)).astype(np.int16)
TURNED = np.array([[0, -1.5, 0.125, 5.5], [0.75, 0, 0, -7], [0, 0.125, 2, 30], [0, 0, 0, 1.0]])
ALONG = np.diag([-0.75, -0.5, 2.0, 1]) + np.array([[0, 0, 0, 10.5], [0, 0, 0, -20], [0, 0, 0, 3], [0] * 4])
PLACED = [".nii", ".nii.gz", ".nrrd", ".mha", ".npy", ".zarr", ".ozx", ".h5", ".ome.tif"]
"""Formats that hold where the voxels of a scan lie, and are read."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def scan(name="scan.nii", affine=TURNED, array=ZYX):
    image = nibabel.Nifti1Image(array.T, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, name)
    return name


def names():
    return sorted(p.name for p in Path().iterdir())


def whole(volume):
    return volume.read(Box.of_shape(volume.shape))


def in_ras(volume):
    return np.array(volume.frame.seen_in("RAS").affine) if volume.frame else None


def test_names_say_which_formats_are_written():
    assert {ending.removeprefix(".") for writer in WRITERS for ending in writer.endings} == set(WRITTEN)


@pytest.mark.parametrize("affine", [ALONG, TURNED], ids=["along", "turned"])
@pytest.mark.parametrize(("first", "second"), product(PLACED, PLACED))
def test_where_voxels_lie_survives_any_two_formats(first, second, affine):
    before = open_volume(scan(affine=affine))
    convert("scan.nii", f"a{first}")
    convert(f"a{first}", f"b{second}")
    after = open_volume(f"b{second}")
    assert (after.axes, after.dtype, after.unit) == ("zyx", np.int16, "millimeter")
    assert np.array_equal(whole(after), whole(before))
    assert np.array_equal(in_ras(after), affine[:3])  # every number of it has few digits: nothing is rounded


@pytest.mark.parametrize("name", ["o.nii", "o.nii.gz"])
@pytest.mark.parametrize("affine", [ALONG, TURNED], ids=["along", "turned"])
def test_nibabel_and_itk_find_voxels_where_they_were(name, affine):
    convert(scan(affine=affine), name)
    theirs = nibabel.load(name)
    assert np.array_equal(theirs.affine, affine)
    assert np.array_equal(np.asarray(theirs.dataobj), ZYX.T)
    assert theirs.get_data_dtype() == np.int16
    assert theirs.header.get_xyzt_units()[0] == "mm"
    # a quaternion says the same or nothing: the turned one is sheared
    assert int(theirs.header["qform_code"]) == (affine is ALONG)
    if affine is ALONG:
        assert np.allclose(theirs.get_qform(), affine)
        itk, before = SimpleITK.ReadImage(name), SimpleITK.ReadImage("scan.nii")
        assert itk.GetOrigin() == pytest.approx(before.GetOrigin())
        assert itk.GetDirection() == pytest.approx(before.GetDirection())


@pytest.mark.parametrize("name", ["o.nii.gz", "o.nrrd", "o.mha"])
def test_itk_finds_channels(name):
    array = RNG.integers(0, 200, (3, 4, 9, 5)).astype(np.uint8)
    make_volume("v.zarr", array, axes="czyx", ome="0.5", unit="millimeter")
    convert("v.zarr", name)
    image = SimpleITK.ReadImage(name)
    assert (image.GetSize(), image.GetNumberOfComponentsPerPixel()) == ((5, 9, 4), 3)
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), np.moveaxis(array, 0, -1))


@pytest.mark.parametrize("name", ["o.nrrd", "o.mha"])
def test_itk_reads_what_is_written(name):
    turned = np.diag([0.75, 0.5, 2.0]) @ np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])  # what ITK allows: no shear
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turned, (1.25, -2, 3)
    convert(scan(affine=affine), name)
    image = SimpleITK.ReadImage(name)
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), ZYX)
    for x, y, z in ((0, 0, 0), (5, 3, 2)):
        lps = np.diag([-1, -1, 1, 1]) @ affine @ [x, y, z, 1]
        assert image.TransformIndexToPhysicalPoint((x, y, z)) == pytest.approx(tuple(lps[:3]))


def test_pynrrd_reads_what_is_written():
    convert(scan(affine=ALONG), "o.nrrd")
    data, header = nrrd.read("o.nrrd")
    assert np.array_equal(data, ZYX.T)
    assert header["space"] == "right-anterior-superior"
    assert np.array_equal(header["space directions"], ALONG[:3, :3].T)
    assert list(header["space units"]) == ["millimeter"] * 3


def test_numpy_reads_what_is_written():
    convert(scan(), "o.npy")
    assert np.array_equal(np.load("o.npy"), ZYX)
    assert np.array_equal(np.load("o.npy", mmap_mode="r")[3], ZYX[3])


def test_zarr_reads_what_is_written():
    convert(scan(affine=ALONG), "o.zarr")
    group = zarr.open_group("o.zarr", mode="r")
    assert np.array_equal(group["0"][...], ZYX)
    moves = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert moves == [
        {"type": "scale", "scale": [2.0, -0.5, -0.75]},
        {"type": "translation", "translation": [3, -20, 10.5]},
    ]


def test_h5py_reads_what_is_written():
    h5py = pytest.importorskip("h5py")
    convert(scan(affine=np.abs(ALONG)), "o.h5")
    with h5py.File("o.h5") as file:
        data = file["data"]
        assert np.array_equal(data[...], ZYX)
        assert [dimension.label for dimension in data.dims] == ["z", "y", "x"]
        assert list(data.attrs["resolution"]) == [2.0, 0.5, 0.75]
        assert list(data.attrs["offset"]) == [3, 20, 10.5]
        assert (data.attrs["units"], data.compression, bool(data.chunks)) == ("millimeter", "gzip", True)


def test_tifffile_reads_what_is_written():
    tifffile = pytest.importorskip("tifffile")
    array = RNG.integers(0, 200, (2, 3, 4, 300, 270)).astype(np.uint16)
    make_volume("v.zarr", array, axes="tczyx", ome="0.5", scale=[1, 1, 2, 0.5, 0.25], unit="micrometer")
    convert("v.zarr", "o.tif")
    with tifffile.TiffFile("o.tif") as file:
        assert file.is_ome
        assert (file.series[0].axes, file.pages[0].is_tiled) == ("TCZYX", True)
        assert np.array_equal(file.asarray(), array)
        sizes = [f'PhysicalSize{a}="{v}" PhysicalSize{a}Unit="µm"' for a, v in (("X", 0.25), ("Y", 0.5), ("Z", 2.0))]
        assert all(size in file.ome_metadata for size in sizes)


def test_names_of_channels_come_along():
    make_volume("v.zarr", RNG.integers(0, 200, (2, 5, 6)).astype(np.uint8), axes="cyx", ome="0.5")
    group = zarr.open_group("v.zarr")
    ome = {**group.attrs["ome"], "omero": {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}}
    group.attrs["ome"] = ome
    for name in ("o.zarr", "o.h5", "o.npy", "o.tif"):
        convert("v.zarr", name)
        assert open_volume(name).channel_names == ("DAPI", "GFP"), name


# --- maps ---


def raster(name="map.tif", transform=None, crs="EPSG:32632", bands=None, **options):
    rasterio = pytest.importorskip("rasterio")
    bands = RNG.integers(1, 255, (3, 90, 120), np.uint8) if bands is None else bands
    with rasterio.open(
        name, "w", driver="GTiff", count=len(bands), height=bands.shape[1], width=bands.shape[2], dtype=bands.dtype,
        crs=crs, transform=transform or rasterio.Affine(5, 0, 400000, 0, -5, 5200000), **options,
    ) as data:  # fmt: skip
        data.write(bands)
    return bands


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("between", ["o.zarr", "o.npy", "o.h5", "o.ome.tif", "o.tif"])
def test_a_map_keeps_crs_place_bands_and_nodata(between, turned):
    rasterio = pytest.importorskip("rasterio")
    transform = rasterio.Affine(3, 4, 1000, 4, -3, 2000) if turned else None
    bands = raster(transform=transform, nodata=7)
    convert("map.tif", between)
    convert(between, "back.tif")
    with rasterio.open("map.tif") as before, rasterio.open("back.tif") as after:
        assert np.array_equal(after.read(), bands)
        assert (after.crs, after.transform) == (before.crs, before.transform)
        assert after.colorinterp[0].name == "gray"
        assert after.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        if between in ("o.zarr", "o.h5", "o.tif"):
            assert after.nodata == 7


def test_a_map_in_a_format_without_maps_is_told():
    raster(bands=np.ones((1, 9, 12), np.uint8))
    for name, what in (("o.nii", "no place for a map's CRS"), ("o.nrrd", "no place for a map's CRS")):
        said = []
        convert("map.tif", name, tell=said.append)
        assert what in said[-1]


def test_a_large_map_has_overviews_and_colours_for_classes():
    rasterio = pytest.importorskip("rasterio")
    from dataclasses import replace

    from unet_engine.postprocess.deliver import deliver

    labels = RNG.integers(0, 4, (1, 1100, 1300)).astype(np.uint8)
    raster(bands=labels)
    found = replace(
        content_of(open_stored("map.tif")), labels=True, classes=("a", "road", "c", "d"), missing=((255.0,),)
    )
    deliver(found, "o.tif", overwrite=False)
    with rasterio.open("o.tif") as data:
        assert np.array_equal(data.read(), labels)
        assert (data.overviews(1), data.nodata, data.colorinterp[0].name) == ([2, 4], 255, "palette")
        assert set(np.unique(data.read(1, out_shape=(275, 325)))) <= {0, 1, 2, 3}
        colours = data.colormap(1)
        assert len({colours[i] for i in range(4)}) == 4
        assert data.tags(1)["class_1"] == "road"


def test_a_stack_is_no_map():
    from dataclasses import replace

    from unet_engine.postprocess.deliver import deliver

    raster()
    found = content_of(open_stored("map.tif"))
    with pytest.raises(OutputError, match="holds no several time points"):
        deliver(replace(found, axes="tyx"), "o.tif", overwrite=False)


def test_a_zip_holds_the_same_group_with_its_metadata_first():
    import zipfile

    convert(scan(), "o.ozx")
    with zipfile.ZipFile("o.ozx") as archive:
        names = archive.namelist()
        assert names[:2] == ["zarr.json", "0/zarr.json"]
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        assert json.loads(archive.comment)["ome"]["zipFile"] == {"centralDirectory": {"jsonFirst": True}}
    with zarr.storage.ZipStore("o.ozx", mode="r") as store:
        assert np.array_equal(zarr.open_group(store, mode="r")["0"][...], ZYX)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".npy", ".zarr", ".h5", ".tif"])
@pytest.mark.parametrize("axes", ["tczyx", "tzyx", "czyx", "tyx", "cyx"])
def test_time_points_and_channels(ending, axes):
    sizes = {"t": 2, "c": 3, "z": 4, "y": 9, "x": 5}
    array = RNG.integers(0, 200, [sizes[a] for a in axes]).astype(np.uint8)
    make_volume(
        "v.zarr", array, axes=axes, ome="0.5", scale=[0.5] * len(axes), unit="micrometer", chunks=(3,) * len(axes)
    )
    convert("v.zarr", f"o{ending}")
    said = axes if ending in (".npy", ".zarr") else None
    back = open_stored(f"o{ending}", said)
    assert (back.timepoints, back.channels) == (sizes["t"] if "t" in axes else 1, sizes["c"] if "c" in axes else 1)
    for time in range(back.timepoints):
        expected = array[time] if "t" in axes else array
        expected = expected if "c" in axes else expected[None]
        found = whole(back.picked(Pick(time)))
        assert np.array_equal(found.reshape(expected.shape), expected)  # NIfTI knows no stack without z


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".h5", ".ome.tif", ".npy", ".ozx"])
def test_when_time_points_were_taken_comes_along(ending):
    root = zarr.create_group("film.zarr", attributes={"ome": _film("minute", 1.5, 4.0)})
    root.create_array("0", data=RNG.integers(0, 9, (3, 4, 5, 6)).astype(np.uint8), dimension_names=list("tzyx"))
    convert("film.zarr", f"between{ending}")
    convert(f"between{ending}", "after.zarr")
    assert Timing(*time_of("after.zarr")).in_seconds() == Timing(90.0, 240.0, "second")
    if ending == ".nii.gz":
        header = nibabel.load("between.nii.gz").header
        found = header.get_zooms()[3], float(header["toffset"]), header.get_xyzt_units()
        assert found == (90, 240, ("micron", "sec"))
    if ending == ".mha":
        assert SimpleITK.ReadImage("between.mha").GetSpacing()[3] == 1.5
    if ending == ".ome.tif":
        tifffile = pytest.importorskip("tifffile")
        assert 'TimeIncrement="90.0"' in tifffile.TiffFile("between.ome.tif").ome_metadata


def _film(unit, step, start):
    space = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    moves = [
        {"type": "scale", "scale": [step, 2.0, 0.5, 0.5]}, {"type": "translation", "translation": [start, 0.0, 0.0, 0.0]}
    ]  # fmt: skip
    image = {
        "axes": [{"name": "t", "type": "time", "unit": unit}, *space],
        "datasets": [{"path": "0", "coordinateTransformations": moves}],
    }
    return {"version": "0.5", "multiscales": [image]}


def test_a_nifti_that_says_nothing_of_time():
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4, 3), np.uint8), np.eye(4)), "a.nii")
    convert("a.nii", "a.zarr")
    assert time_of("a.zarr") == (1.0, 0.0, None)
    convert("a.nii", "b.nii")
    assert nibabel.load("b.nii").header.get_xyzt_units()[1] == "unknown"


def test_some_of_it():
    array = RNG.integers(0, 200, (2, 3, 4, 9, 5)).astype(np.uint8)
    make_volume("v.zarr", array, axes="tczyx", ome="0.5")
    convert("v.zarr", "o.npy", pick=Pick(1, ("2", "0")))
    assert np.array_equal(np.load("o.npy"), array[1][[2, 0]])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", ">u2", "int32", "uint64", "float32", "float64", "float16"])
@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha", ".npy", ".zarr", ".h5", ".tif"])
def test_types_are_kept_or_refused(ending, dtype):
    array = (RNG.random((4, 5, 6)) * 2).astype(dtype)
    np.save("v.npy", array)
    if dtype == "uint64" and ending == ".tif":
        with pytest.raises(OutputError, match=r"an OME-TIFF cannot hold uint64 .*; write .zarr"):
            convert("v.npy", "o.tif")
        return
    if dtype == "float16" and ending not in (".npy", ".zarr", ".h5"):
        with pytest.raises(OutputError, match=r"cannot hold float16 .*--dtype float32"):
            convert("v.npy", f"o{ending}")
        assert not Path(f"o{ending}").exists()
        return
    convert("v.npy", f"o{ending}")
    back = open_volume(f"o{ending}")
    assert np.array_equal(whole(back)[0], array)
    held = np.uint8 if dtype == "bool" and ending not in (".npy", ".zarr", ".h5") else np.dtype(dtype).newbyteorder("=")
    assert back.dtype == held


@pytest.mark.parametrize("unit", ["nanometer", "micrometer", "meter", "centimeter", "furlong", None])
@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha", ".npy", ".zarr", ".h5", ".tif"])
def test_units_say_the_same_length(ending, unit):
    from unet_engine.units import micrometers

    make_volume("v.zarr", ZYX, axes="zyx", ome="0.5", scale=[4, 2, 2], translation=[8, 0, 16], unit=unit)
    said = []
    convert("v.zarr", f"o{ending}", tell=said.append)
    back = open_volume(f"o{ending}")
    if micrometers(1, unit) is None:
        assert back.spacing == (4, 2, 2)
        if unit and ending in (".nii", ".mha", ".tif"):
            assert any("no unit furlong" in line for line in said)
        return
    length = [micrometers(v, back.unit) for v in (*back.spacing, *back.translation)]
    assert length == pytest.approx([micrometers(v, unit) for v in (4, 2, 2, 8, 0, 16)])


def test_a_cropped_file_does_not_say_where_the_whole_lay():
    convert(scan(), "o.npy")
    data = np.load("o.npy")[2:]
    behind = Path("o.npy").read_bytes()[-2000:]
    np.save("cut.npy", data)
    text = behind[behind.index(b"\x93NUMPY") :] if b"\x93NUMPY" in behind else behind
    with Path("cut.npy").open("ab") as file:
        file.write(text)
    assert open_volume("cut.npy").frame is None


# --- what is there, and what cannot be ---


def test_what_is_there_is_kept_unless_asked(monkeypatch):
    scan()
    Path("o.nii.gz").write_bytes(b"mine")
    said = cli("convert", "scan.nii", "o.nii.gz")
    assert (said.code, "o.nii.gz exists; use --overwrite" in said.error) == (OutputError.exit_code, True)
    assert Path("o.nii.gz").read_bytes() == b"mine"
    assert cli("convert", "scan.nii", "o.nii.gz", "--overwrite").code == 0
    assert np.array_equal(np.asarray(nibabel.load("o.nii.gz").dataobj), ZYX.T)
    Path("folder.nii").mkdir()
    Path("theirs.zarr").mkdir()
    Path("theirs.zarr/file").write_text("x")
    for name in ("folder.nii", "theirs.zarr"):
        assert "is left alone" in cli("convert", "scan.nii", name, "--overwrite").error
    assert Path("theirs.zarr/file").read_text() == "x"
    convert("scan.nii", "o.zarr")
    convert("o.nii.gz", "o.zarr", overwrite=True)


def test_an_error_leaves_what_was_there_and_nothing_else(monkeypatch):
    scan()
    Path("o.nii.gz").write_bytes(b"mine")
    before = names()
    Path("scan.nii").write_bytes(Path("scan.nii").read_bytes()[:-10])
    with pytest.raises(InputError, match="breaks off"):
        convert("scan.nii", "o.nii.gz", overwrite=True)
    scan()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="the disk is full"):
        convert("scan.nii", "o.nii.gz", overwrite=True)
    assert names() == before
    assert Path("o.nii.gz").read_bytes() == b"mine"


def test_what_a_kill_left_is_taken_away():
    scan()
    Path(".o.nii.gz.partial").mkdir()
    Path(".o.nii.gz.partial/raw.nii").write_bytes(b"half")
    convert("scan.nii", "o.nii.gz")
    assert names() == ["o.nii.gz", "scan.nii"]


def test_refusals_are_one_line():
    scan()
    for out, what in [
        ("o.xyz", "nothing says which format is meant; let the name end in one of .zarr"),
        ("o", "nothing says which format is meant"),
        ("https://host/o.nii", "a web server can be read, not written to"),
        ("scan.nii/o.npy", "overlaps the input"),
    ]:
        said = cli("convert", "scan.nii", out)
        assert said.code == OutputError.exit_code, out
        assert what in said.error
        assert len(said.error.strip().splitlines()) == 1
    said = cli("convert", "scan.nii", "scan.nii", "--overwrite")
    assert "overlaps the input" in said.error
    assert np.array_equal(np.asarray(nibabel.load("scan.nii").dataobj), ZYX.T)


def test_a_library_that_is_missing_is_named(monkeypatch):
    import sys

    np.save("v.npy", ZYX)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(OutputError, match=r"needs nibabel.*pip install 'unet-engine\[nifti\]'"):
        convert("v.npy", "o.nii")


def test_what_is_read_at_once_is_whole_chunks_within_bounds():
    array = RNG.integers(0, 200, (40, 64, 64)).astype(np.uint8)
    make_volume("v.zarr", array, axes="zyx", ome="0.5", chunks=(8, 16, 16))
    found = content_of(open_stored("v.zarr"))
    cells = list(found.cells(2**14))
    assert max(np.prod([s.stop - s.start for s in cell]) for cell in cells) <= 2**14
    seen = np.zeros(array.shape, int)
    for cell in cells:
        seen[cell] += 1
        assert all(s.start % c == 0 for s, c in zip(cell, (8, 16, 16), strict=True))  # no chunk is read twice
    assert (seen == 1).all()
    convert("v.zarr", "o.nii")
    assert np.array_equal(np.asarray(nibabel.load("o.nii").dataobj), array.T)


# --- zipped Zarr is read, too ---


def test_a_zip_runs_as_the_group_does(tmp_path):
    array = RNG.integers(0, 200, (20, 22, 24)).astype(np.uint8)
    make_volume("v.zarr", array, axes="zyx", ome="0.5")
    convert("v.zarr", "v.ozx")
    assert np.array_equal(identity("v.ozx", tmp_path), array[None])


def test_a_damaged_zip_is_refused_in_one_line():
    make_volume("v.zarr", np.ones((4, 5, 6), np.uint8), axes="zyx", ome="0.5")
    convert("v.zarr", "v.ozx")
    check_refused(Path("v.ozx"), Path("v.ozx").read_bytes())


# --- real scans ---

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.mark.parametrize("name", ["o.nii.gz", "o.nrrd", "o.zarr"])
def test_a_real_scan_lies_where_it_lay(name):
    path = SHARED / "data/ct/abdomen_labels.nii.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    theirs = nibabel.load(path)
    convert(str(path), name)
    convert(name, "back.nii.gz")
    found = nibabel.load("back.nii.gz")
    assert np.array_equal(found.affine, theirs.affine)
    assert np.array_equal(np.asarray(found.dataobj), np.asarray(theirs.dataobj))


@pytest.mark.parametrize("letters", [200, 5000, 30000])
def test_itk_reads_a_metaimage_however_much_is_said_of_it(letters):
    convert(scan(), "a.npy")
    content = content_of(open_stored("a.npy"), header={"notes": ["word " * (letters // 5)], "output": "labels"})
    deliver(content, "o.mha", overwrite=False)
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage("o.mha")), ZYX)
    assert account_of("o.mha")["notes"] == content.said["notes"]


@pytest.mark.parametrize("name", ["o.nrrd", "o.mha"])
def test_itk_reads_what_has_one_time_point(name):
    array = RNG.integers(0, 200, (1, 1, 4, 9, 5)).astype(np.uint8)
    make_volume("v.zarr", array, axes="tczyx", ome="0.5", unit="millimeter")
    convert("v.zarr", name)
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(name)), array[0, 0])


@pytest.mark.parametrize("ending", [".npy", ".ome.tif", ".nii", ".nrrd", ".mha"])
def test_nodata_is_kept_or_told(ending):
    make_volume("v.zarr", ZYX)
    zarr.open_array("v.zarr").attrs["nodata"] = -999
    said = []
    convert("v.zarr", f"o{ending}", tell=said.append)
    kept = open_volume(f"o{ending}").nodata == (-999,)
    assert kept == (ending in (".npy", ".ome.tif"))
    assert kept != any("--nodata -999" in line for line in said)


@pytest.mark.parametrize("ending", [".npy", ".ome.tif", ".h5", ".zarr", ".nrrd"])
def test_alpha_stays_alpha_or_is_told(ending):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite("v.tif", RNG.integers(0, 200, (9, 8, 4)).astype(np.uint8), photometric="rgb", extrasamples=[2])
    said = []
    convert("v.tif", f"o{ending}", tell=said.append)
    back = open_volume(f"o{ending}")
    assert (back.channels, back.alpha) == ((4, None) if ending == ".nrrd" else (3, 3))
    assert any("alpha is left out" in line for line in said) == (ending == ".nrrd")


def test_a_single_plane_of_nifti_lies_where_it_lay():
    affine = np.array([[-0.5, 0.25, 0, 12], [0.25, 0.75, 0, -7], [0, 0, 2, 30], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(ZYX[0].T, affine), "a.nii")
    before = open_volume("a.nii")
    convert("a.nii", "b.nii.gz")
    after = open_volume("b.nii.gz")
    expected = affine[:2][:, [0, 1, 3]]
    assert np.array_equal(before.frame.affine, expected)
    assert np.array_equal(after.frame.affine, expected)
