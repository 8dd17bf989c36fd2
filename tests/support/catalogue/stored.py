"""Volumes whose metadata, chunks or groups are not what they should be."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from support.catalogue.fault import Fault, Make, both, cut, fifo, file, folder, gone, link, metadata, plan, run, volume

V3 = "scan.zarr/zarr.json"
DEEP = "[" * 100_000 + "]" * 100_000


def _group(ome: object, attributes: object = ...) -> Make:
    """An OME-Zarr group `g.zarr` with these multiscales and an array ``0``."""
    content = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome} if attributes is ... else attributes}
    return both(folder("g.zarr"), file("g.zarr/zarr.json", json.dumps(content)), volume("g.zarr/0"))


def numpy_file(name: str, values: object) -> Make:
    return lambda here: np.save(here / name, np.asarray(values), allow_pickle=True)


def locked(name: str) -> Make:
    """A zip with one file, which says of it that a password opens it."""

    def make(here: Path) -> None:
        with zipfile.ZipFile(here / name, "w") as archive:
            archive.writestr("zarr.json", "secret")
        content = bytearray((here / name).read_bytes())
        content[6] |= 1
        content[content.index(b"PK\x01\x02") + 8] |= 1
        (here / name).write_bytes(content)

    return make


def _level(**changed: object) -> dict[str, object]:
    return {"multiscales": [{"axes": ["z", "y", "x"], "datasets": [{"path": "0", **changed}]}]}


def _moves(*moves: object) -> dict[str, object]:
    return _level(coordinateTransformations=list(moves))


_SCALE = {"type": "scale", "scale": [1, 1, 1]}

_METADATA: list[tuple[str, Make]] = [
    ("that is empty", file(V3)),
    ("that breaks off", cut(V3)),
    ("that is junk", file(V3, b"\x00\xff" * 99)),
    ("that is null", file(V3, "null")),
    ("that is a list", file(V3, "[]")),
    ("that is a number", file(V3, "3")),
    ("that is an empty object", file(V3, "{}")),
    ("nested 100000 deep", file(V3, DEEP)),
    ("that is a folder", both(gone(V3), folder(V3))),
    ("that is a FIFO", fifo(V3)),
    ("that is a link to itself", both(gone(V3), link(V3, "zarr.json"))),
    ("that is a link to /dev/zero", both(gone(V3), link(V3, "/dev/zero"))),
    ("of format 9", metadata(V3, zarr_format=9)),
    ("of a format in words", metadata(V3, zarr_format="three")),
    ("of no node", metadata(V3, node_type=...)),
    ("of an unknown node", metadata(V3, node_type="table")),
    ("without a shape", metadata(V3, shape=...)),
    ("of a shape of null", metadata(V3, shape=None)),
    ("of a shape of words", metadata(V3, shape=["a", "b", "c"])),
    ("of a negative shape", metadata(V3, shape=[-1, 22, 40])),
    ("of a shape of zero", metadata(V3, shape=[0, 22, 40])),
    ("of a shape of fractions", metadata(V3, shape=[20.5, 22, 40])),
    ("of a shape of 10**400", metadata(V3, shape=[10**400, 22, 40])),
    ("of a shape of 2**63", metadata(V3, shape=[2**63, 22, 40])),
    ("of a shape of 2**64", metadata(V3, shape=[2**64, 2**64, 2**64])),
    ("of a shape of one axis", metadata(V3, shape=[20])),
    ("of no axes", metadata(V3, shape=[], chunk_grid__configuration__chunk_shape=[])),
    ("of chunks of zero", metadata(V3, chunk_grid__configuration__chunk_shape=[0, 8, 8])),
    ("of negative chunks", metadata(V3, chunk_grid__configuration__chunk_shape=[-8, 8, 8])),
    ("of chunks of words", metadata(V3, chunk_grid__configuration__chunk_shape=["a", 8, 8])),
    ("of chunks of fewer axes", metadata(V3, chunk_grid__configuration__chunk_shape=[8, 8])),
    ("of chunks of 2**70", metadata(V3, chunk_grid__configuration__chunk_shape=[2**70, 8, 8])),
    ("of an unknown grid", metadata(V3, chunk_grid__name="irregular")),
    ("of no grid", metadata(V3, chunk_grid=...)),
    ("of an unknown type", metadata(V3, data_type="float1024")),
    ("of a type of null", metadata(V3, data_type=None)),
    ("of a type that is a list", metadata(V3, data_type=["uint8"])),
    ("of complex numbers", metadata(V3, data_type="complex64", fill_value=[0.0, 0.0])),
    ("of text", metadata(V3, data_type="string", fill_value="")),
    ("of an unknown codec", metadata(V3, codecs=[{"name": "nosuch"}])),
    ("of no codecs", metadata(V3, codecs=[])),
    ("of codecs of null", metadata(V3, codecs=None)),
    ("of a codec without a name", metadata(V3, codecs=[{}])),
    ("of codecs in the wrong order", metadata(V3, codecs=[{"name": "zstd", "configuration": {"level": 0, "checksum": False}}])),
    ("of a level of 10**9", metadata(V3, codecs=[{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 10**9}}])),
    ("of a transposition of itself", metadata(V3, codecs=[{"name": "transpose", "configuration": {"order": [0, 0, 0]}}, {"name": "bytes"}])),
    ("of a fill value of words", metadata(V3, fill_value="many")),
    ("of a fill value of 10**400", metadata(V3, fill_value=10**400)),
    ("of a fill value of null", metadata(V3, fill_value=None)),
    ("of a fill value that is a list", metadata(V3, fill_value=[1])),
    ("of unknown names of chunks", metadata(V3, chunk_key_encoding={"name": "nosuch"})),
    ("of a storage transformer", metadata(V3, storage_transformers=[{"name": "nosuch"}])),
    ("of a strange field that must be understood", metadata(V3, nosuch={"must_understand": True})),
    ("of too few names of axes", metadata(V3, dimension_names=["z"])),
    ("of names of axes that are numbers", metadata(V3, dimension_names=[1, 2, 3])),
    ("of names of axes twice", metadata(V3, dimension_names=["x", "x", "x"])),
    ("of axes of long names", metadata(V3, dimension_names=["sheet", "line", "place"])),
]  # fmt: skip

_V2 = ".zarray"
_OLD: list[tuple[str, Make]] = [
    ("that breaks off", cut("v.zarr/.zarray")),
    ("that is null", file("v.zarr/.zarray", "null")),
    ("that is a FIFO", fifo("v.zarr/.zarray")),
    ("of a shape of 10**400", metadata("v.zarr/.zarray", shape=[10**400, 8, 8])),
    ("of a shape of 2**63", metadata("v.zarr/.zarray", shape=[2**63, 8, 8])),
    ("of chunks of zero", metadata("v.zarr/.zarray", chunks=[0, 8, 8])),
    ("of an unknown type", metadata("v.zarr/.zarray", dtype="<q9")),
    ("of objects", metadata("v.zarr/.zarray", dtype="|O")),
    ("of records", metadata("v.zarr/.zarray", dtype=[["a", "<u1"]])),
    ("of an unknown compressor", metadata("v.zarr/.zarray", compressor={"id": "nosuch"})),
    ("of an unknown filter", metadata("v.zarr/.zarray", filters=[{"id": "nosuch"}])),
    ("of an order of Q", metadata("v.zarr/.zarray", order="Q")),
    ("of attributes that break off", file("v.zarr/.zattrs", "{")),
    ("of attributes that are a list", file("v.zarr/.zattrs", "[1]")),
]  # fmt: skip

_OME: list[tuple[str, Make]] = [
    ("of null", _group(None)),
    ("of a list", _group([1])),
    ("of a word", _group("image")),
    ("of no multiscales", _group({})),
    ("of multiscales of null", _group({"multiscales": None})),
    ("of multiscales of a word", _group({"multiscales": "all"})),
    ("of no image", _group({"multiscales": []})),
    ("of an image of null", _group({"multiscales": [None]})),
    ("of an image of nothing", _group({"multiscales": [{}]})),
    ("of datasets of null", _group({"multiscales": [{"datasets": None}]})),
    ("of no datasets", _group({"multiscales": [{"datasets": []}]})),
    ("of a dataset of null", _group({"multiscales": [{"datasets": [None]}]})),
    ("of a dataset of no path", _group({"multiscales": [{"datasets": [{}]}]})),
    ("of a path that is not there", _group(_level(path="9"))),
    ("of a path out of it", _group(_level(path="../../../../etc"))),
    ("of a path of a thousand letters", _group(_level(path="a" * 1000))),
    ("of a path with NUL in it", _group(_level(path="0\0"))),
    ("of an empty path", _group(_level(path=""))),
    ("of an axis alone", _group({"multiscales": [{"axes": ["z"], "datasets": [{"path": "0"}]}]})),
    ("of axes that are numbers", _group({"multiscales": [{"axes": [1, 2, 3], "datasets": [{"path": "0"}]}]})),
    ("of axes that are a word", _group({"multiscales": [{"axes": "zyxx", "datasets": [{"path": "0"}]}]})),
    ("of axes without names", _group({"multiscales": [{"axes": [{}, {}, {}], "datasets": [{"path": "0"}]}]})),
    ("of a scale of words", _group(_moves({"type": "scale", "scale": "big"}))),
    ("of a scale of two", _group(_moves({"type": "scale", "scale": [1, 2]}))),
    ("of a scale of zero", _group(_moves({"type": "scale", "scale": [0, 1, 1]}))),
    ("of a scale of null", _group(_moves({"type": "scale", "scale": None}))),
    ("of a scale of 10**400", _group(_moves({"type": "scale", "scale": [10**400, 1, 1]}))),
    ("of a translation of 10**400", _group(_moves(_SCALE, {"type": "translation", "translation": [10**400, 1, 1]}))),
    ("of an affine transformation", _group(_moves({"type": "affine", "affine": [[1, 0], [0, 1]]}))),
    ("of a transformation of no type", _group(_moves({"scale": [1, 1, 1]}))),
    ("of a transformation of null", _group(_moves(None))),
    ("of transformations of a number", _group(_level(coordinateTransformations=3))),
    ("of attributes of null", _group(None, attributes=None)),
    ("of attributes of a list", _group(None, attributes=[1])),
    ("whose array is empty metadata", both(_group(_level()), file("g.zarr/0/zarr.json"))),
    ("whose array is gone", both(_group(_level()), gone("g.zarr/0"))),
    ("whose array is a FIFO", both(_group(_level()), fifo("g.zarr/0/zarr.json"))),
]  # fmt: skip

CHUNK = "scan.zarr/c/1/0/2"

_CHUNKS: list[tuple[str, Make]] = [
    ("that breaks off", cut(CHUNK)),
    ("that is empty", file(CHUNK)),
    ("that is junk", file(CHUNK, b"junk" * 100)),
    ("that is zeros", file(CHUNK, bytes(5000))),
    ("that is a folder", both(gone(CHUNK), folder(CHUNK))),
    ("that is a link to itself", both(gone(CHUNK), link(CHUNK, "2"))),
    ("that is a link to /dev/zero", both(gone(CHUNK), link(CHUNK, "/dev/zero"))),
    ("that is a FIFO", fifo(CHUNK)),
    ("longer than it should be", lambda here: (here / CHUNK).write_bytes((here / CHUNK).read_bytes() * 3) and None),
]


def _nan(value: float, dtype: str = "f4") -> Make:
    def make(here: Path) -> None:
        array = np.zeros((20, 22, 24), dtype)
        array[13, 3, 19] = value
        volume("v.zarr", array)(here)

    return make


_VOXELS: list[tuple[str, tuple[str, ...], Make, tuple[str, ...]]] = [
    ("a voxel of NaN", run(**{"in": "v.zarr"}), _nan(np.nan), ("NaN or Inf", "z=13 y=3 x=19", "--replace-nonfinite")),
    ("a voxel of Inf", run(**{"in": "v.zarr"}), _nan(np.inf), ("NaN or Inf", "z=13 y=3 x=19", "--replace-nonfinite")),
    ("a voxel of -Inf", run(**{"in": "v.zarr"}), _nan(-np.inf, "f8"), ("NaN or Inf", "z=13 y=3 x=19", "--replace-nonfinite")),
    ("a voxel of NaN in halves", run(**{"in": "v.zarr"}), _nan(np.nan, "f2"), ("NaN or Inf", "z=13 y=3 x=19")),
    ("voxels of NaN alone", run(**{"in": "v.zarr"}, normalize="minmax"), volume("v.zarr", np.full((9, 9, 9), np.nan, "f4")), ("no finite voxel",)),
    ("voxels all alike", run(**{"in": "v.zarr"}, normalize="zscore"), volume("v.zarr", np.full((9, 9, 9), 5, "u1")), ("zscore", "range:LOW,HIGH")),
]  # fmt: skip


def _kind(shape: tuple[int, ...], *says: str, dtype: str = "u1", **options: object) -> Fault:
    name = "×".join(map(str, shape)) or "nothing"
    return Fault(
        f"a volume of {name} {dtype}",
        run(**{"in": "v.zarr"}, **options),
        3,
        says,
        volume("v.zarr", np.zeros(shape, dtype)),
    )


_KINDS = [
    _kind((4,), "1 axes"),
    _kind((1,) * 6, "6 axes"),
    _kind((2, 1, 4, 4, 4), "2 time points"),
    _kind((9, 9), "2D model"),
    _kind((2, 4, 4, 4), "2 channels"),
    _kind((4, 4, 4), "complex64", dtype="c8"),
]


def _huge(name: str, shape: list[int], chunks: list[int], command: tuple[str, ...], code: int, *says: str) -> Fault:
    """A volume of which nothing is stored but its metadata."""
    make = both(metadata(V3, shape=shape, chunk_grid__configuration__chunk_shape=chunks), gone("scan.zarr/c"))
    return Fault(name, command, code, says, make)


_SIZES = [
    _huge("chunks of 10**12 voxels", [10**5] * 3, [10**4] * 3, run(memory="4GiB"), 7, "--memory"),
    _huge("chunks of 2**60 voxels", [2**30] * 3, [2**20] * 3, run(memory="4GiB"), 7, "--roi"),
]

FAULTS = [
    *[Fault(f"metadata {name}", run(), 3, ("scan.zarr",), make) for name, make in _METADATA],
    *[Fault(f"metadata of v2 {name}", run(**{"in": "v.zarr"}), 3, ("v.zarr",), both(volume("v.zarr", zarr_format=2), make)) for name, make in _OLD],
    *[Fault(f"ome {name}", run(**{"in": "g.zarr"}), 3, ("g.zarr",), make) for name, make in _OME],
    *[Fault(f"a chunk {name}", run(), 4, ("scan.zarr", "z=1 y=0 x=2"), make, spoken=None) for name, make in _CHUNKS],
    *[Fault(name, command, 4, says, make, spoken=None) for name, command, make, says in _VOXELS],
    *_KINDS,
    *_SIZES,
    Fault("info of a volume of 2**63", ("info", "scan.zarr"), 3, ("scan.zarr",), metadata(V3, shape=[2**63, 22, 40])),
    Fault("a plan of metadata that break off", plan(), 3, ("scan.zarr",), cut(V3)),
    Fault("a mask that is not there", run(mask="no.zarr", model="s.fake.toml"), 3, ("no.zarr",),
          lambda here: file("s.fake.toml", (here / "id.fake.toml").read_text() + "empty = [0.0]\n")(here)),
    Fault("a folder of pictures", run(**{"in": "planes"}), 3, ("planes/1.tif", "no readable TIFF"), file("planes/1.tif", b"II*\0")),
    Fault("a TIFF that breaks off", run(**{"in": "scan.tif"}), 3, ("scan.tif", "no readable TIFF"), file("scan.tif", b"II*\0")),
    Fault("an .npy of objects", run(**{"in": "scan.npy"}), 3, ("scan.npy", "object"), numpy_file("scan.npy", [None, None])),
    Fault("an .npy that breaks off", run(**{"in": "scan.npy"}), 4, ("scan.npy", "breaks off"), both(numpy_file("scan.npy", np.ones((20, 22, 40))), cut("scan.npy"))),
    Fault("an HDF5 file of another kind", run(**{"in": "scan.h5"}), 3, ("scan.h5", "no HDF5 file"), file("scan.h5", "CDF\1")),
    Fault("a file of no format", run(**{"in": "scan.dat"}), 3, ("scan.dat", "no format"), file("scan.dat", b"II*\0")),
    Fault("a microscope's file", run(**{"in": "my scan.czi"}), 3, ("bioformats2raw 'my scan.czi' 'my scan.zarr'",), file("my scan.czi", "ZISRAWFILE")),
    Fault("a folder of a microscope's files", run(**{"in": "raw"}), 3, ("raw holds no volume that is read here", "bioformats2raw raw/a.lif raw/a.zarr"), file("raw/a.lif", "p")),
    Fault("an archive", run(**{"in": "scan.7z"}), 3, ("scan.7z", "unpack it"), file("scan.7z", "7z")),
    Fault("info of a picture that is not read", ("info", "scan.webp"), 3, ("scan.webp", "save it as PNG or TIFF"), file("scan.webp", "RIFF")),
    Fault("a zip with a password", run(**{"in": "scan.zip"}), 3, ("scan.zip is locked with a password; unpack it",), locked("scan.zip")),
    Fault("a model in a zip with a password", run(model="m.zip"), 5, ("m.zip is an archive", "unpack it"), locked("m.zip")),
    Fault("a TIFF that is a FIFO", run(**{"in": "scan.tif"}), 3, ("scan.tif", "no regular file"), fifo("scan.tif")),
    Fault("nothing", run(**{"in": "no.zarr"}), 3, ("no.zarr does not exist",)),
    Fault("a folder of nothing", run(**{"in": "v.zarr"}), 3, ("v.zarr",), folder("v.zarr")),
]  # fmt: skip
