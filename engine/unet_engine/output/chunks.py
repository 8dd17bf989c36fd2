"""Chunks that change from absent to complete, and never otherwise.

Several processes may write the same block: a worker that was thought lost may still be running. They write the same
bytes, so all that matters is that no chunk is ever removed, emptied or half-written. Chunks are encoded into a scratch
array that holds nothing yet, so none is ever read either, and then each is put to its place at once: by a rename on a
local disk, by one request on a remote store.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
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
from zarr.storage import LocalStore, MemoryStore

from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.profiling.stages import ENCODE, ENCODE_WRITE, OTHER, WRITE
from unet_engine.storage.codecs import fast_codecs

METADATA = "zarr.json"
PUTS = 16
"""Requests to a remote store that are under way at once."""


class Chunks(ABC):
    """Writes whole chunks of `array`. Chunks of nothing but the fill value are not stored. Safe to use from several
    threads."""

    def __init__(self, array: zarr.Array, recorder: Recorder = PLAIN) -> None:
        self._array, self._recorder = array, recorder

    @abstractmethod
    def write(self, target: tuple[slice, ...], values: npt.NDArray[Any]) -> None:
        """Write `values` at `target`, which begins and ends where chunks or the array do. Nothing is written where this
        raises, or some chunks whole. Raises `FileNotFoundError` where the journal that the scratch arrays lie in was
        taken away."""

    def _scratch_metadata(self) -> bytes:
        """Those of the array, but with chunks named ``c.b.a``, so that a folder of them has no folders."""
        metadata = json.loads(self._array.metadata.to_buffer_dict(default_buffer_prototype())[METADATA].to_bytes())
        metadata["chunk_key_encoding"] = {"name": "v2", "configuration": {"separator": "."}}
        return json.dumps(metadata).encode()

    def _key(self, name: str) -> str:
        """Where the chunk that is called `name` in a scratch array belongs in the array."""
        return str(self._array.metadata.encode_chunk_key(tuple(map(int, name.split(".")))))


class LocalChunks(Chunks):
    """Through folders in `stage`, one for every thread that is writing. What a kill leaves in one goes when `stage`
    does.

    The native codecs encode and write in one call. Where times are taken, some blocks are taken apart: their encoded
    bytes are written a second time, which is the writing, and what the call took beyond that was the encoding.
    """

    def __init__(self, array: zarr.Array, folder: Path, stage: Path, recorder: Recorder = PLAIN) -> None:
        super().__init__(array, recorder)
        self._folder, self._stage = folder, stage
        self._idle: SimpleQueue[tuple[Path, zarr.Array]] = SimpleQueue()

    def write(self, target: tuple[slice, ...], values: npt.NDArray[Any]) -> None:
        try:
            place, scratch = self._idle.get_nowait()
        except Empty:
            place, scratch = self._scratch()
        try:
            if self._recorder.takes_apart(str(self._folder)):
                self._encode_apart(place, scratch, target, values)
                with self._recorder.span(WRITE):
                    self._publish(place)
            else:
                with self._recorder.span(ENCODE_WRITE):
                    _encode(scratch, target, values)
                    self._publish(place)
        except BaseException:  # a full disk or an interrupt: half a chunk may lie in it
            shutil.rmtree(place, ignore_errors=True)
            raise
        self._idle.put((place, scratch))

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

    def _publish(self, place: Path) -> None:
        """Move the chunks in `place` to where they belong."""
        # The native codecs make folders that are missing, so this one may be theirs and not ours. From here on no
        # folder is made in the journal: where it is taken away now, the renames fail.
        if not (place / METADATA).exists():
            shutil.rmtree(place, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.removedirs(self._stage)
            raise FileNotFoundError(place)
        for chunk in _chunks_in(place):
            final = self._folder / self._key(chunk.name)
            try:
                chunk.replace(final)
            except FileNotFoundError:
                if not chunk.exists():
                    raise
                final.parent.mkdir(parents=True, exist_ok=True)
                chunk.replace(final)


def _encode(scratch: zarr.Array, target: tuple[slice, ...], values: npt.NDArray[Any]) -> None:
    """Encode `values` into a scratch array in a folder: its chunks become files there."""
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


def _chunks_in(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.name != METADATA]


class RemoteChunks(Chunks):
    """Through memory."""

    def write(self, target: tuple[slice, ...], values: npt.NDArray[Any]) -> None:
        encoded: dict[str, Buffer] = {METADATA: default_buffer_prototype().buffer.from_bytes(self._scratch_metadata())}
        with fast_codecs(str(self._array.store_path)):
            scratch = zarr.open_array(MemoryStore(encoded), mode="r+")
        with self._recorder.span(ENCODE):
            scratch[target] = values
        del encoded[METADATA]
        with self._recorder.span(WRITE):
            self._publish(encoded)

    def _publish(self, encoded: dict[str, Buffer]) -> None:
        """Send the chunks, by their names in the scratch array, to where they belong."""
        put: Callable[[str, Buffer], Any] = self._put
        sync(concurrent_map(list(encoded.items()), put, PUTS))

    async def _put(self, name: str, chunk: Buffer) -> None:
        await (self._array.store_path / self._key(name)).set(chunk)
