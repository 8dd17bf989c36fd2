"""What a worker calls, plain or timed. Plain they are the functions themselves, so a run that is not profiled pays nothing at all.

The native codecs of local arrays read and decode, or encode and write, in one call. There every `SAMPLED`-th call is taken apart: the stored
bytes of its chunks are fetched beforehand, which is the reading, so that the call itself finds them in memory and decodes; the encoded bytes
are written a second time, which is the writing. The other calls are divided as these were. What zarr's own codecs read from and write to a
store is timed at the store, for every call; fetching and decoding overlap there, and counts as reading while anything is under way.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar, cast
from uuid import uuid4

import zarr
from zarr.storage import StorePath, WrapperStore

from unet_engine.backends.base import Backend
from unet_engine.output.chunks import METADATA, LocalChunks
from unet_engine.output.output import Output
from unet_engine.pipeline.job import Array, Halo
from unet_engine.plan.box import Box
from unet_engine.profiling import stages
from unet_engine.profiling.stages import Stages
from unet_engine.stitching import operations
from unet_engine.volumes.zarr_volume import Volume

T = TypeVar("T")

SAMPLED = 8
"""Every so many-th call is taken apart, the first one always."""


def _result(future: Future[Any]) -> Any:
    return future.result()


def _taken(queue: SimpleQueue[Any]) -> Any:
    return queue.get()


@dataclass(frozen=True)
class Tools:
    """The functions whose time is told apart; arguments as those of `unet_engine.stitching.operations` and the classes they come from."""

    gather: Callable[..., None] = operations.gather
    add: Callable[..., None] = operations.add
    add_constant: Callable[..., None] = operations.add_constant
    merge: Callable[..., None] = operations.merge
    labels: Callable[..., None] = operations.labels
    probabilities: Callable[..., None] = operations.probabilities
    logits: Callable[..., None] = operations.logits
    keep: Callable[[Halo], Halo] = Halo.copied
    wait: Callable[[Future[Any]], Any] = _result
    take: Callable[[SimpleQueue[Any]], Any] = _taken


PLAIN = Tools()


def tools(recorder: Stages | None) -> Tools:
    """Those of a run that is profiled by `recorder`, or the plain ones."""
    if recorder is None:
        return PLAIN
    kinds = {
        "gather": stages.GATHER, "add": stages.ADD, "add_constant": stages.ADD, "merge": stages.MERGE, "labels": stages.ACTIVATION,
        "probabilities": stages.ACTIVATION, "logits": stages.ACTIVATION, "keep": stages.MERGE, "wait": stages.WAITING, "take": stages.WAITING,
    }  # fmt: skip
    changed: dict[str, Any] = {name: recorder.timed(stage, getattr(PLAIN, name)) for name, stage in kinds.items()}
    return replace(PLAIN, **changed)


class _TimedBackend:
    """A back end whose `start` and `result` are spans; everything else is its own."""

    def __init__(self, backend: Backend, recorder: Stages) -> None:
        self._backend = backend
        self.input, self.slots = backend.input, backend.slots
        self.start = recorder.timed(stages.COPY, backend.start)
        self.result = recorder.timed(stages.NETWORK, backend.result)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def timed_backend(backend: Backend, recorder: Stages | None) -> Backend:
    return backend if recorder is None else cast(Backend, _TimedBackend(backend, recorder))


# --- reading ---


def timed_volume(volume: Volume, recorder: Stages | None) -> Volume:
    """The same volume; what `read` takes becomes spans."""
    if recorder is None:
        return volume
    same: dict[str, Any] = {field.name: getattr(volume, field.name) for field in fields(volume)}
    if volume.is_local and volume.has_native_codecs:
        return _NativelyDecoded(**same, recorder=recorder, calls=itertools.count())
    store = _TimedStore(volume.array.store_path.store)
    array = zarr.open_array(StorePath(store, volume.array.store_path.path), mode="r")
    return _StoreRead(**same, recorder=recorder, store=store, through=replace(volume, array=array))


@dataclass(frozen=True)
class _NativelyDecoded(Volume):
    recorder: Stages
    calls: itertools.count[int]

    def read(self, box: Box) -> Array:
        # of a shard only some chunks may be wanted, and where in it they lie is the codec's own knowledge
        if self.array.shards is not None or next(self.calls) % SAMPLED:
            with self.recorder.span(stages.READ_DECODE):
                return super().read(box)
        with self.recorder.span(stages.READ):
            self._fetch(box)
        with self.recorder.span(stages.DECODE):
            return super().read(box)

    def _fetch(self, box: Box) -> None:
        """Read the stored bytes of all chunks that meet `box`, and let go of them."""
        place = self.array.store_path
        for key in self.stored_keys(box):
            with (
                contextlib.suppress(OSError),
                Path(place.store.root, (place / key).path).open("rb", buffering=0) as file,
            ):
                while file.read(2**22):
                    pass


@dataclass(frozen=True)
class _StoreRead(Volume):
    recorder: Stages
    store: _TimedStore
    through: Volume
    """The volume as read through `store`; what is there is asked of the store itself."""

    def read(self, box: Box) -> Array:
        track, before = self.recorder.track(), self.store.busy
        begun = time.perf_counter_ns()
        try:
            return self.through.read(box)
        finally:
            ended = time.perf_counter_ns()
            # which moments were which is not kept: all of the reading is shown first
            middle = begun + min(ended - begun, self.store.busy - before)
            track.add(stages.READ, begun, middle)
            track.add(stages.DECODE, middle, ended)


class _TimedStore(WrapperStore[Any]):  # type: ignore[misc]
    """Counts the time during which at least one request is under way. All requests of zarr come from its one event loop."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.busy = 0
        self._open, self._since = 0, 0

    @contextlib.contextmanager
    def _under_way(self) -> Any:
        if not self._open:
            self._since = time.perf_counter_ns()
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self.busy += time.perf_counter_ns() - self._since

    async def get(self, *args: Any, **keywords: Any) -> Any:
        with self._under_way():
            return await self._store.get(*args, **keywords)

    async def get_partial_values(self, *args: Any, **keywords: Any) -> Any:
        with self._under_way():
            return await self._store.get_partial_values(*args, **keywords)


