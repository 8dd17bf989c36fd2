"""Chunks that change from absent to complete, and never otherwise.

Several processes may write the same block: a worker that was thought lost may still be running. They write the same
bytes, so all that matters is that no chunk is ever removed, emptied or half-written. Chunks are encoded into a scratch
array that holds nothing yet, so none is ever read either, and then each is put to its place at once: by a rename on a
local disk, by one request on a remote store. Length and checksum of what was put there go into the block's marker.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, StorePath

from unet_engine.output.journal import Journal, LocalJournal
from unet_engine.output.stored import Stored, grid
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.profiling.stages import ENCODE, ENCODE_WRITE, OTHER, WRITE
from unet_engine.storage import stores
from unet_engine.storage.codecs import fast_codecs, native_codecs
from unet_engine.storage.durability import ON_DISK, WHENEVER, Durability, summed

METADATA = "zarr.json"
PUTS = 32
"""Requests to a remote store that are under way at once."""
READERS = 8
"""Threads that read chunks of a local disk to sum them, and wait for the disk to keep them."""
MOST_KEPT = 2**14
"""Folders that are remembered as kept."""
NO_FILE = -1
"""The length of what lies where a chunk should and is none, such as a folder."""

Chunk = tuple[int, ...]
"""Where a chunk is in the array's grid."""


class Chunks(ABC):
    """Writes whole chunks of `array`. Chunks of nothing but the fill value are not stored. Safe to use from several
    threads."""

    def __init__(self, array: zarr.Array, recorder: Recorder = PLAIN) -> None:
        self._array, self._recorder = array, recorder

    @abstractmethod
    def write(self, target: tuple[slice, ...], values: npt.NDArray[Any]) -> Stored:
        """Write `values` at `target`, which begins and ends where chunks or the array do, and tell what is stored now.
        Nothing is written where this raises, or some chunks whole. Raises `FileNotFoundError` where the journal that
        the scratch arrays lie in was taken away."""

    def keep(self, stored: Iterable[Stored]) -> None:  # noqa: B027  # remote stores keep what they took
        """The places of these chunks, too, are on the disk when this returns. Their contents were when they were
        written."""

    @abstractmethod
    def lengths(self, chunks: Sequence[Chunk]) -> list[int]:
        """How many bytes of each are stored: 0 for none, `NO_FILE` where something else is in its place."""

    @abstractmethod
    def checksums(self, chunks: Sequence[Chunk]) -> list[int]:
        """CRC-32 of the stored bytes of each, all of which must be there."""

    @abstractmethod
    def clear(self, chunk: Chunk) -> None:
        """Take away what lies in the place of a chunk and is none, or should not be there."""

    def key(self, chunk: Chunk) -> str:
        """Where a chunk is stored, below the array."""
        return str(self._array.metadata.encode_chunk_key(chunk))

    def span(self, target: tuple[slice, ...]) -> tuple[Chunk, tuple[int, ...]]:
        """The first chunk at `target`, and how many there are along each axis."""
        lo, shape = grid(target, self._array.shape, self._array.chunks)
        return lo, shape

    def _stored(self, target: tuple[slice, ...], sums: Mapping[Chunk, tuple[int, int]]) -> Stored:
        """sums: length and checksum of the chunks at `target` that are stored"""
        empty = Stored(*self.span(target), (), ())
        found = [sums.get(chunk, (0, 0)) for chunk in empty.chunks()]
        return Stored(empty.lo, empty.shape, tuple(n for n, _ in found), tuple(s for _, s in found))

    def _scratch_metadata(self) -> bytes:
        """Those of the array, but with chunks named ``c.b.a``, so that a folder of them has no folders."""
        metadata = json.loads(self._array.metadata.to_buffer_dict(default_buffer_prototype())[METADATA].to_bytes())
        metadata["chunk_key_encoding"] = {"name": "v2", "configuration": {"separator": "."}}
        return json.dumps(metadata).encode()


def _chunk(name: str) -> Chunk:
    """The chunk that is called `name` in a scratch array."""
    return tuple(map(int, name.split(".")))


