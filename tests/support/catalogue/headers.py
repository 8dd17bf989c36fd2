"""Volumes of one file, or a header and its data: MetaImage, NRRD, NIfTI, .npy, HDF5 and DICOM, whose headers lie, lead
elsewhere or hide gigabytes."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from support.catalogue.fault import Fault, Make, both, fifo, file, gone, link, model, run
from support.catalogue.packed import deflated, zlibbed

VOXELS = np.arange(20 * 22 * 40, dtype="<u2").reshape(20, 22, 40)
PASSWD = "/etc/passwd"
FLAT = model("flat", axes="yx")
"""A network of two axes."""


def of(name: str, make: Make, path: str, code: int, *says: str, **options: object) -> Fault:
    """A fault of a run on the volume at `path`."""
    return Fault(name, run(**{"in": path, **options}), code, says or (path.partition(":")[0],), make, spoken=None)


# --- MetaImage and NRRD ---

_META = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "DimSize": "40 22 20", "ElementType": "MET_USHORT",
}  # fmt: skip


def meta(data: str = "a.raw", **changed: object) -> Make:
    lines = [f"{key} = {value}\n" for key, value in {**_META, **changed}.items()]
    return both(file("a.raw", VOXELS.tobytes()), file("a.mhd", "".join(lines) + f"ElementDataFile = {data}\n"))


def nrrd(data: str = "a.raw", more: str = "", sizes: str = "40 22 20", dimension: str = "3") -> Make:
    text = f"NRRD0004\ntype: uint16\ndimension: {dimension}\nsizes: {sizes}\nencoding: raw\nendian: little\n{more}"
    return both(file("a.raw", VOXELS.tobytes()), file("a.nhdr", f"{text}data file: {data}\n\n"))


_SMALL: dict[str, object] = {"DimSize": "8 8 2", "ElementType": "MET_UCHAR"}
_META_FAULTS: list[tuple[str, Make, int, str]] = [
    ("whose data are /etc/passwd", meta(PASSWD, **_SMALL), 3, "no file in its folder"),
    ("whose data are above it", meta("../../../../../../../../../../etc/passwd", **_SMALL), 3, "no file in its folder"),
    ("whose data are a link out", both(meta(**_SMALL), gone("a.raw"), link("a.raw", PASSWD)), 3, "no file in its folder"),
    ("whose data are a device", meta("/dev/zero"), 3, "no file in its folder"),
    ("whose data are a URL", meta("http://127.0.0.1:9/a.raw"), 3, "no file in its folder"),
    ("whose data are a URL of a file", meta(f"file://{PASSWD}"), 3, "no file in its folder"),
    ("whose data are a URL with a password", meta("https://me:hunter2@127.0.0.1:9/a?token=abc123"), 3, "***@127.0.0.1"),
    ("whose data are this process", meta("/proc/self/environ", **_SMALL), 3, "no file in its folder"),
    ("whose data have no name", meta(""), 3, "no file in its folder"),
    ("whose data are a folder", meta("."), 3, "folder"),
    ("whose data are a FIFO", both(meta(), fifo("a.raw")), 3, "no regular file"),
    ("whose data are gone", both(meta(), gone("a.raw")), 3, "a.raw does not exist"),
    ("of 5000 digits", meta(NDims="9" * 5000), 3, "a.mhd"),
    ("of a shape of 10**400", meta(DimSize="9" * 400 + " 1 1"), 3, "a.mhd"),
    ("of a negative shape", meta(DimSize="-40 22 20"), 3, "a.mhd"),
    ("of a shape beyond its data", meta(DimSize="100000 100000 100000"), 4, "a.raw breaks off"),
    ("of a header of 10**30 bytes", meta(HeaderSize="9" * 30), 4, "a.raw breaks off"),
    ("of a header of -5 bytes", meta(HeaderSize="-5"), 3, "HeaderSize"),
    ("of no channels", meta(ElementNumberOfChannels="0"), 3, "ElementNumberOfChannels"),
    ("of -3 channels", meta(ElementNumberOfChannels="-3"), 3, "ElementNumberOfChannels"),
    ("of 10**12 channels", meta(ElementNumberOfChannels=10**12), 3, "1,000,000,000,000 channels"),
    ("of an unknown type with markup", meta(ElementType="[/red]x"), 3, "[/red]x"),
    ("of a matrix of words", meta(ElementSpacing="1 1 1", TransformMatrix="a b c d e f g h i"), 3, "a.mhd"),
]  # fmt: skip
_NRRD_FAULTS: list[tuple[str, Make, int, str]] = [
    ("whose data are /etc/passwd", nrrd(PASSWD, sizes="8 8 1"), 3, "no file in its folder"),
    ("whose data are above it", nrrd("../../../../../../../../../../etc/passwd", sizes="8 8 1"), 3, "no file in its folder"),
    ("whose data are a link out", both(nrrd(sizes="8 8 1"), gone("a.raw"), link("a.raw", PASSWD)), 3, "no file in its folder"),
    ("whose data are a device", nrrd("/dev/zero"), 3, "no file in its folder"),
    ("whose data are a URL", nrrd("http://127.0.0.1:9/a.raw"), 3, "no file in its folder"),
    ("whose data are a FIFO", both(nrrd(), fifo("a.raw")), 3, "no regular file"),
    ("whose data are a list of none", nrrd("LIST"), 3, "0 files do not make up"),
    ("that lists /etc/passwd", nrrd(f"LIST 3\n{PASSWD}", sizes="8 8 1"), 3, "no file in its folder"),
    ("that numbers 10**12 files", nrrd("s%d.raw 1 1000000000000 1"), 3, "none or too many"),
    ("that numbers files of 10**9 digits", nrrd("s%1000000000d.raw 1 20 1"), 3, "does not exist"),
    ("of another dimension", nrrd(dimension="4"), 3, "dimension is 4"),
    ("of a dimension of 10**9", nrrd(dimension=str(10**9)), 3, "dimension"),
    ("of a negative shape", nrrd(sizes="-40 22 20"), 3, "a.nhdr"),
    ("of a shape of 5000 digits", nrrd(sizes="9" * 5000 + " 22 20"), 3, "a.nhdr"),
    ("that skips 10**20 bytes", nrrd(more="byte skip: 99999999999999999999\n"), 4, "a.raw breaks off"),
    ("that skips -7 bytes", nrrd(more="byte skip: -7\n"), 3, "a.nhdr"),
    ("of few directions", nrrd(more="space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0)\n"), 3, "a.nhdr"),
    ("of few kinds", nrrd(more="kinds: domain\n"), 3, "a.nhdr"),
]  # fmt: skip
_PACKED = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: %s\nencoding: gzip\n\n"

# --- NIfTI ---

_HEAD, _BEGIN = 348, 352


@cache
def _nifti() -> bytes:
    import nibabel

    return bytes(nibabel.Nifti1Image(VOXELS.astype("<i2"), np.eye(4)).to_bytes())


def nifti(kind: str, at: int, *values: float, name: str = "a.nii", **more: Any) -> Make:
    """A NIfTI file with other numbers at a byte of its header."""

    def make(here: Path) -> None:
        whole = bytearray(_nifti())
        struct.pack_into(kind, whole, at, *values)
        content = bytes(whole) if "extension" not in more else bytes(whole[:_HEAD]) + more["extension"]
        (here / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)

    return make


def _extended(size: int, content: bytes = b"") -> bytes:
    """What follows a header: that there is an extension of so many bytes."""
    return struct.pack("<4B2i", 1, 0, 0, 0, size, 4) + content


def _pair(here: Path) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Pair(VOXELS.astype("<i2"), np.eye(4)), here / "a.img")


_NIFTI_FAULTS: list[tuple[str, Make, str, int, str]] = [
    ("of a shape beyond its data", nifti("<4h", 40, 3, 32767, 32767, 32767), "a.nii", 4, "breaks off"),
    ("of a negative shape", nifti("<4h", 40, 3, -5, 22, 20), "a.nii", 3, "a.nii"),
    ("of 77 axes", nifti("<h", 40, 77), "a.nii", 3, "a.nii"),
    ("of an unknown type", nifti("<h", 70, 9999), "a.nii", 3, "9999"),
    ("that begins at NaN", nifti("<f", 108, float("nan")), "a.nii", 3, "NaN"),
    ("that begins at 10**30", nifti("<f", 108, 1e30), "a.nii", 4, "breaks off"),
    ("that begins in its header", nifti("<f", 108, 0), "a.nii", 3, "inside the header"),
    ("packed, that begins at 10**30", nifti("<f", 108, 1e30, name="a.nii.gz"), "a.nii.gz", 4, "breaks off"),
    ("packed, of 3 GB", nifti("<4h", 40, 3, 4000, 4000, 95, name="a.nii.gz"), "a.nii.gz", 4, "breaks off"),
    ("of an extension of 2 GiB", nifti("<f", 108, 2000, extension=_extended(2**31 - 16)), "a.nii", 3, "extension"),
    ("of an extension of -16 bytes", nifti("<f", 108, 2000, extension=_extended(-16)), "a.nii", 3, "extension"),
    ("packed, of an extension of gigabytes", nifti("<f", 108, 2.0**31, name="a.nii.gz", extension=_extended(2**30, bytes(2**20))), "a.nii.gz", 3, "extension"),
    ("packed, that is junk", file("a.nii.gz", b"\x1f\x8b" + b"junk" * 99), "a.nii.gz", 3, "a.nii.gz"),
    ("of voxels beyond all numbers", nifti("<2f", 112, 3e38, 3e38), "a.nii", 4, "NaN or Inf"),
    ("whose image is a FIFO", both(_pair, fifo("a.img")), "a.hdr", 3, "no regular file"),
    ("whose header is a FIFO", both(_pair, fifo("a.hdr")), "a.img", 3, "no regular file"),
    ("whose matrix is a FIFO", both(_pair, fifo("a.mat")), "a.img", 3, "no regular file"),
    ("whose image is a device", both(_pair, gone("a.img"), link("a.img", "/dev/zero")), "a.hdr", 3, "no regular file"),
]  # fmt: skip

# --- .npy ---


def npy(header: str) -> Make:
    text = header.encode()
    return file("a.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(1000))


_NPY = "{'descr': '|u1', 'fortran_order': False, 'shape': %s, }\n"
_NPY_FAULTS = [
    ("of a shape of 2**63", npy(_NPY % "(9223372036854775808, 1, 1)")),
    ("of a negative shape", npy(_NPY % "(-1, 10, 10)")),
    ("of fractions", npy(_NPY % "(1.5, 10, 10)")),
    ("of an expression", npy("__import__('os').system('touch pwned')")),
    ("of a power", npy(_NPY % "(9**9**9, 1, 1)")),
    ("nested 20000 deep", npy("[" * 20000 + "]" * 20000)),
]

# --- HDF5 ---


def hdf5(fill: Callable[[Any, Path], object]) -> Make:
    def make(here: Path) -> None:
        import h5py

        with h5py.File(here / "a.h5", "w") as opened:
            fill(opened, here)

    return make


def _link(name: str, *target: str) -> Callable[[Any, Path], None]:
    """A link to a file that is a FIFO, or, of one target, to a place in the same file."""

    def fill(opened: Any, here: Path) -> None:
        import h5py

        if len(target) == 1:
            opened[name] = h5py.SoftLink(*target)
        else:
            os.mkfifo(here / target[0])
            opened[name] = h5py.ExternalLink(*target)

    return fill


def _bomb(opened: Any, here: Path) -> None:
    data = opened.create_dataset("d", shape=(20, 22, 40), chunks=(8, 8, 8), dtype="u2", compression="gzip")
    data.id.write_direct_chunk((0, 0, 0), zlibbed(2**30))


_HDF5_FAULTS: list[tuple[str, Make, str, int, str]] = [
    ("whose chunk unpacks to gigabytes", hdf5(_bomb), "a.h5", 4, "unpacks to more"),
    ("with a link to a FIFO", hdf5(_link("d", "p.h5", "/d")), "a.h5:/d", 3, "not in it"),
    ("with a link to a group in a FIFO", hdf5(_link("g", "p.h5", "/")), "a.h5:/g/d", 3, "not in it"),
    ("with a link to itself", hdf5(_link("a", "/a")), "a.h5:/a", 3, "not in it"),
    ("of numbers in another file", hdf5(lambda o, _: o.create_dataset("d", (8, 8, 8), "u1", external=[(PASSWD, 0, 512)])), "a.h5", 3, "other files"),
    ("of a shape of 2**40", hdf5(lambda o, _: o.create_dataset("d", (2**40, 2**20, 4), "u1", chunks=(8, 8, 4))), "a.h5", 7, "a.h5"),
]  # fmt: skip

# --- DICOM ---


def dicom(syntax: str = "1.2.840.10008.1.2.1", bomb: bytes = b"", **changed: object) -> Make:
    def make(here: Path) -> None:
        from pydicom.dataset import Dataset, FileMetaDataset

        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = syntax
        slice_.SOPClassUID, slice_.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
        slice_.Rows, slice_.Columns, slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 22, 40, 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 0
        slice_.PixelData = VOXELS[0].tobytes()
        for key, value in changed.items():
            setattr(slice_, key, value)
        slice_.save_as(here / "a.dcm", enforce_file_format=True)
        if bomb:
            whole = (here / "a.dcm").read_bytes()
            (here / "a.dcm").write_bytes(whole[: 144 + struct.unpack_from("<I", whole, 140)[0]] + bomb)

    return make


_DICOM_FAULTS: list[tuple[str, Make, int, str]] = [
    ("of 10**9 frames", dicom(NumberOfFrames=10**9), 3, "frames"),
    ("of -4 frames", dicom(NumberOfFrames=-4), 3, "frames"),
    ("of 65535 rows", dicom(Rows=65535, Columns=65535), 4, "a.dcm"),
    ("whose voxels break off", dicom(PixelData=bytes(100)), 4, "a.dcm"),
    ("of an endless slope", dicom(RescaleSlope="1e400"), 3, "RescaleSlope"),
    ("of junk", file("a.dcm", b"junk" * 999), 3, "a.dcm"),
]


def _gigabytes(here: Path) -> None:
    dicom("1.2.840.10008.1.2.1.99", deflated(2**30))(here)


FAULTS = [
    *[of(f"a MetaImage {name}", make, "a.mhd", code, says) for name, make, code, says in _META_FAULTS],
    *[of(f"an NRRD header {name}", make, "a.nhdr", code, says) for name, make, code, says in _NRRD_FAULTS],
    of("an NRRD file that says more than it unpacks to", file("a.nrrd", _PACKED % b"4000 4000 100" + gzip.compress(bytes(2**20))), "a.nrrd", 4, "breaks off"),
    of("an NRRD file beyond the disk", file("a.nrrd", _PACKED % b"400000 400000 400000" + gzip.compress(bytes(2**20))), "a.nrrd", 3, "has to be unpacked to"),
    *[of(f"a NIfTI file {name}", make, path, code, says) for name, make, path, code, says in _NIFTI_FAULTS],
    *[of(f"an .npy {name}", make, "a.npy", 3) for name, make in _NPY_FAULTS],
    *[of(f"an HDF5 file {name}", make, path, code, says) for name, make, path, code, says in _HDF5_FAULTS],
    *[of(f"a DICOM file {name}", both(FLAT, make), "a.dcm", code, says, model="flat.fake.toml") for name, make, code, says in _DICOM_FAULTS],
    of("a DICOM file that unpacks to gigabytes", both(FLAT, _gigabytes), "a.dcm", 3, "inflates to more", model="flat.fake.toml"),
]  # fmt: skip