# --- writing ---


def timed_output(output: Output, recorder: Stages | None) -> Output:
    """`output`, changed so that what its chunks take becomes spans."""
    if recorder is None:
        return output
    chunks: Any = output.chunks  # methods of one object are replaced, which no type allows
    if isinstance(output.chunks, LocalChunks):
        timer = _NativelyEncoded(chunks.encode, chunks.publish, recorder)
        chunks.encode, chunks.publish = timer.encode, timer.publish
    else:
        chunks.encode = recorder.timed(stages.ENCODE, chunks.encode)
        chunks.publish = recorder.timed(stages.WRITE, chunks.publish)
    return output


class _NativelyEncoded:
    """Of each block, encoding into the scratch array and moving its chunks to their places; one block in `SAMPLED` taken apart."""

    def __init__(self, encode: Callable[..., None], publish: Callable[..., None], recorder: Stages) -> None:
        self._encode, self._publish, self._recorder = encode, publish, recorder
        self._calls = itertools.count()
        self._apart: set[Path] = set()
        """Scratch arrays whose chunks are taken apart: between `encode` and `publish` of one block."""

    def encode(self, place: Path, scratch: zarr.Array, target: tuple[slice, ...], values: Array) -> None:
        if next(self._calls) % SAMPLED:
            self._apart.discard(place)
            with self._recorder.span(stages.ENCODE_WRITE):
                self._encode(place, scratch, target, values)
            return
        self._apart.add(place)
        begun = time.perf_counter_ns()
        self._encode(place, scratch, target, values)
        ended = time.perf_counter_ns()
        with self._recorder.span(stages.OTHER):
            writing = min(_write_again(place), ended - begun)
        track = self._recorder.track()
        track.add(stages.ENCODE, begun, ended - writing)
        track.add(stages.WRITE, ended - writing, ended)

    def publish(self, place: Path) -> None:
        with self._recorder.span(stages.WRITE if place in self._apart else stages.ENCODE_WRITE):
            self._publish(place)


def _write_again(place: Path) -> int:
    """Nanoseconds that writing what lies in `place` takes once it is encoded. Written beside it and removed."""
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


def _chunks_in(place: Path) -> Sequence[Path]:
    return [path for path in place.iterdir() if path.name != METADATA]