def chunks_of(
    array: zarr.Array, journal: Journal, recorder: Recorder = PLAIN, durability: Durability = ON_DISK
) -> Chunks:
    """Those of the array of an output."""
    folder = stores.file_of(array.store_path)
    if folder is None or not isinstance(journal, LocalJournal):
        return RemoteChunks(array, recorder)
    return LocalChunks(array, folder, journal.stage, recorder, durability)


class LocalChunks(Chunks):
    """Through folders in `stage`, one for every thread that is writing. What a kill leaves in one goes when `stage`
    does.

    The native codecs encode and write in one call. Where times are taken, some blocks are taken apart: their encoded
    bytes are written a second time, which is the writing, and what the call took beyond that was the encoding.
    """

    def __init__(
        self, array: zarr.Array, folder: Path, stage: Path, recorder: Recorder, durability: Durability
    ) -> None:
        super().__init__(array, recorder)
        self._durability = durability
        self._kept: set[Path] = set()
        """Folders whose names were seen to be kept: some of them."""
        self._folder, self._stage = folder, stage
        self._idle: SimpleQueue[tuple[Path, zarr.Array]] = SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS, "sum")

    def write(self, target: tuple[slice, ...], values: npt.NDArray[Any]) -> Stored:
        try:
            place, scratch = self._idle.get_nowait()
        except Empty:
            place, scratch = self._scratch()
        try:
            if self._recorder.takes_apart(str(self._folder)):
                self._encode_apart(place, scratch, target, values)
                with self._recorder.span(WRITE):
                    sums = self._publish(place)
            else:
                with self._recorder.span(ENCODE_WRITE):
                    _encode(scratch, target, values)
                    sums = self._publish(place)
        except BaseException:  # a full disk or an interrupt: half a chunk may lie in it
            shutil.rmtree(place, ignore_errors=True)
            raise
        self._idle.put((place, scratch))
        return self._stored(target, sums)

    def lengths(self, chunks: Sequence[Chunk]) -> list[int]:
        return [_length(f"{self._folder}/{self.key(chunk)}") for chunk in chunks]

    def checksums(self, chunks: Sequence[Chunk]) -> list[int]:
        places = (self._folder / self.key(chunk) for chunk in chunks)
        return [s for _, s in self._readers.map(lambda place: summed(place, WHENEVER), places)]

    def keep(self, stored: Iterable[Stored]) -> None:
        if not self._durability.waits:
            return
        folders: dict[Path, None] = {}
        for block in stored:
            for chunk, length in zip(block.chunks(), block.lengths, strict=True):
                if length:
                    folders[(self._folder / self.key(chunk)).parent] = None
        if len(self._kept) > MOST_KEPT:
            self._kept.clear()
        around = {place for folder in folders for place in self._around(folder)} - self._kept
        self._durability.folders([*folders, *(place.parent for place in around)])
        self._kept |= around

    def _around(self, folder: Path) -> Iterator[Path]:
        """`folder` and those around it, as far as they are the array's."""
        while folder != self._folder:
            yield folder
            folder = folder.parent

    def clear(self, chunk: Chunk) -> None:
        place = self._folder / self.key(chunk)
        if place.is_dir() and not place.is_symlink():
            place.rename(self._stage / uuid4().hex)  # and goes with the journal
        else:
            place.unlink(missing_ok=True)

    def _scratch(self) -> tuple[Path, zarr.Array]:
        place = self._stage / uuid4().hex
        place.mkdir()
        (place / METADATA).write_bytes(self._scratch_metadata())
        with fast_codecs(str(place)):
            return place, zarr.open_array(LocalStore(place), mode="r+")

    def _encode_apart(
        self, place: Path, scratch: zarr.Array, target: tuple[slice, ...], values: npt.NDArray[Any]
    ) -> None:
        begun = time.perf_counter_ns()
        _encode(scratch, target, values)
        ended = time.perf_counter_ns()
        with self._recorder.span(OTHER):
            writing = min(_write_again(place), ended - begun)
        self._recorder.add(ENCODE, begun, ended - writing)
        self._recorder.add(WRITE, ended - writing, ended)

    def _publish(self, place: Path) -> dict[Chunk, tuple[int, int]]:
        """Move the chunks in `place` to where they belong; length and checksum of each."""
        # The native codecs make folders that are missing, so this one may be theirs and not ours. From here on no
        # folder is made in the journal: where it is taken away now, the renames fail.
        if not (place / METADATA).exists():
            shutil.rmtree(place, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.removedirs(self._stage)
            raise FileNotFoundError(place)
        chunks = _chunks_in(place)
        # on the disk before they get their place: they may replace chunks that are, and are marked
        sums = dict(zip(chunks, self._readers.map(lambda chunk: summed(chunk, self._durability), chunks), strict=True))
        for chunk in chunks:
            final = self._folder / self.key(_chunk(chunk.name))
            try:
                chunk.replace(final)
            except FileNotFoundError:
                if not chunk.exists():
                    raise
                final.parent.mkdir(parents=True, exist_ok=True)
                chunk.replace(final)
        return {_chunk(chunk.name): found for chunk, found in sums.items()}


def _encode(scratch: zarr.Array, target: tuple[slice, ...], values: npt.NDArray[Any]) -> None:
    """Encode `values` into a scratch array in a folder: its chunks become files there."""
    with native_codecs():
        scratch[target] = np.ascontiguousarray(values)


def _write_again(place: Path) -> int:
    """Nanoseconds that writing the chunks in `place` takes once they are encoded. Written beside it and removed."""
    copies, spent = place.parent / f"{uuid4().hex}.again", 0
    with contextlib.suppress(OSError):  # a full disk is for the run itself to find
        copies.mkdir()
        for chunk in _chunks_in(place):
            content = chunk.read_bytes()
            begun = time.perf_counter_ns()
            (copies / chunk.name).write_bytes(content)
            spent += time.perf_counter_ns() - begun
    shutil.rmtree(copies, ignore_errors=True)
    return spent


def _length(place: str) -> int:
    try:
        found = os.stat(place)  # noqa: PTH116  # asked for every chunk
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return (found.st_size or NO_FILE) if stat.S_ISREG(found.st_mode) else NO_FILE


def _chunks_in(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.name != METADATA]


class RemoteChunks(Chunks):
    """Through memory."""

    def write(self, target: tuple[slice, ...], values: npt.NDArray[Any]) -> Stored:
        encoded: dict[str, Buffer] = {METADATA: default_buffer_prototype().buffer.from_bytes(self._scratch_metadata())}
        with fast_codecs(str(self._array.store_path)):
            scratch = zarr.open_array(MemoryStore(encoded), mode="r+")
        with self._recorder.span(ENCODE), native_codecs():
            scratch[target] = values
        del encoded[METADATA]
        chunks = {_chunk(name): chunk for name, chunk in encoded.items()}
        with self._recorder.span(WRITE):
            self._each(chunks.items(), self._put)
        return self._stored(target, {chunk: (len(data), _crc32(data)) for chunk, data in chunks.items()})

    def lengths(self, chunks: Sequence[Chunk]) -> list[int]:
        return list(self._each(((chunk,) for chunk in chunks), self._length))

    def checksums(self, chunks: Sequence[Chunk]) -> list[int]:
        return list(self._each(((chunk,) for chunk in chunks), self._checksum))

    def clear(self, chunk: Chunk) -> None:
        sync(self._at(chunk).delete())

    def _each(self, arguments: Iterable[tuple[Any, ...]], ask: Callable[..., Any]) -> Iterable[Any]:
        answers: Iterable[Any] = sync(concurrent_map(list(arguments), ask, PUTS))
        return answers

    def _at(self, chunk: Chunk) -> StorePath:
        return self._array.store_path / self.key(chunk)

    async def _put(self, chunk: Chunk, data: Buffer) -> None:
        await self._at(chunk).set(data)

    async def _length(self, chunk: Chunk) -> int:
        place = self._at(chunk)
        try:
            return await place.store.getsize(place.path) or NO_FILE
        except FileNotFoundError:
            return 0

    async def _checksum(self, chunk: Chunk) -> int:
        data = await self._at(chunk).get()
        return 0 if data is None else _crc32(data)


def _crc32(data: Buffer) -> int:
    return zlib.crc32(data.as_buffer_like())
