"""Chunks that unpack to gigabytes, and shards whose index says what cannot be."""

from __future__ import annotations

import bz2
import lzma
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np

from support.catalogue.fault import Fault, Make, both, file, run
from support.volumes import make_volume

SHAPE = (20, 22, 40)
CHUNK = 8**3
GIB = 2**30
LIMITED = "ulimit -v 6000000; {}"
"""No memory for what these unpack to, but for all else."""

# --- what unpacks to gigabytes ---


def zstd(size: int, said: int | None = None) -> bytes:
    """A frame of blocks of one byte, repeated (RFC 8878, 3.1.1)."""
    sizes = b"\x00\x58" if said is None else b"\x80\x58" + said.to_bytes(4, "little")
    block = (2 | 2**17 << 3).to_bytes(3, "little") + b"\0"
    last = (3 | 2**17 << 3).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd" + sizes + block * (size // 2**17 - 1) + last


def deflated(size: int) -> bytes:
    """`size` zeros, of whole MiB, as one stream without header or sum: a piece that is made once, and repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size // 2**20) + packer.flush()


def zlibbed(size: int) -> bytes:
    """`deflated`, with a header, and the sum that so many zeros have (RFC 1950)."""
    return b"\x78\xda" + deflated(size) + (size % 65521 << 16 | 1).to_bytes(4, "big")


def gzip(size: int, said: int | None = None) -> bytes:
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + deflated(size) + bytes(4) + (said or size).to_bytes(4, "little")


def _blosc(size: int) -> bytes:
    packed = bytes(numcodecs.Blosc("zstd").encode(bytes(2**16)))
    return packed[:4] + size.to_bytes(4, "little") + packed[8:]


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zstd": ("zstd", lambda: zstd(GIB, GIB)),
    "zstd of no said size": ("zstd", lambda: zstd(GIB)),
    "zstd that lies": ("zstd", lambda: zstd(GIB, CHUNK)),
    "gzip": ("gzip", lambda: gzip(GIB)),
    "gzip that lies": ("gzip", lambda: gzip(GIB, CHUNK)),
    "zlib": ("zlib", lambda: b"\x78\xda" + deflated(GIB)),
    "bz2": ("bz2", lambda: bz2.compress(bytes(2**22)) * 256),
    "lzma": ("lzma", lambda: lzma.compress(bytes(2**22)) * 256),
    "blosc": ("blosc", lambda: _blosc(2**31 - 2**16)),
    "lz4": ("lz4", lambda: (2**31 - 1).to_bytes(4, "little") + bytes(100)),
}  # fmt: skip

_V2 = {
    "zstd": numcodecs.Zstd, "gzip": numcodecs.GZip, "zlib": numcodecs.Zlib, "bz2": numcodecs.BZ2, "lzma": numcodecs.LZMA,
    "blosc": numcodecs.Blosc, "lz4": numcodecs.LZ4,
}  # fmt: skip


@cache
def _bomb(name: str) -> bytes:
    return BOMBS[name][1]()


def volume_of(place: Path, codec: str, zarr_format: int, **options: object) -> Path:
    """A volume that is packed with `codec`."""
    array = np.random.default_rng(3).integers(1, 200, SHAPE, np.uint8)
    packer = _V2[codec]() if zarr_format == 2 else {"name": _named(codec), "configuration": _CONFIGURED.get(codec, {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of codecs that Zarr v3 does not name
        return Path(make_volume(place, array, zarr_format=zarr_format, compressors=packer, **options))


_CONFIGURED: dict[str, dict[str, object]] = {
    "zstd": {"level": 0, "checksum": False}, "gzip": {"level": 5},
    "blosc": {"cname": "zstd", "clevel": 5, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0},
}  # fmt: skip


def _named(codec: str) -> str:
    return codec if codec in _CONFIGURED else f"numcodecs.{codec}"


def _bombed(name: str, zarr_format: int, place: str = "v.zarr") -> Make:
    def make(here: Path) -> None:
        path = volume_of(here / place, BOMBS[name][0], zarr_format)
        (path / ("1.0.2" if zarr_format == 2 else "c/1/0/2")).write_bytes(_bomb(name))

    return make


# --- shards ---

Index = "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]"
SHARD = (16, 16, 16)
COUNT = 8
END = 2**64 - 1


def reindexed(place: Path, change: Callable[[np.ndarray, int], None] | None, *, crc: int | None = None) -> None:
    """Write the index of a shard anew; `change` is given offsets and lengths, (8, 2), and where the chunks end."""
    whole = place.read_bytes()
    chunks, index = whole[: -16 * COUNT - 4], np.frombuffer(whole[-16 * COUNT - 4 : -4], "<u8").reshape(COUNT, 2).copy()
    if change:
        change(index, len(chunks))
    said = google_crc32c.value(index.tobytes()) if crc is None else crc
    place.write_bytes(chunks + index.tobytes() + said.to_bytes(4, "little"))


def _entry(offset: int | None = None, length: int | None = None) -> Callable[[np.ndarray, int], None]:
    def change(index: np.ndarray, end: int) -> None:
        index[2] = (index[2, 0] if offset is None else offset, index[2, 1] if length is None else length)

    return change


def _beyond(index: np.ndarray, end: int) -> None:
    index[2, 0] = end - 1


def _in_the_index(index: np.ndarray, end: int) -> None:
    index[2] = (end, 64)


def _overlapping(index: np.ndarray, end: int) -> None:
    index[2, 0] = index[1, 0] + 1


INDICES: dict[str, Callable[[np.ndarray, int], None]] = {
    "an offset of 2**62": _entry(offset=2**62),
    "an offset of 2**63": _entry(offset=2**63),
    "an offset of -16": _entry(offset=2**64 - 16),
    "an offset of nothing": _entry(offset=END),
    "a length of 2**33": _entry(length=2**33),
    "a length of 2**62": _entry(length=2**62),
    "a length of -16": _entry(length=2**64 - 16),
    "a length of nothing": _entry(length=END),
    "a length of 0": _entry(length=0),
    "no place at all": _entry(0, 0),
    "a sum that overflows": _entry(2**64 - 2, 3),
    "an end beyond the file": _beyond,
    "a chunk in the index": _in_the_index,
    "chunks that overlap": _overlapping,
}


def sharded(here: Path, codec: str = "zstd", place: str = "v.zarr") -> Path:
    """A volume of shards, and one of these."""
    return volume_of(here / place, codec, 3, shards=SHARD) / "c/0/0/1"


def _shard(change: Callable[[np.ndarray, int], None] | None = None, *, crc: int | None = None) -> Make:
    return lambda here: reindexed(sharded(here), change, crc=crc)


def _cut(to: int) -> Make:
    def make(here: Path) -> None:
        place = sharded(here)
        place.write_bytes(place.read_bytes()[:to])

    return make


def _bomb_in_shard(name: str) -> Make:
    """The bomb in the place of a chunk, with an index that fits it."""

    def make(here: Path) -> None:
        place, bomb = sharded(here, BOMBS[name][0]), _bomb(name)

        def change(index: np.ndarray, end: int) -> None:
            index[2] = (end, len(bomb))

        whole = place.read_bytes()
        place.write_bytes(whole[: -16 * COUNT - 4] + bomb + whole[-16 * COUNT - 4 :])
        reindexed(place, lambda index, end: change(index, end - len(bomb)))

    return make


def _of_an_empty_mask(here: Path) -> None:
    _bombed("zstd", 3, "mask.zarr")(here)
    file("s.fake.toml", (here / "id.fake.toml").read_text() + "empty = [0.0]\n")(here)


_V = {"in": "v.zarr"}
_WHERE = ("v.zarr", "chunk z=1 y=0 x=2")
_LYING = ("zstd that lies", "zstd of no said size")

FAULTS = [
    *[Fault(f"a chunk of v{version} that unpacks to gigabytes: {name}", run(**_V), 4,
            (*_WHERE, "cannot be read" if name in _LYING else "unpacks to"), _bombed(name, version), spoken=None)
      for name in BOMBS for version in (2, 3)],
    *[Fault(f"a chunk of v3 that unpacks to gigabytes, and no memory for it: {name}", run(**_V), 4, (*_WHERE, "cannot be read"), _bombed(name, 3),
            spoken=None, shell=LIMITED, slow=name != "gzip that lies") for name in BOMBS],
    *[Fault(f"a chunk in a shard that unpacks to gigabytes: {name}", run(**_V), 4, ("v.zarr", "chunk z=0 y=", "cannot be read"), _bomb_in_shard(name), spoken=None)
      for name in ("zstd", "zstd of no said size", "gzip", "gzip that lies", "blosc")],
    *[Fault(f"a shard whose index names {name}", run(**_V), 4, ("v.zarr", "chunk z=0 y=0 x=2", "shard"), _shard(change), spoken=None)
      for name, change in INDICES.items()],
    Fault("a shard whose index has another checksum", run(**_V), 4, ("v.zarr", "chunk z=0 y=0 x=2", "checksum"), _shard(crc=7), spoken=None),
    *[Fault(f"a shard of {to} bytes", run(**_V), 4, ("v.zarr", "chunk z=0 y=0 x=2", "shard"), _cut(to), spoken=None) for to in (0, 3, 100, 1000)],
    Fault("a mask that unpacks to gigabytes", run(mask="mask.zarr", model="s.fake.toml"), 4, ("mask.zarr", "unpacks to"), _of_an_empty_mask, spoken=None),
    Fault("info of a volume that unpacks to gigabytes", ("info", "v.zarr"), 4, _WHERE, _bombed("gzip", 2), spoken=None),
    Fault("metadata of a terabyte", run(), 3, ("scan.zarr", "bytes"), lambda here: _long(here / "scan.zarr/zarr.json")),
    Fault("metadata of a level of a terabyte", run(**{"in": "g.zarr"}), 3, ("g.zarr", "bytes"), both(
        lambda here: (make_volume(here / "g.zarr", np.zeros((8, 8, 8), "u1"), ome="0.5", axes="zyx"), None)[1],
        lambda here: _long(here / "g.zarr/0/zarr.json"))),
    Fault("a chunk of a terabyte", run(), 4, ("scan.zarr", "z=1 y=0 x=2", "far more"), lambda here: _long(here / "scan.zarr/c/1/0/2"), spoken=None),
]  # fmt: skip


def _long(place: Path) -> None:
    """A file of a terabyte that takes no space."""
    with place.open("r+b") as opened:
        opened.truncate(2**40)
