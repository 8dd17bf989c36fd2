"""NIfTI, NRRD and MetaImage are read as nibabel, pynrrd and ITK read them whole: voxels, and where each of them
lies."""

import bz2
import gzip
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zarr

from support.command_line import COMMAND
from support.shares import share
from support.spoiled import check_refused
from support.volumes import fake_model, identity, make_volume
from unet_engine.errors import DataError, InputError
from unet_engine.plan.box import Box
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.frame import Frame

nibabel = pytest.importorskip("nibabel")
nrrd = pytest.importorskip("nrrd")
SimpleITK = pytest.importorskip("SimpleITK")
RNG = np.random.default_rng(4)
XYZ = RNG.integers(-1000, 3000, (20, 18, 12)).astype(np.int16)
TURNED = np.array([[0, -1.5, 0.1, 5], [0.8, 0, 0, -7], [0, 0.1, 2, 30], [0, 0, 0, 1.0]])
ALONG = np.diag([-0.75, -0.5, 2.0, 1])
SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unpacked"


def nifti(path, array=XYZ, affine=ALONG):
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return str(path)


def world(volume, zyx):
    frame = volume.frame
    return np.asarray(frame.origin) + np.asarray(frame.matrix) @ np.asarray(zyx, float)


def whole(volume):
    return volume.read(Box.of_shape(volume.shape))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.img", "a.mgz"])
@pytest.mark.parametrize("affine", [ALONG, TURNED])
def test_nifti(tmp_path, name, affine):
    kind = {"a.img": nibabel.Nifti1Pair, "a.mgz": nibabel.MGHImage}.get(name, nibabel.Nifti2Image)
    image = kind(XYZ, affine)
    if name != "a.mgz":
        image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / name)
    volume, theirs = open_volume(str(tmp_path / name)), nibabel.load(tmp_path / name)
    assert (volume.axes, volume.unit, volume.dtype) == ("zyx", "millimeter", np.int16)
    assert np.array_equal(whole(volume)[0], np.asarray(theirs.dataobj).T)
    assert np.array_equal(volume.read(Box((3, 4, 5), (9, 9, 9)))[0], XYZ.T[3:9, 4:9, 5:9])
    for zyx in ((0, 0, 0), (3, 5, 7)):
        assert world(volume, zyx) == pytest.approx((theirs.affine @ [*zyx[::-1], 1])[:3], abs=1e-5)
    assert volume.frame.space == "RAS"
    assert volume.frame.orientation == "".join(nibabel.aff2axcodes(theirs.affine))[::-1]
    assert tuple(map(abs, volume.spacing)) == pytest.approx(theirs.header.get_zooms()[::-1], rel=1e-5)
    assert (volume.spacing[2] < 0) == (affine is ALONG)
    if affine is TURNED:  # no axis of its own says where it lies
        assert volume.translation == (0, 0, 0)


@pytest.mark.parametrize(("slope", "dtype"), [((1, -1024), "i4"), ((0.25, 3), "f4"), ((2, 0), "i4")])
def test_slope_and_intercept_are_exact(tmp_path, slope, dtype):
    path = nifti(tmp_path / "a.nii")
    raw = bytearray(Path(path).read_bytes())
    raw[112:120] = np.asarray(slope, "<f4").tobytes()  # scl_slope and scl_inter
    Path(path).write_bytes(raw)
    volume, theirs = open_volume(path), nibabel.load(path).get_fdata()
    assert volume.dtype == dtype
    assert np.array_equal(whole(volume)[0], theirs.T.astype(dtype))
    assert np.array_equal(theirs.T.astype(dtype), theirs.T)


