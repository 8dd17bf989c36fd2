"""What outlives a power cut: files and the entries of folders, once the disk has been told to keep them.

A file's content and its name are two things. A name may be kept whose content was not, and the other way round, so the
order is always: the content of all files, then their names, then whatever says that they are there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol
from uuid import uuid4


class Durability(Protocol):
    """Whether the disk is waited for."""

    @property
    def waits(self) -> bool: ...

    def file(self, descriptor: int) -> None:
        """The content of an open file is on the disk when this returns."""

    def folders(self, places: Iterable[Path | str]) -> None:
        """The names in these folders are on the disk when this returns."""


class OnDisk:
    """Waits for the disk."""

    waits = True

    def file(self, descriptor: int) -> None:
        _fdatasync(descriptor)

    def folders(self, places: Iterable[Path | str]) -> None:
        if not hasattr(os, "O_DIRECTORY"):  # Windows keeps names by itself
            return
        for place in places:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that cannot
                    raise
            finally:
                os.close(descriptor)


class Whenever:
    """Leaves it to the system, which writes within seconds to minutes: enough where only processes die."""

    waits = False

    def file(self, descriptor: int) -> None:
        pass

    def folders(self, places: Iterable[Path | str]) -> None:
        pass


ON_DISK: Durability = OnDisk()
WHENEVER: Durability = Whenever()

_fdatasync = getattr(os, "fdatasync", os.fsync)


def write(place: Path, data: bytes, durability: Durability) -> None:
    """A file with `data`, which is on the disk when this returns; its name may not be."""
    with place.open("wb") as file:
        file.write(data)
        file.flush()
        durability.file(file.fileno())


def put(place: Path, data: bytes, durability: Durability) -> None:
    """Store or replace a file, whole or not at all."""
    with _beside(place, data, durability) as temporary:
        temporary.replace(place)
    durability.folders([place.parent])


def put_new(place: Path, data: bytes, durability: Durability) -> None:
    """Store a file whole, unless there is one: exactly one of several processes does."""
    with _beside(place, data, durability) as temporary:
        try:
            os.link(temporary, place)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not place.exists():
                temporary.replace(place)
    durability.folders([place.parent])


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What file systems without hard links say, which make sure that there is but one file."""


@contextlib.contextmanager
def _beside(place: Path, data: bytes, durability: Durability) -> Iterator[Path]:
    temporary = place.with_name(f"{place.name}.{uuid4().hex}.partial")
    try:
        write(temporary, data, durability)
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def exchange(a: Path, b: Path) -> bool:
    """Have two files or folders change places at once; False where the system cannot, and nothing was done."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # not on Linux
        return False
    done = rename(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE)
    return bool(done == 0)


_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


def make_folder(place: Path, durability: Durability) -> None:
    """A folder, with those around it that are missing; all their names are kept."""
    missing = []
    while not place.is_dir():
        missing.append(place)
        place = place.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
    durability.folders(folder.parent for folder in reversed(missing))


def summed(place: Path, durability: Durability) -> tuple[int, int]:
    """Length and CRC-32 of a file, whose content is on the disk when this returns. What was just written lies in memory
    still, and is read from there."""
    with place.open("rb", buffering=0) as file:
        content = file.readall()
        durability.file(file.fileno())
    return len(content), zlib.crc32(content)
