"""Copies of files that are compressed as a whole or lie behind a URL, made once, as nothing in them can be read by
block.

They lie in the user's cache, called after what the file holds, so that a run that is resumed finds its copy. Whoever
reads one holds a shared lock on it. One goes as the run that needed it is complete, or after a week without a reader.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from weakref import WeakSet

from unet_engine.errors import DataError, InputError, first_line
from unet_engine.storage import cache
from unet_engine.storage.cache import FOLDER
from unet_engine.units import size

KEPT_SECONDS = 7 * 24 * 3600
_PIECE = 2**20
_LEFT_FREE = 2**30
"""Bytes of a disk that are left to others."""
_LOOKED_AT = 2**16
_LONGEST_SKIP = 2**30
"""Bytes that are unpacked to be left out, where nothing says how many come before the voxels."""

Opener = Callable[[str], AbstractContextManager[BinaryIO]]


class Scratch:
    """An unpacked copy, in use by this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = path.open("rb")  # closed with this object, and the lock with it
        fcntl.flock(self._held, fcntl.LOCK_SH)
        _OPEN.add(self)

    def release(self) -> None:
        """It may go, unless somebody else reads it: now, or as this process ends."""
        self.unlock()
        _remove(self.path)
        atexit.register(_remove_at_exit, self.path)

    def unlock(self) -> None:
        fcntl.flock(self._held, fcntl.LOCK_UN)


_OPEN: WeakSet[Scratch] = WeakSet()


def _remove_at_exit(path: Path) -> None:
    """Workers of this process that have not closed their volume read no more."""
    for copy in _OPEN:
        if copy.path == path:
            copy.unlock()
    _remove(path)


def unpacked(files: Sequence[str], opener: Opener, skip: int, length: int, how: str = "") -> Scratch:
    """Bytes `skip` to `skip + length` of what `opener` unpacks from each of `files`, one after the other; its last
    `length` bytes where `skip` is -1. Memory is a piece of 1 MiB. how: what else decides what comes of the files.

    Raises `DataError` where there are fewer or they are damaged, and `InputError` where there is no room for them.
    """
    path = _folder(files[0], "unpacked") / f"{_key(files, skip, length, how)}.raw"
    with _alone(path):
        if not path.is_file() or path.stat().st_size != length * len(files):
            _prune(path.parent)
            _unpack(files, opener, skip, length, path)
        os.utime(path)
        return Scratch(path)