def test_other_kinds_of_nifti(tmp_path):
    nibabel.save(nibabel.Nifti1Image(XYZ[..., None], ALONG), tmp_path / "one.nii")
    volume = open_volume(str(tmp_path / "one.nii"))
    assert volume.axes == "zyx"
    assert "names no unit" in volume.notes[0]
    nibabel.save(nibabel.Nifti1Image(np.stack([XYZ, XYZ + 1], -1), ALONG), tmp_path / "two.nii")
    with pytest.raises(InputError, match="2 time points"):
        open_volume(str(tmp_path / "two.nii"))
    channels = open_volume(str(tmp_path / "two.nii"), "czyx")
    assert np.array_equal(whole(channels), np.stack([XYZ.T, XYZ.T + 1]))
    rgb = np.zeros(XYZ.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["G"] = XYZ % 200
    nibabel.save(nibabel.Nifti1Image(rgb, ALONG), tmp_path / "rgb.nii")
    volume = open_volume(str(tmp_path / "rgb.nii"))
    assert (volume.axes, volume.channels) == ("zyxc", 3)
    assert np.array_equal(whole(volume)[1], (XYZ % 200).T)
    rgba = np.zeros(XYZ.shape, [(name, "u1") for name in "RGBA"])
    rgba["A"] = XYZ % 2 * 255
    nibabel.save(nibabel.Nifti1Image(rgba, ALONG), tmp_path / "rgba.nii")
    volume = open_volume(str(tmp_path / "rgba.nii"))
    assert (volume.channels, volume.channel_names) == (3, ("R", "G", "B", "A"))
    assert np.array_equal(whole(volume.validity)[0] != 0, (XYZ % 2).T != 0), "as of any other alpha"
    nibabel.save(nibabel.Nifti1Image(XYZ.astype(">i2"), ALONG), tmp_path / "big.nii")
    assert np.array_equal(whole(open_volume(str(tmp_path / "big.nii")))[0], XYZ.T)


def test_a_plane(tmp_path):
    nibabel.save(nibabel.Nifti1Image(XYZ[:, :, 0], ALONG), tmp_path / "a.nii")
    volume = open_volume(str(tmp_path / "a.nii"))
    assert (volume.axes, volume.spacing) == ("yx", (-0.5, -0.75))
    assert np.array_equal(volume.frame.affine, ALONG[:2][:, [0, 1, 3]])


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
def test_nrrd(tmp_path, encoding, name):
    header = {
        "encoding": encoding, "space": "left-posterior-superior", "kinds": ["domain"] * 3,
        "space directions": TURNED[:3, :3].T, "space origin": TURNED[:3, 3],
    }  # fmt: skip
    nrrd.write(str(tmp_path / name), XYZ, header)
    volume = open_volume(str(tmp_path / name))
    assert (volume.axes, volume.unit, volume.frame.space) == ("zyx", "millimeter", "LPS")
    assert np.array_equal(whole(volume)[0], nrrd.read(str(tmp_path / name))[0].T)
    theirs = SimpleITK.ReadImage(str(tmp_path / name))
    assert world(volume, (3, 5, 7)) == pytest.approx(theirs.TransformIndexToPhysicalPoint((7, 5, 3)))


def test_nrrd_with_channels(tmp_path):
    array = np.stack([XYZ, XYZ + 1])
    directions = np.vstack([[np.nan] * 3, np.diag([1, 2, 3.0])])
    header = {"kinds": ["vector", *["domain"] * 3], "space": "RAS", "space directions": directions, "endian": "big"}
    nrrd.write(str(tmp_path / "a.nrrd"), array.astype(">i2"), header)
    volume = open_volume(str(tmp_path / "a.nrrd"))
    assert (volume.axes, volume.spacing) == ("zyxc", (3.0, 2.0, 1.0))
    assert np.array_equal(whole(volume), array.transpose(0, 3, 2, 1))
    nrrd.write(str(tmp_path / "b.nrrd"), XYZ, {"spacings": [1, 2, 3], "units": ["um", "um", "um"]})
    volume = open_volume(str(tmp_path / "b.nrrd"))
    assert (volume.spacing, volume.unit, volume.frame) == ((3.0, 2.0, 1.0), "micrometer", None)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("channels", [1, 2])
def test_metaimage(tmp_path, name, packed, channels):
    zyx = XYZ.T if channels == 1 else np.stack([XYZ.T, XYZ.T + 1], -1)
    image = SimpleITK.GetImageFromArray(zyx, isVector=channels > 1)
    image.SetSpacing((0.5, 0.75, 2))
    image.SetOrigin((-3, 4, 50))
    image.SetDirection((0, -1, 0, 0.6, 0, -0.8, 0.8, 0, 0.6))
    SimpleITK.WriteImage(image, str(tmp_path / name), packed)
    volume = open_volume(str(tmp_path / name))
    assert volume.axes == "zyx" + "c" * (channels > 1)
    assert np.array_equal(whole(volume), np.moveaxis(zyx.reshape(*XYZ.T.shape, channels), -1, 0))
    assert world(volume, (3, 5, 7)) == pytest.approx(image.TransformIndexToPhysicalPoint((7, 5, 3)))
    assert volume.frame.space == "LPS"
    assert volume.spacing == pytest.approx((2, 0.75, 0.5))


# --- unpacked copies ---


def test_a_packed_volume_is_unpacked_once_and_goes_when_the_run_is_complete(tmp_path, cache):
    path = nifti(tmp_path / "a.nii.gz")
    volume = open_volume(path)
    assert f"unpacked to {cache}" in volume.notes[0]
    (copy,) = cache.glob("*.raw")
    assert copy.stat().st_size == XYZ.nbytes
    written = copy.stat().st_ino
    again = pickle.loads(pickle.dumps(volume))
    assert np.array_equal(whole(again), whole(volume))
    assert copy.stat().st_ino == written
    volume.release()
    assert copy.exists()  # the other one still reads it
    again.release()
    assert not copy.exists()


def test_the_copy_of_a_run_goes_as_it_ends_well(tmp_path, cache):
    path, model = nifti(tmp_path / "a.nii.gz"), fake_model(tmp_path)
    command = [*COMMAND, "run", "--in", path, "--model", model]
    failed = subprocess.run([*command, "--out", "/proc/no.zarr"], check=False, capture_output=True)
    assert failed.returncode == 8
    (copy,) = cache.glob("*.raw")  # for the next try
    subprocess.run([*command, "--output", "logits"], check=True, capture_output=True)
    assert not copy.exists()
    assert (tmp_path / "a-id.nii.gz").is_file()


@pytest.mark.parametrize("workers", share([None, 2]))
def test_a_run_on_a_packed_volume_gives_the_bytes_of_zarr(tmp_path, cache, workers):
    path = nifti(tmp_path / "a.nii.gz", affine=TURNED)
    a = identity(path, tmp_path, out=str(tmp_path / "a.zarr"), workers=workers, roi="2:,3:,4:")
    b = identity(make_volume(tmp_path / "z.zarr", XYZ.T), tmp_path, out=str(tmp_path / "b.zarr"), roi="2:,3:,4:")
    assert a.tobytes() == b.tobytes()
    # what lies where is kept, also of a part of the volume
    facts = dict(zarr.open_group(tmp_path / "a.zarr", mode="r").attrs)["unet_engine"]["frame"]
    frame = Frame.from_facts(facts)
    affine = nibabel.load(path).affine
    assert frame.origin == pytest.approx((affine @ [4, 3, 2, 1])[:3], abs=1e-5)
    assert facts["orientation"] == "SLA"


def test_spacing_and_place_of_an_output_along_the_axes(tmp_path):
    affine = ALONG.copy()
    affine[:3, 3] = 10, 20, 30
    path = nifti(tmp_path / "a.nii", affine=affine)
    identity(path, tmp_path, roi="1:,0:,2:")
    out = open_volume(str(tmp_path / "out.zarr"))
    assert (out.spacing, out.translation, out.unit) == ((2, -0.5, -0.75), (32, 20, 8.5), "millimeter")


def test_a_copy_needs_room(tmp_path, monkeypatch):
    path = nifti(tmp_path / "a.nii.gz")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(InputError, match=r"has to be unpacked to 8\.44 KiB, and 100 B are free"):
        open_volume(path)


def test_damaged_packed_data(tmp_path, cache):
    path = Path(nifti(tmp_path / "a.nii.gz"))
    data = path.read_bytes()
    for spoiled in (data[: len(data) // 2], data[:-9] + b"\0" * 9, data[:3000] + b"\xff" * 50 + data[3050:]):
        path.write_bytes(spoiled)
        with pytest.raises(DataError, match=r"a\.nii\.gz (is damaged|breaks off)"):
            open_volume(str(path))
    path.write_bytes(gzip.compress(gzip.decompress(data)[:-100]))
    with pytest.raises(DataError, match=r"breaks off: it unpacks to 8,188 of 8,640 bytes|breaks off: it unpacks"):
        open_volume(str(path))
    assert not list(cache.glob("*.raw")) + list(cache.glob("*.partial"))


def nrrd_with(path, said, data, kind="int16"):
    path.write_bytes(f"NRRD0004\ntype: {kind}\ndimension: 3\nsizes: 7 6 5\nendian: little\n{said}\n\n".encode() + data)
    return open_volume(str(path))


NUMBERS = RNG.integers(-900, 900, (5, 6, 7)).astype("<i2")
BYTES, TEXT, HEX = NUMBERS.tobytes(), " ".join(map(str, NUMBERS.ravel())).encode(), NUMBERS.tobytes().hex().encode()


@pytest.mark.parametrize(
    ("said", "data"),
    [
        ("encoding: text", TEXT),
        ("encoding: ascii\nline skip: 1", b"1 2\n" + TEXT.replace(b" ", b",\n") + b"\n"),
        ("encoding: txt\nbyte skip: 2", b"9 " + TEXT),
        ("encoding: hex", HEX.upper()),
        ("encoding: hex", b"\n".join(HEX[i : i + 11] for i in range(0, len(HEX), 11)) + b"\n"),
        ("encoding: raw\nline skip: 1\nbyte skip: 3", b"foo\nxyz" + BYTES),
        ("encoding: raw\nline skip: 2\nbyte skip: -1", b"foo\n\n" + BYTES),
        ("encoding: gzip\nbyte skip: 5", gzip.compress(b"12345" + BYTES)),
        ("encoding: gzip\nline skip: 1\nbyte skip: -1", b"hi\n" + gzip.compress(b"12345" + BYTES)),
        ("encoding: gzip", gzip.compress(BYTES[:100]) + gzip.compress(BYTES[100:])),
        ("encoding: bzip2", bz2.compress(BYTES)),
    ],
)
def test_nrrd_in_every_coding(tmp_path, cache, said, data):
    """As ITK reads them, which has all but bzip2."""
    assert np.array_equal(whole(nrrd_with(tmp_path / "a.nrrd", said, data))[0], NUMBERS)
    if "bzip2" not in said:
        theirs = SimpleITK.ReadImage(str(tmp_path / "a.nrrd"))
        assert np.array_equal(SimpleITK.GetArrayFromImage(theirs), NUMBERS)


def test_one_text_as_numbers_of_two_types(tmp_path, cache):
    for kind in ("int32", "float"):
        volume = (
            nrrd_with(tmp_path / f"{kind}.nhdr", "encoding: text\ndata file: t.txt", b"", kind)
            if ((tmp_path / "t.txt").write_bytes(TEXT))
            else None
        )
        assert np.array_equal(whole(volume)[0], NUMBERS)


@pytest.mark.parametrize(
    ("said", "data", "kind", "what"),
    [
        ("encoding: text", TEXT[: len(TEXT) // 2], "int16", "breaks off"),
        ("encoding: text", TEXT, "uint8", "is damaged"),
        ("encoding: text", TEXT.replace(b" ", b" x", 1), "float", "is damaged"),
        ("encoding: text", b"7" * 5000, "int16", "is damaged"),
        ("encoding: text", b"1_0 " + TEXT, "int16", "is damaged"),
        ("encoding: hex", b"zz" + HEX, "int16", "is damaged"),
        ("encoding: text\nbyte skip: -1", TEXT, "int16", "skips"),
        ("encoding: raw\nline skip: 999", BYTES, "int16", "fewer lines"),
        ("encoding: gzip\nbyte skip: -1", gzip.compress(BYTES[:-2]), "int16", "breaks off"),
    ],
)
def test_nrrd_that_is_not_as_it_says(tmp_path, cache, said, data, kind, what):
    with pytest.raises(InputError, match=what):
        nrrd_with(tmp_path / "a.nrrd", said, data, kind)


def test_metaimage_as_text_and_with_a_function_of_intensity(tmp_path, cache):
    head = "NDims = 3\nBinaryData = {}\n{}DimSize = 7 6 5\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(head.format("False", "").encode() + TEXT + b"\n")
    assert np.array_equal(whole(open_volume(str(tmp_path / "a.mha")))[0], NUMBERS)
    scaled = "ElementToIntensityFunctionSlope = 2\nElementToIntensityFunctionOffset = -100\n"
    (tmp_path / "b.mha").write_bytes(head.format("True", scaled).encode() + BYTES)
    volume = open_volume(str(tmp_path / "b.mha"))
    assert np.array_equal(whole(volume)[0], NUMBERS)  # as ITK reads it
    assert any("2 · stored + -100" in note for note in volume.notes)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_spoiled_files_are_refused_in_one_line(tmp_path, name):
    path = tmp_path / name
    if ".nii" in name:
        nifti(path)
    elif name == "a.nrrd":
        nrrd.write(str(path), XYZ, {"space": "RAS", "space directions": np.eye(3), "space origin": np.zeros(3)})
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(XYZ.T), str(path), useCompression=True)
    check_refused(path, path.read_bytes(), 60)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared files here")
def test_a_real_scan():
    path = SHARED / "data/ct/abdomen.nii.gz"
    volume, theirs = open_volume(str(path)), nibabel.load(path)
    assert np.array_equal(whole(volume)[0], np.asarray(theirs.dataobj).T)
    assert world(volume, (9, 8, 7)) == pytest.approx((theirs.affine @ [7, 8, 9, 1])[:3])
    assert volume.frame.orientation == "SAR"


def test_what_nibabel_warns_of_is_a_note_and_no_line_of_its_own(tmp_path, capfd):
    nifti(tmp_path / "a.nii")
    with (tmp_path / "a.nii").open("r+b") as file:
        file.seek(80)
        file.write(bytes(4))  # the size of a voxel along x
    assert any("pixdim" in note for note in open_volume(str(tmp_path / "a.nii")).notes)
    assert capfd.readouterr().err == ""
