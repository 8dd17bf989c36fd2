"""Volumes whose voxels lie in several files: OME-TIFF by its description or companion, NRRD and MetaImage by a list or
a pattern."""

import bz2
import gzip
import pickle
import re
import zlib

import numpy as np
import pytest

from support.command_line import cli
from support.volumes import fake_model, identity
from unet_engine.errors import DataError, InputError, UnetEngineError
from unet_engine.plan.box import Box
from unet_engine.volumes.formats import open_volume

nrrd = pytest.importorskip("nrrd")
tifffile = pytest.importorskip("tifffile")
SimpleITK = pytest.importorskip("SimpleITK")
RNG = np.random.default_rng(8)
TCZYX = RNG.integers(0, 60000, (2, 2, 3, 40, 50), np.uint16)
ZYX = RNG.integers(0, 60000, (6, 11, 13), np.uint16)
_XML = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{uuid}">'
    '<Image ID="Image:0" Name="cells"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="50" SizeY="40" '
    'SizeZ="3" SizeC="2" SizeT="2" PhysicalSizeX="0.5" PhysicalSizeY="0.5" PhysicalSizeZ="2">'
    '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><Channel ID="Channel:0:1" SamplesPerPixel="1"/>{data}</Pixels></Image>'
    "</OME>"
)
_BINARY = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{uuid}">'
    '<BinaryOnly MetadataFile="{file}" UUID="urn:uuid:{of}"/></OME>'
)
FILES = [(t, c) for t in range(2) for c in range(2)]


def _name(t, c):
    return f"cells_t{t}_c{c}.ome.tif"


def _data(gone=()):
    return "".join(
        f'<TiffData FirstT="{t}" FirstC="{c}" FirstZ="0" IFD="0" PlaneCount="3"><UUID FileName="{_name(t, c)}">'
        f"urn:uuid:{t}{c}</UUID></TiffData>"
        for t, c in FILES if (t, c) not in gone
    )  # fmt: skip


def ome(folder, options=({},), describe=lambda t, c: _XML.format(uuid=f"{t}{c}", data=_data())):
    """One file for each time point and channel, stored by `options` in turn."""
    folder.mkdir(exist_ok=True)
    for number, (t, c) in enumerate(FILES):
        tifffile.imwrite(
            folder / _name(t, c), TCZYX[t, c], description=describe(t, c), metadata=None, photometric="minisblack",
            **options[number % len(options)],
        )  # fmt: skip
    return folder


LAYOUTS = [
    ({},),
    ({"compression": "zlib"}, {"compression": "zstd", "rowsperstrip": 7}, {"tile": (16, 16)}, {"byteorder": ">"}),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", [(0, 0), (1, 1)])
def test_planes_of_an_ome_tiff_lie_in_several_files(tmp_path, layout, which):
    folder = ome(tmp_path / "a", layout)
    volume = open_volume(str(folder / _name(*which)), None, _time(1))
    assert (volume.axes, volume.stored_shape) == ("tczyx", TCZYX.shape)
    assert (volume.spacing, volume.unit, len(volume.files)) == ((2, 0.5, 0.5), "micrometer", 4)
    assert np.array_equal(volume.read(Box.of_shape(volume.shape)), TCZYX[1])
    box = Box((1, 7, 9), (3, 30, 41))
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(box), TCZYX[1][:, 1:3, 7:30, 9:41])
    assert [part.path.rpartition("/")[2] for part in volume.parts(box)] == [_name(1, 0), _name(1, 1)]
    whole = tifffile.imread(folder / _name(0, 0))
    assert np.array_equal(np.squeeze(whole), TCZYX)  # as its own library takes it


def _time(number):
    from unet_engine.volumes.pick import Pick

    return Pick(timepoint=number)


def test_a_folder_and_a_link_to_one_of_the_files_are_the_image(tmp_path):
    folder = ome(tmp_path / "a")
    assert open_volume(str(folder), None, _time(0)).stored_shape == TCZYX.shape
    (tmp_path / "link.ome.tif").symlink_to(folder / _name(0, 0))
    assert open_volume(str(tmp_path / "link.ome.tif"), None, _time(0)).stored_shape == TCZYX.shape
    tifffile.imwrite(folder / "cells_t2.tif", TCZYX[0, 0, 0])
    with pytest.raises(InputError, match=r"cells_t2\.tif is none of them"):
        open_volume(str(folder))


