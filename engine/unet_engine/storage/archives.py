"""Zipped Zarr: the store inside a file ``.ozx`` or ``.zip``, on a local disk or behind a URL. It is read alone."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, StorePath

from unet_engine.errors import InputError
from unet_engine.paths import check_file, is_local
from unet_engine.storage.patience import Broken
from unet_engine.storage.remote import LONGEST_METADATA, METADATA, is_metadata, spanned, too_long
from unet_engine.storage.tokens import said

ENDINGS = (".ozx", ".zip")
_CUT = re.compile(r"(.*?\.(?:ozx|zip))(?:/(.*))?", re.IGNORECASE | re.DOTALL)
_ENCRYPTED = 1
"""Flag of a file that a password opens."""
_LOCAL_HEADER = 30
"""Bytes in front of what a zip has of a file, without its name and what else is said of it (APPNOTE.TXT, 4.3.7)."""
_SPARE = 64
"""Bytes that may be said of a file there and not in the directory."""


def cut(path: str) -> tuple[str, str] | None:
    """The archive in `path`, and what is named inside of it; None where there is no archive."""
    if not is_local(path) and ("::" in path or "?" in path):
        return None
    found = _CUT.fullmatch(path.rstrip("/"))
    if found is None or (is_local(path) and not Path(found[1]).is_file()):
        return None
    return found[1], (found[2] or "").strip("/")


def local(path: str, inner: str) -> StorePath:
    """What is called `inner` in the archive at `path` on a local disk."""
    check_file(path)
    place = Path(path)
    return inside(LocalStore(place.parent, read_only=True), place.name, inner)


def inside(store: Store, key: str, inner: str) -> StorePath:
    """What is called `inner` in the archive `key` of a store. Its directory is read here, all else when it is
    wanted."""
    opened = Archive(store, key)
    return StorePath(opened, f"{root(opened.names)}{inner}".strip("/"))


def root(names: Iterable[str]) -> str:
    """The folder of an archive that is the Zarr: none, or the only one there is, as who zips a folder makes it."""
    tops = {name.partition("/")[0] for name in names}
    if tops & set(METADATA):
        return ""
    folders = [top for top in tops if top != "__MACOSX" and not top.startswith(".")]  # what file managers add
    return f"{folders[0]}/" if len(folders) == 1 else ""


def file_of(place: StorePath) -> Path | None:
    """The zip that `place` is in, on a local disk; None elsewhere."""
    outer = place.store._outer if isinstance(place.store, Archive) else None
    return outer.root / place.store._key if isinstance(outer, LocalStore) else None


class Archive(Store):  # type: ignore[misc]
    """The files of a zip, each read by one request: as it is where it is stored plainly, unpacked where it is deflated.
    Checksums are compared wherever a file is read whole."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, store: Store, key: str) -> None:
        super().__init__(read_only=True)
        self._outer, self._key = store, key
        try:
            with zipfile.ZipFile(io.BufferedReader(_Ranges(store, key), 2**16)) as opened:
                self._files = {info.filename: info for info in opened.infolist() if not info.is_dir()}
        except zipfile.BadZipFile as error:
            raise OSError(f"{key} is no zip: {error}") from error
        if any(info.flag_bits & _ENCRYPTED for info in self._files.values()):
            raise InputError(f"{key} is locked with a password; unpack it, and give the folder")
        self.names = list(self._files)

    def with_read_only(self, read_only: bool = False) -> Archive:  # noqa: FBT001, FBT002  # as zarr calls it
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Archive) and (other._outer, other._key) == (self._outer, self._key)

    def __hash__(self) -> int:
        return hash(self._key)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        info = self._files.get(key)
        if info is None:
            return None
        if is_metadata(key) and info.file_size > LONGEST_METADATA:
            raise too_long(key)
        lo, hi = spanned(byte_range, info.file_size)
        # a range may be all there is, where it says how long the file can be at most: then the checksum is compared
        if info.compress_type == zipfile.ZIP_STORED and (lo, hi) != (0, info.file_size):
            begin = await self._begin(info)
            data = await self._bytes(begin + lo, begin + hi) if hi > lo else b""
        else:
            data = (await self._whole(info))[lo:hi]
        return prototype.buffer.from_bytes(data)

    async def _whole(self, info: zipfile.ZipInfo) -> bytes:
        """One file, unpacked."""
        named = len(info.orig_filename.encode()) + len(info.extra) + _SPARE
        stop = info.header_offset + _LOCAL_HEADER + named + info.compress_size
        data = await self._bytes(info.header_offset, stop)
        begin = _behind_header(data)
        packed = data[begin : begin + info.compress_size]
        if len(packed) < info.compress_size:  # more is said of it here than in the directory
            at = info.header_offset + begin
            packed = await self._bytes(at, at + info.compress_size)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            packed = zlib.decompressobj(-15).decompress(packed, info.file_size + 1)
        elif info.compress_type != zipfile.ZIP_STORED:
            raise OSError(f"{info.filename} is packed in a way that is not read; zip it once more, stored or deflated")
        if len(packed) != info.file_size or zlib.crc32(packed) != info.CRC:
            raise Broken(f"{info.filename} in {self._key} is not what its checksum says")
        return packed

    async def _begin(self, info: zipfile.ZipInfo) -> int:
        header = await self._bytes(info.header_offset, info.header_offset + _LOCAL_HEADER)
        return info.header_offset + _behind_header(header)

    async def _bytes(self, lo: int, hi: int) -> bytes:
        return await _read(self._outer, self._key, lo, hi)

    async def tag(self, key: str) -> dict[str, Any]:
        """What its store says of the zip, which is another one where anything in it is."""
        return await said(self._outer, self._key)

    async def exists(self, key: str) -> bool:
        return key in self._files

    async def getsize(self, key: str) -> int:
        if key not in self._files:
            raise FileNotFoundError(key)
        return self._files[key].file_size

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> list[Any]:
        return [await self.get(key, prototype, span) for key, span in key_ranges]

    async def set(self, key: str, value: Any) -> None:
        raise NotImplementedError("an archive is not written in place")

    async def delete(self, key: str) -> None:
        raise NotImplementedError("an archive is not written in place")

    async def list(self) -> AsyncIterator[str]:
        for name in self.names:
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for name in self.names:
            if name.startswith(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        found = {name[len(start) :].partition("/")[0] for name in self.names if name.startswith(start)}
        for name in sorted(found):
            yield name


def _behind_header(header: bytes) -> int:
    """Where a file begins behind its own header."""
    if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
        raise Broken("a file of the zip does not begin where its directory says")
    name, extra = struct.unpack_from("<HH", header, 26)
    return _LOCAL_HEADER + int(name) + int(extra)


async def _read(store: Store, key: str, lo: int, hi: int) -> bytes:
    found = await store.get(key, default_buffer_prototype(), RangeByteRequest(lo, hi))
    if found is None:
        raise FileNotFoundError(key)
    return bytes(found.to_bytes())


class _Ranges(io.RawIOBase):
    """An object of a store as a file to look around in."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key, self._at = store, key, 0
        self._size = int(sync(store.getsize(key)))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        hi = min(self._at + len(buffer), self._size)
        data = sync(_read(self._store, self._key, self._at, hi)) if hi > self._at else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
