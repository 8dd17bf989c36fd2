"""TIFF, rasters and VRT: descriptions that lead elsewhere, pieces that unpack to gigabytes, pipes beside them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from support.catalogue.fault import Fault, Make, both, fifo, link
from support.catalogue.fault import file as written
from support.catalogue.headers import FLAT, PASSWD, VOXELS, of
from support.catalogue.packed import zlibbed

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)


def tiff(array: np.ndarray[Any, Any], name: str = "a.tif", **options: Any) -> Make:
    def make(here: Path) -> None:
        import tifffile

        tifffile.imwrite(here / name, array, **{"photometric": "minisblack", "metadata": None, **options})

    return make


def _entries(whole: bytearray) -> dict[int, int]:
    """Where the entry of each tag lies."""
    at = struct.unpack_from("<I", whole, 4)[0]
    count = struct.unpack_from("<H", whole, at)[0]
    return {struct.unpack_from("<H", whole, place)[0]: place for place in range(at + 2, at + 2 + 12 * count, 12)}


def tagged(tag: int, kind: int, value: int, count: int = 1) -> Make:
    """A TIFF of one strip, one tag of which says something else."""

    def make(here: Path) -> None:
        tiff(VOXELS[0], compression="zlib")(here)
        whole = bytearray((here / "a.tif").read_bytes())
        struct.pack_into("<HII", whole, _entries(whole)[tag] + 2, kind, count, value)
        (here / "a.tif").write_bytes(whole)

    return make


def piece(compression: int, content: bytes) -> Make:
    """A TIFF of one tile, which holds these bytes, packed as the number says."""

    def make(here: Path) -> None:
        tiff(NOISE, tile=(64, 64), compression="zlib")(here)
        whole = bytearray((here / "a.tif").read_bytes())
        struct.pack_into("<H", whole, _entries(whole)[259] + 8, compression)
        for tag, value in ((324, len(whole)), (325, len(content))):
            struct.pack_into("<HII", whole, _entries(whole)[tag] + 2, 4, 1, value)
        (here / "a.tif").write_bytes(bytes(whole) + content)

    return make


SIDE = 65500
PICTURES = {
    "JPEG": (7, b"\xff\xd8\xff\xe0\0\4\0\0\xff\xc0\0\x0b\x08" + struct.pack(">2H", SIDE, SIDE) + b"\1\1\x11\0" + bytes(99)),
    "JPEG 2000": (33005, b"\xff\x4f\xff\x51\0\x29\0\0" + struct.pack(">8I", SIDE, SIDE, 0, 0, SIDE, SIDE, 0, 0) + bytes(99)),
    "PNG": (34933, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">2I", SIDE, SIDE) + bytes(99)),
    "WebP": (50001, b"RIFF\0\1\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\0\xff\xff\0" + bytes(99)),
    "JPEG XL": (50002, b"\xff\x0a" + (3 << 1 | (SIDE - 1) << 3 | 1 << 33).to_bytes(8, "little") + bytes(99)),
}  # fmt: skip
"""Beginnings of pictures that are far larger than a tile."""

# --- OME ---


def ome(planes: object = 2, inside: str = "<TiffData/>") -> Make:
    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:own">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="40" SizeY="22" SizeZ="{planes}" '
        f'SizeC="1" SizeT="1">{inside}</Pixels></Image></OME>'
    )
    return tiff(VOXELS[:2], "a.ome.tif", description=text, compression="zlib")


def _part(companion: str) -> Make:
    text = (
        f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><BinaryOnly MetadataFile="{companion}"/></OME>'
    )
    return tiff(VOXELS[:2], "a.ome.tif", description=text)


def _elsewhere(name: str) -> str:
    return f'<TiffData IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:other</UUID></TiffData>'


# --- rasters ---


def raster(name: str) -> Make:
    def make(here: Path) -> None:
        import rasterio

        shape = {"height": 22, "width": 40, "count": 1, "dtype": "uint16"}
        place = rasterio.transform.from_origin(0, 0, 2, 2)
        with rasterio.open(here / name, "w", driver="GTiff", crs="EPSG:32633", transform=place, **shape) as data:
            data.write(VOXELS[0], 1)

    return make


def vrt(source: str, relative: int = 0, kind: str = "SimpleSource") -> Make:
    named = f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename>'
    if kind == "raw":
        band = f'subClass="VRTRawRasterBand">{named}<LineOffset>80</LineOffset>'
    else:
        band = f"><{kind}>{named}<SourceBand>1</SourceBand></{kind}>"
    text = f'<VRTRasterBand dataType="UInt16" band="1" {band}</VRTRasterBand>'
    return written("a.vrt", f'<VRTDataset rasterXSize="40" rasterYSize="22">{text}</VRTDataset>')


def _nested(here: Path) -> None:
    vrt("p.tif", 1)(here)
    (here / "a.vrt").rename(here / "b.vrt")
    vrt("b.vrt", 1)(here)


def _circle(here: Path) -> None:
    (here / "a.vrt").rename(here / "b.vrt")
    vrt("b.vrt", 1)(here)


_DEVICE = link("p.tif", "/dev/zero")
_VRT_FAULTS: list[tuple[str, Make, int, str]] = [
    ("of a FIFO", both(vrt("p.tif", 1), fifo("p.tif")), 3, "no regular file"),
    ("of a device", vrt("/dev/zero"), 3, "no regular file"),
    ("of a link to a device", both(vrt("p.tif", 1), _DEVICE), 3, "no regular file"),
    ("of a VRT of a FIFO", both(vrt("b.vrt", 1), _nested, fifo("p.tif")), 3, "no regular file"),
    ("of stdin", vrt("/vsistdin/"), 3, "which is no file"),
    ("of plain bytes of /etc/passwd", vrt(PASSWD, kind="raw"), 3, "as plain bytes"),
    ("of plain bytes of a link out", both(vrt("p.tif", 1, "raw"), link("p.tif", PASSWD)), 3, "as plain bytes"),
    ("of plain bytes of a FIFO", both(vrt("p.tif", 1, "raw"), fifo("p.tif")), 3, "no regular file"),
    ("of plain bytes of a URL", vrt("/vsicurl/http://127.0.0.1:9/x", kind="raw"), 3, "which is no file"),
    ("of a text", vrt(PASSWD), 4, "not recognized"),
    ("of itself", vrt("a.vrt", 1), 3, "leads back to it"),
    ("of one that leads back", both(vrt("a.vrt", 1), _circle), 3, "leads back to it"),
    ("of what is not there", vrt("gone.tif", 1), 4, "gone.tif"),
    ("of a URL with a password", vrt("http://me:hunter2@127.0.0.1:9/x.tif?token=abc123"), 4, "127.0.0.1"),
    ("that is junk", written("a.vrt", "junk"), 3, "a.vrt"),
    ("that is empty", written("a.vrt"), 3, "a.vrt"),
    ("nested 100000 deep", written("a.vrt", "<VRTDataset>" + "<a>" * 100_000), 3, "a.vrt"),
]  # fmt: skip


def _flat(name: str, make: Make, path: str, code: int, *says: str) -> Fault:
    return of(name, both(FLAT, make), path, code, *says, model="flat.fake.toml")


_TIFF_FAULTS: list[tuple[str, Make, int, str]] = [
    ("of 2**32 columns", tagged(256, 4, 2**32 - 1), 3, "read whole"),
    ("of no columns", tagged(256, 4, 0), 3, "a.tif"),
    ("of 65535 bits", tagged(258, 3, 65535), 3, "a.tif"),
    ("of an unknown compression", tagged(259, 3, 65000), 4, "a.tif"),
    ("of strips of no rows", tagged(278, 4, 0), 3, "a.tif"),
    ("of a strip beyond its end", tagged(273, 4, 2**31), 4, "a.tif"),
    ("of a strip of 4 GiB", tagged(279, 4, 2**32 - 1), 4, "a.tif"),
    ("of 2**30 strips", tagged(273, 4, 8, 2**30), 4, "a.tif"),
    ("whose tile unpacks to gigabytes", piece(8, zlibbed(2**30)), 4, "a.tif"),
    *[(f"whose tile is a huge {kind}", piece(number, content), 4, "is a picture of") for kind, (number, content) in PICTURES.items()],
]  # fmt: skip
_OME_FAULTS: list[tuple[str, Make, str]] = [
    ("of 10**9 planes", ome(10**9), "more planes"),
    ("of a plane count of 10**12", ome(2, '<TiffData PlaneCount="1000000000000"/>'), "more planes"),
    ("of a FIFO", both(ome(2, _elsewhere("p.tif")), fifo("p.tif")), "no regular file"),
    ("of a device", ome(2, _elsewhere("/dev/zero")), "no file in its folder"),
    ("of a file outside", ome(2, _elsewhere("../../../../etc/passwd")), "no file in its folder"),
    ("of a file that is gone", ome(2, _elsewhere("gone.tif")), "planes of it lie in 'gone.tif', missing"),
    ("whose companion is a FIFO", both(_part("p.companion.ome"), fifo("p.companion.ome")), "no regular file"),
    ("whose companion lies outside", _part("../../../../etc/passwd"), "no file in its folder"),
    ("whose companion is junk", both(_part("p.companion.ome"), written("p.companion.ome", "junk")), "a.ome.tif"),
]

FAULTS = [
    *[_flat(f"a TIFF {name}", make, "a.tif", code, says) for name, make, code, says in _TIFF_FAULTS],
    *[of(f"an OME-TIFF {name}", make, "a.ome.tif", 3, says) for name, make, says in _OME_FAULTS],
    *[_flat(f"a VRT {name}", make, "a.vrt", code, says) for name, make, code, says in _VRT_FAULTS],
    *[_flat(f"a GeoTIFF beside a FIFO called {name}", both(raster("a.tif"), fifo(name)), "a.tif", 3, "no regular file")
      for name in ("a.tif.ovr", "a.tif.msk", "a.tif.aux.xml", "a.tfw")],
]  # fmt: skip
