"""A raster behind a URL as GDAL reads it: by parts, through our own stores, which ask patiently and show no secrets."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from contextlib import suppress

from unet_engine.errors import InputError, of_store
from unet_engine.storage.remote_files import About, RemoteFile, name_of

PAGE = 2**16
"""Bytes that are asked for at once where fewer are wanted: headers are read by some bytes at a time."""
PAGES = 64
_BESIDE = (".aux.xml", ".ovr", ".msk")
"""What GDAL looks for beside a file: statistics and nodata, overviews, a mask."""


class RemoteRaster:
    """Opens `file`, and what lies beside it, for rasterio. What a store says is kept until `check`: an error in a
    reading of GDAL's is lost on its way, and what it could not read it may take for something that is not there."""

    def __init__(self, file: RemoteFile, about: About) -> None:
        self.name = f"remote/{name_of(file.url)}"
        self._file, self._tag = file, about.tag
        self._lock = threading.Lock()
        self._pages: dict[str, Pages | None] = {self.name: Pages(file, about.length or 0)}
        self._failed: Exception | None = None

    def open(self, path: str, mode: str = "rb", **_: object) -> io.RawIOBase:
        """A file to read from. Raises `FileNotFoundError` where there is none."""
        pages = self._found(path) if mode.startswith("r") and "+" not in mode else None
        if pages is None:
            raise FileNotFoundError(path)
        return _Opened(self, pages)

    def _found(self, path: str) -> Pages | None:
        name = next((name for name in (self.name, *map(self.name.__add__, _BESIDE)) if path.endswith(name)), None)
        if name is None:
            return None
        with self._lock:
            if name not in self._pages:
                self._pages[name] = self._beside(name.removeprefix(self.name))
            return self._pages[name]

    def _beside(self, ending: str) -> Pages | None:
        place, mark, query = self._file.url.partition("?")
        file = RemoteFile(f"{place}{ending}{mark}{query}")
        try:
            length = file.about().length if file.exists() else None
        except InputError as error:
            lost = of_store(error)
            if lost and not lost.refused:  # who may not list is refused what is not there
                self.fail(error)
            return None
        return None if length is None else Pages(file, length)

    def fail(self, error: Exception) -> None:
        self._failed = self._failed or error

    def check(self) -> None:
        """Raise what went wrong since."""
        if failed := self._failed:
            self._failed = None
            raise failed

    def tag(self) -> str | None:
        """What changes with its content: one small request; None where that cannot be told."""
        with suppress(InputError):
            return self._file.about().tag
        return None


class Pages:
    """Parts of a file, of which the last few are kept."""

    def __init__(self, file: RemoteFile, length: int) -> None:
        self._file, self.length = file, length
        self._lock, self._kept = threading.Lock(), OrderedDict[int, bytes]()

    def read(self, lo: int, hi: int) -> bytes:
        """Bytes `lo` to `hi`. Raises `InputError` where they cannot be had."""
        hi = min(hi, self.length)
        if hi <= lo:
            return b""
        if hi - lo > PAGE:
            return self._exactly(lo, hi)
        found = b"".join(self._page(n) for n in range(lo // PAGE, -(-hi // PAGE)))
        begin = lo // PAGE * PAGE
        return found[lo - begin : hi - begin]

    def _page(self, number: int) -> bytes:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        data = self._exactly(number * PAGE, min((number + 1) * PAGE, self.length))
        with self._lock:
            self._kept[number] = data
            while len(self._kept) > PAGES:
                self._kept.popitem(last=False)
        return data

    def _exactly(self, lo: int, hi: int) -> bytes:
        data = self._file.read(lo, hi)
        if len(data) != hi - lo:
            raise InputError(
                f"{self._file.url} was changed while it was read: it had {self.length:,} bytes, and ends before; "
                "run again once it is no longer written, with --overwrite"
            )
        return data


class _Opened(io.RawIOBase):
    def __init__(self, source: RemoteRaster, pages: Pages) -> None:
        self._source, self._pages, self._at = source, pages, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._pages.length}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int = -1) -> bytes:
        try:
            data = self._pages.read(self._at, self._at + count if count >= 0 else self._pages.length)
        except Exception as error:  # of any kind: on the way through GDAL it would be lost
            self._source.fail(error)
            return b""
        self._at += len(data)
        return data
