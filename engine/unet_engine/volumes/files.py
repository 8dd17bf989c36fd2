"""Volumes that lie in files of a known size: opened in one way, watched in one way, and those of plain numbers read."""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from unet_engine import machine
from unet_engine.errors import DataError, InputError, UnetEngineError, first_line
from unet_engine.paths import check_file, is_local
from unet_engine.plan.box import Box
from unet_engine.storage.plain_files import read_box
from unet_engine.storage.scratch import Scratch
from unet_engine.units import size
from unet_engine.volumes.axes import check_sizes
from unet_engine.volumes.base import Array, Format, Selection, StoredVolume, Volume
from unet_engine.volumes.linear import Linear

T = TypeVar("T")
CHUNK_SIDE = 64
"""Voxels along an axis that are read at once where the file asks for nothing."""
CHUNK_BYTES = 2**23
"""Pieces that lie side by side are taken as one up to so many bytes."""


def has_ending(path: str, *endings: str) -> bool:
    """Whether `path` is one of a local disk, no folder, and called like one of these, in any case."""
    return is_local(path) and path.lower().endswith(endings) and not Path(path).is_dir()


def package(path: str, kind: str, module: str, extra: str) -> Any:
    """The library that reads `kind`. Raises `InputError` naming the extra of ours that brings it."""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise InputError(
            f"{path}: {kind} needs {name}, which is not installed here; pip install 'unet-engine[{extra}]'"
        ) from error
    logging.getLogger(module.partition(".")[0]).addHandler(logging.NullHandler())  # what is wrong we say ourselves
    return found


@contextmanager
def opening(path: str, kind: str) -> Iterator[None]:
    """Turn what a library raises over the file at `path` into one line of `InputError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnetEngineError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} is no readable {kind}: {first_line(error)}; restore it, or give another --in"
        ) from error


@contextmanager
def listening(logger: logging.Logger) -> Iterator[list[str]]:
    """What is logged in this context, as a list, instead of on stderr."""
    heard: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: heard.append(record.getMessage().splitlines()[0])  # type: ignore[method-assign]
    others, logger.handlers = logger.handlers, [listener]
    try:
        yield heard
    finally:
        logger.handlers = others


@dataclass(frozen=True)
class Part:
    """A file that a volume was opened from, as it was then."""

    path: str
    stamp: tuple[int, ...]
    """Changes with its content."""
    length: int
    """In bytes."""

    @classmethod
    def of(cls, path: str) -> Part:
        """Raises `InputError` where there is no file at `path`."""
        try:
            found = check_file(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"{path} does not exist; give the path of a volume") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}; give another --in") from error
        return cls(path, _stamp(found), found.st_size)

    def confirm(self, volume: str) -> None:
        """Raises `InputError` where the file of `volume` is gone, or another one now."""
        try:
            now = _stamp(os.stat(self.path))  # noqa: PTH116  # asked of every block
        except OSError as error:
            raise InputError(
                f"{volume} is gone while it was read, deleted or unmounted ({self.path}: {error.strerror}); "
                "bring it back and run the same command with --resume"
            ) from error
        if now != self.stamp:
            raise InputError(
                f"{volume} was changed while it was read: {self.path} is another file now; "
                "run again once it is no longer written, with --overwrite"
            )

    def changed_since(self, since: float) -> bool:
        try:
            found = os.stat(self.path)  # noqa: PTH116
        except OSError:
            return True
        return _stamp(found) != self.stamp or since < found.st_ctime <= time.time()

    def check_length(self, needed: int) -> None:
        """Raise `DataError` where fewer than `needed` bytes are there."""
        if self.length < needed:
            raise DataError(
                f"{self.path} breaks off: it has {self.length:,} of {needed:,} bytes; restore it, or give another --in"
            )


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _opened(opened_by: Format, path: str, axes: str, picked: dict[str, Any]) -> Volume:
    found = opened_by.open(path, axes)
    assert isinstance(found, FileVolume)
    return replace(found, **picked)


_PICKED = ("nodata", "nodata_of", "time", "chosen", "alpha", "whole", "notes")
"""What of a volume is not in its file but was said of it since."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FileVolume(StoredVolume):
    """A volume in one file or several. What is rewritten in mid-run ends the run. Other processes open it anew."""

    opened_by: Format
    files: tuple[Part, ...]
    fetched: Scratch | None = None
    """The copy that is read of a file behind a URL."""
    overviews: tuple[str, ...] = ()
    """Smaller levels that are stored as well, as people are told."""

    remedy = "restore the file"

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.opened_by, self.path, self.axes, {name: getattr(self, name) for name in _PICKED})

    def release(self) -> None:
        if self.fetched:
            self.fetched.release()

    def facts(self) -> dict[str, Any]:
        return super().facts() | ({"levels": ["full", *self.overviews]} if self.overviews else {})

    def parts(self, box: Box) -> Iterable[Part]:
        """The files that `box` lies in."""
        return self.files

    def changed(self, box: Box, since: float) -> str | None:
        if self.fetched:  # a copy of ours, whose times say when it was made
            return None
        return next((part.path for part in self.parts(box) if part.changed_since(since)), None)

    def confirm(self) -> None:
        for part in self.files:
            part.confirm(self.path)

    def _unreadable(self, box: Box, error: Exception) -> InputError:
        self.confirm()  # nothing is wrong with a piece of a file that is gone
        return super()._unreadable(box, error)