def test_a_run_over_several_files_gives_what_it_gives_on_one(tmp_path):
    folder = ome(tmp_path / "a", LAYOUTS[1])
    options = {"timepoint": 1, "input_channels": "1"}
    a = identity(str(folder / _name(0, 0)), tmp_path, out=str(tmp_path / "a.zarr"), **options)
    assert np.array_equal(a[0], TCZYX[1, 1])


def companion(folder):
    ome(folder, describe=lambda t, c: _BINARY.format(uuid=f"{t}{c}", file="all.companion.ome", of="all"))
    (folder / "all.companion.ome").write_text(_XML.format(uuid="all", data=_data()))
    return folder


@pytest.mark.parametrize("name", ["all.companion.ome", _name(1, 0)])
def test_planes_that_a_companion_describes(tmp_path, name):
    folder = companion(tmp_path / "a")
    volume = open_volume(str(folder / name), None, _time(1))
    assert volume.stored_shape == TCZYX.shape
    assert np.array_equal(volume.read(Box.of_shape(volume.shape)), TCZYX[1])


def test_planes_that_one_of_the_files_describes(tmp_path):
    def describe(t, c):
        if (t, c) == (0, 0):
            return _XML.format(uuid="00", data=_data())
        return _BINARY.format(uuid=f"{t}{c}", file=_name(0, 0), of="00")

    folder = ome(tmp_path / "a", describe=describe)
    volume = open_volume(str(folder / _name(1, 1)), None, _time(1))
    assert np.array_equal(volume.read(Box.of_shape(volume.shape)), TCZYX[1])


def test_a_part_whose_companion_is_gone_is_read_by_itself_and_told(tmp_path):
    folder = companion(tmp_path / "a")
    (folder / "all.companion.ome").unlink()
    volume = open_volume(str(folder / _name(1, 0)))
    assert "is a part of what all.companion.ome describes, which is missing" in volume.notes[0]
    assert np.array_equal(volume.read(Box.of_shape(volume.shape))[0], TCZYX[1, 0])


def _swap(folder):
    (folder / _name(1, 0)).write_bytes((folder / _name(1, 1)).read_bytes())


def _another(shape=(3, 40, 50)):
    def spoil(folder):
        tifffile.imwrite(
            folder / _name(1, 0), np.zeros(shape, np.uint16), photometric="minisblack", metadata=None,
            description=_XML.format(uuid="10", data=_data()),
        )  # fmt: skip

    return spoil


def _small(folder):
    _another(shape=(3, 20, 50))(folder)


def _rename(old, new):
    def spoil(folder):
        for t, c in FILES:
            path = folder / _name(t, c)
            path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))

    return spoil


SPOILED = [
    (lambda folder: (folder / _name(1, 0)).unlink(), r"planes of it lie in 'cells_t1_c0\.ome\.tif', missing"),
    (lambda folder: (folder / _name(1, 0)).write_bytes(b"no TIFF at all"), r"t1_c0\.ome\.tif is no readable TIFF"),
    (_swap, r"t1_c0\.ome\.tif is another file than the one of this name"),
    (_small, r"pages of cells_t1_c0\.ome\.tif are 20×50 uint16"),
    (_rename(f'FileName="{_name(1, 0)}"', 'FileName="/../../../etc/ps"  '), "no file in its folder"),
    (_rename("urn:uuid:10<", "urn:uuid:11<"), "one UUID for"),
    (_rename("urn:uuid:10<", "            <"), "by name or by UUID alone"),
]


@pytest.mark.parametrize(("spoil", "says"), SPOILED)
def test_files_that_are_missing_or_others_are_one_line(tmp_path, spoil, says):
    folder = ome(tmp_path / "a")
    spoil(folder)
    with pytest.raises(InputError, match=says):
        open_volume(str(folder / _name(0, 0)), None, _time(0))
    said = cli("run", "--in", str(folder / _name(0, 0)), "--model", fake_model(tmp_path), "--timepoint", 0)
    assert said.code in (3, 4)
    assert re.search(says, said.error)
    assert len(said.error.strip().splitlines()) == 1