def fetched(url: str, key: str, name: str, length: int | None, fill: Callable[[BinaryIO], None]) -> Scratch:
    """A copy of what lies at `url`, called `name`: `fill` writes it, where no copy with this `key` is there. length: in
    bytes, where that is known.

    Raises what `fill` raises, and `InputError` where there is no room for it.
    """
    path = _folder(url, "fetched") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}-{name}"
    with _alone(path):
        if not path.is_file():
            _prune(path.parent)
            _check_room(url, "fetched", length or 0, path.parent)
            partial = path.with_name(f"{path.name}.partial")
            try:
                with partial.open("w+b") as out:
                    fill(out)
                partial.replace(path)
            except OSError as error:
                if error.errno is None:
                    raise
                raise InputError(
                    f"{url} cannot be fetched to {path.parent}: {error.strerror}; set {FOLDER} to another folder"
                ) from error
            finally:
                partial.unlink(missing_ok=True)
        return Scratch(path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Whoever comes second waits, and finds the copy."""
    with _lock_of(path).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(lock.fileno())  # when it was last wanted
        yield


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _folder(file: str, what: str) -> Path:
    path = cache.place() / "unpacked"
    try:
        own = cache.made(path)
    except OSError as error:
        raise InputError(
            f"{file} has to be {what}, and {path} cannot be used: {error.strerror}; set {FOLDER} to another folder"
        ) from error
    if not own:
        raise InputError(
            f"{file} has to be {what}, and others may write to {path}; chmod 700 it, or set {FOLDER} to another folder"
        )
    return path


def _check_room(file: str, what: str, length: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    left = min(_LEFT_FREE, free // 10)
    if length > free - left:
        raise InputError(
            f"{file} has to be {what} to {size(length)}, and {size(free)} are free in {folder}, of which "
            f"{size(left)} are left to others; set {FOLDER} to a folder with more room"
        )


def _key(files: Sequence[str], skip: int, length: int, how: str) -> str:
    """Of what the files hold, as far as their ends and times tell: the last bytes of a gzip are a checksum."""
    digest = hashlib.sha256(how.encode())
    for file in files:
        about = os.stat(file)  # noqa: PTH116
        digest.update(f"{about.st_size} {about.st_mtime_ns} {skip} {length}".encode())
        with Path(file).open("rb") as opened:
            digest.update(opened.read(_LOOKED_AT))
            opened.seek(max(0, about.st_size - _LOOKED_AT))
            digest.update(opened.read(_LOOKED_AT))
    return digest.hexdigest()[:32]


def _unpack(files: Sequence[str], opener: Opener, skip: int, length: int, path: Path) -> None:
    _check_room(files[0], "unpacked", length * len(files), path.parent)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as out:
            for file in files:
                _append(file, opener, skip, length, out)
        partial.replace(path)
    except OSError as error:
        raise InputError(
            f"{files[0]} cannot be unpacked to {path.parent}: {error.strerror}; set {FOLDER} to another folder"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _append(file: str, opener: Opener, skip: int, length: int, out: BinaryIO) -> None:
    try:
        skip = skip if skip >= 0 else _all_but(file, opener, length)
        with opener(file) as packed:
            _pass(file, packed, skip, None)
            _pass(file, packed, length, out)
            _drain(packed, length + _PIECE)
    except (EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{file} is damaged: {first_line(error)}; restore it, or give another --in") from error
    except OSError as error:
        if error.errno is not None:
            raise
        # of gzip and bz2
        raise DataError(f"{file} is damaged: {first_line(error)}; restore it, or give another --in") from error


def _all_but(file: str, opener: Opener, length: int) -> int:
    """How many bytes come before the last `length`. Raises `DataError` where these are far more than a header."""
    with opener(file) as packed:
        count = 0
        while piece := packed.read(_PIECE):
            count += len(piece)
            if count > length + _LONGEST_SKIP:
                raise DataError(
                    f"{file} unpacks to more than {size(_LONGEST_SKIP)} before its voxels, which are its last bytes; "
                    "restore it, or give another --in"
                )
    return max(0, count - length)


def _pass(file: str, packed: BinaryIO, count: int, out: BinaryIO | None) -> None:
    left = count
    while left:
        piece = packed.read(min(left, _PIECE))
        if not piece:
            raise DataError(
                f"{file} breaks off: it unpacks to {count - left:,} of {count:,} bytes; restore it, or give another "
                "--in"
            )
        left -= len(piece)
        if out:
            out.write(piece)


def _drain(packed: BinaryIO, most: int) -> None:
    """Read on to the end, where a checksum is compared; but not what never ends."""
    while most > 0 and (piece := packed.read(_PIECE)):
        most -= len(piece)


def _prune(folder: Path) -> None:
    for path in folder.iterdir():
        if path.suffix == ".lock":  # goes with its copy
            continue
        with suppress(OSError):
            lock = _lock_of(path)  # whose time is set by whoever opens the copy
            if time.time() - (lock if lock.exists() else path).stat().st_mtime > KEPT_SECONDS:
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a copy that nobody reads."""
    with suppress(OSError):
        held = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            _lock_of(path).unlink(missing_ok=True)
        finally:
            os.close(held)


class ZlibFile:
    """Reads the zlib or gzip stream that an open `file` goes on with, of one member or several, as `gzip.open` does a
    whole file. What follows is none of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = zlib.decompressobj(_EITHER)

    def read(self, count: int) -> bytes:
        while not self._stream.eof or self._goes_on():
            data = self._stream.unconsumed_tail or self._file.read(_PIECE)
            if not data:
                raise EOFError("it ends within the compressed data")
            if found := self._stream.decompress(data, count):
                return found
        return b""

    def _goes_on(self) -> bool:
        """Whether another member of gzip follows, which is then read."""
        rest = self._stream.unused_data
        if len(rest) < len(_GZIP):
            rest += self._file.read(_PIECE)
        if not rest.startswith(_GZIP):
            return False
        self._file.seek(-len(rest), os.SEEK_CUR)
        self._stream = zlib.decompressobj(_EITHER)
        return True


_EITHER = 47
"""Of zlib's window sizes the one that takes a header of zlib or of gzip."""
_GZIP = b"\x1f\x8b\x08"