@dataclass(frozen=True, eq=False, kw_only=True)
class PlainVolume(FileVolume):
    """Plain numbers in one file, from `offset` on."""

    data: str
    """The file that holds the numbers."""
    offset: int
    numbers: np.dtype[Any]
    """As they lie in the file; `stored_dtype` where nothing is computed of them."""
    order: Literal["C", "F"] = "C"
    linear: Linear | None = None
    """What the numbers stand for; None: for themselves."""

    def stored(self, selection: Selection) -> Array:
        spans = [range(*part.indices(n)) for part, n in zip(selection, self.stored_shape, strict=True)]
        if self.order == "C":
            numbers = read_box(self.data, self.offset, self.stored_shape, self.numbers, spans)
        else:
            numbers = read_box(self.data, self.offset, self.stored_shape[::-1], self.numbers, spans[::-1]).T
        return self.linear(numbers) if self.linear else numbers


KEPT_BYTES = 2**26
"""Of pieces of a volume that were unpacked, kept for the next block until a plan says otherwise, however many files they
are from."""


class Kept(Generic[T]):
    """What was decoded last, up to so many bytes: arrays, or tuples that begin with one. Used from any number of
    threads."""

    def __init__(self, room: int = KEPT_BYTES) -> None:
        self._room, self._bytes = room, 0
        self._lock = threading.Lock()
        self._found: OrderedDict[Any, T] = OrderedDict()

    def allow(self, room: int) -> None:
        """Keep up to so many bytes from now on."""
        with self._lock:
            self._room = room
            self._shrink()

    def get(self, key: Any, decode: Callable[[], T]) -> T:
        """What is kept under `key`; what `decode` makes where nothing is."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        made = decode()
        with self._lock:
            if key not in self._found and _bytes(made) <= self._room:
                self._found[key] = made
                self._bytes += _bytes(made)
                self._shrink()
        return made

    def _shrink(self) -> None:
        while self._bytes > self._room:
            self._bytes -= _bytes(self._found.popitem(last=False)[1])


def _bytes(made: Any) -> int:
    array: Array = made[0] if isinstance(made, tuple) else made
    return array.nbytes


def plain_chunks(axes: str, shape: Sequence[int]) -> tuple[int, ...]:
    """What is read at once of an array that can be read anywhere."""
    return tuple(min(n, CHUNK_SIDE) if a in "zyx" else (1 if a == "t" else n) for a, n in zip(axes, shape, strict=True))


def grouped(axes: str, shape: Sequence[int], pieces: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Whole `pieces` (what a file is stored in) that are taken as one: small ones side by side up to `CHUNK_SIDE`
    voxels along each spatial axis and `CHUNK_BYTES`. All channels are read at once, so pieces hold all of them."""
    found = [n if a == "c" else min(p, n) for a, p, n in zip(axes, pieces, shape, strict=True)]
    for index in reversed(range(len(axes))):
        if axes[index] not in "zyx":
            continue
        room = CHUNK_BYTES // max(1, prod(found) * itemsize)
        times = min(room, -(-CHUNK_SIDE // found[index]), -(-shape[index] // found[index]))
        found[index] = min(shape[index], found[index] * max(1, times))
    return tuple(found)


def check_pieces(path: str, shape: Sequence[int], pieces: Sequence[int], itemsize: int) -> None:
    """Raise `InputError` where an array of `shape` stored in `pieces` cannot be read: sizes that no volume has, or a
    piece larger than the memory that is free."""
    check_sizes(path, shape, pieces)
    needed = prod(map(min, pieces, shape)) * itemsize
    free = machine.available_memory()
    if needed > free:
        raise InputError(
            f"{path} is stored in pieces of {size(needed)}, which are read whole, and {size(free)} of memory are free; "
            "store it in smaller ones, or run where there is more"
        )