def test_a_plane_in_no_file_is_told_and_refused(tmp_path):
    describe = lambda t, c: _XML.format(uuid=f"{t}{c}", data=_data(gone=[(1, 1)]))  # noqa: E731
    folder = ome(tmp_path / "a", describe=describe)
    volume = open_volume(str(folder / _name(0, 0)), None, _time(1))
    assert "describes 12 planes, and 3 are in no file, the first is 9" in volume.notes[0]
    assert np.array_equal(
        open_volume(str(folder / _name(0, 0)), None, _time(0)).read(Box.of_shape((3, 40, 50))), TCZYX[0]
    )
    with pytest.raises(DataError, match="plane 9 is described"):
        volume.read(Box.of_shape(volume.shape))


def test_a_file_that_changes_in_mid_run_ends_it(tmp_path):
    folder = ome(tmp_path / "a", LAYOUTS[1])
    volume = open_volume(str(folder / _name(0, 0)), None, _time(1))
    _another()(folder)
    box = Box.of_shape(volume.shape)
    assert volume.changed(box, 0.0).endswith(_name(1, 0))
    with pytest.raises(InputError, match="was changed while it was read"):
        volume.read(box)


# --- NRRD and MetaImage ---

PACK = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}


def slabs(folder, count, encoding="raw", before=b"", pack=None):
    """The voxels in `count` files of as many slices each, and their names."""
    folder.mkdir(exist_ok=True)
    names = [f"s{n:02d}.raw" for n in range(count)]
    for name, part in zip(names, np.split(ZYX, count), strict=True):
        (folder / name).write_bytes((pack or PACK[encoding])(before + part.tobytes()))
    return names


def nhdr(folder, said, encoding="raw", more=""):
    text = (
        f"NRRD0005\ntype: uint16\ndimension: 3\nsizes: 13 11 6\nencoding: {encoding}\nendian: little\n"
        f"space: left-posterior-superior\nspace directions: (0.5,0,0) (0,0.75,0) (0,0,2)\nspace origin: (1,2,3)\n{more}"
    )
    (folder / "a.nhdr").write_text(f"{text}data file: {said}\n")
    return str(folder / "a.nhdr")


SAID = [
    (6, "LIST\n{names}"), (6, "LIST 2\n{names}"), (3, "LIST 3\n{names}"), (1, "LIST 3\n{names}"),
    (6, "s%02d.raw 0 5 1"), (3, "s%02d.raw 0 2 1 3"), (1, "s00.raw"),
]  # fmt: skip


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize(("count", "said"), SAID)
def test_a_detached_nrrd(tmp_path, count, said, encoding):
    names = slabs(tmp_path, count, encoding, b"1234")
    path = nhdr(tmp_path, said.format(names="\n".join(names)), encoding, "byte skip: 4\n")
    volume = open_volume(path)
    assert (volume.axes, volume.shape, volume.frame.origin) == ("zyx", (6, 11, 13), (1, 2, 3))
    assert np.array_equal(volume.read(Box.of_shape(volume.shape))[0], ZYX)
    box = Box((1, 2, 3), (5, 9, 12))
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(box)[0], ZYX[box.slices()])
    assert volume.changed(box, 0.0)
    volume.release()


def test_a_pattern_counts_down_and_names_have_spaces(tmp_path):
    slabs(tmp_path, 6)
    path = nhdr(tmp_path, "s%02d.raw 5 0 -1")
    assert np.array_equal(open_volume(path).read(Box.of_shape((6, 11, 13)))[0], ZYX[::-1])
    (tmp_path / "my own scan.raw").write_bytes(ZYX.tobytes())
    path = nhdr(tmp_path, "my own scan.raw")
    assert np.array_equal(open_volume(path).read(Box.of_shape((6, 11, 13)))[0], ZYX)


def test_files_of_rows_and_of_channels(tmp_path):
    """A file for each row of each slice; and one for each channel, the slowest axis."""
    for z in range(6):
        for y in range(11):
            (tmp_path / f"r{z * 11 + y}.raw").write_bytes(ZYX[z, y].tobytes())
    volume = open_volume(nhdr(tmp_path, "r%d.raw 0 65 1 1"))
    box = Box((1, 2, 3), (5, 9, 12))
    assert np.array_equal(volume.read(box)[0], ZYX[box.slices()])
    for c in range(2):
        (tmp_path / f"c{c}.raw").write_bytes((ZYX + c).tobytes())
    text = "NRRD0005\ntype: uint16\ndimension: 4\nsizes: 13 11 6 2\nencoding: raw\nendian: little\n"
    (tmp_path / "b.nhdr").write_text(f"{text}kinds: domain domain domain vector\ndata file: c%d.raw 0 1 1\n")
    volume = open_volume(str(tmp_path / "b.nhdr"))
    assert volume.axes == "czyx"
    assert np.array_equal(volume.read(box), np.stack([ZYX, ZYX + 1])[(slice(None), *box.slices())])


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("LIST 3\ns00.raw\n../s01.raw", "no file in its folder"),
        ("LIST 3\ns00.raw\n/etc/passwd", "no file in its folder"),
        ("LIST\ns00.raw\ns01.raw", "2 files do not make up 6 steps"),
        ("LIST\n", "0 files do not make up"),
        ("LIST 9\ns00.raw", "cannot have 9 of 3 axes"),
        ("LIST 3\ns00.raw\ns00.raw", "several times"),
        ("s%02d.raw 0 6 1 3", "7 files do not make up"),
        ("s%02d.raw 4 9 1", r"s06\.raw does not exist"),
        ("s%02d.raw 0 999999999999 1", "none or too many"),
        ("s%02d.raw 0 5 0", "none or too many"),
        ("../../etc/%02d 0 5 1", "no file in its folder"),
        ("s%s.raw 0 5 1", r"s%s\.raw 0 5 1 does not exist"),
        ("s%999999999d.raw 0 5 1", "does not exist"),
        ("x" * 5000, "5,000 characters"),
    ],
)
def test_files_outside_missing_or_too_many_are_one_line(tmp_path, said, says):
    slabs(tmp_path, 6)
    with pytest.raises(UnetEngineError, match=says) as raised:
        open_volume(nhdr(tmp_path, said))
    assert "\n" not in str(raised.value)


def test_files_that_break_off(tmp_path):
    names = slabs(tmp_path, 6)
    (tmp_path / names[3]).write_bytes(b"short")
    with pytest.raises(DataError, match=r"s03\.raw breaks off: it has 5 of 286"):
        open_volume(nhdr(tmp_path, "s%02d.raw 0 5 1"))
    names = slabs(tmp_path, 6, "gzip")
    (tmp_path / names[3]).write_bytes(gzip.compress(b"short"))
    with pytest.raises(DataError, match=r"s03\.raw breaks off: it unpacks to 5 of 286"):
        open_volume(nhdr(tmp_path, "s%02d.raw 0 5 1", "gzip"))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("count", "said"), [(6, "LIST\n{names}"), (3, "LIST 3D\n{names}"), (6, "s%02d.raw 0 5 1")])
def test_a_metaimage_in_several_files(tmp_path, count, said, packed):
    names = slabs(tmp_path, count, pack=zlib.compress if packed else None)
    head = {
        "ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False,
        "CompressedData": packed, "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "1 2 3",
        "ElementSpacing": "0.5 0.75 2", "DimSize": "13 11 6", "ElementType": "MET_USHORT",
    }  # fmt: skip
    text = "".join(f"{key} = {value}\n" for key, value in head.items())
    (tmp_path / "a.mhd").write_text(f"{text}ElementDataFile = {said.format(names=chr(10).join(names))}\n")
    volume = open_volume(str(tmp_path / "a.mhd"))
    assert np.array_equal(volume.read(Box.of_shape((6, 11, 13)))[0], ZYX)
    if not packed and count == 6:
        theirs = SimpleITK.ReadImage(str(tmp_path / "a.mhd"))
        assert np.array_equal(SimpleITK.GetArrayFromImage(theirs), ZYX)
        assert theirs.GetOrigin() == pytest.approx(volume.frame.origin)
