"""How voxels of Zarr arrays (v2 and v3) are read, from a local disk or from behind a URL."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync
from zarr.storage import StorePath

from unet_engine.errors import InputError, of_store
from unet_engine.paths import is_local
from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.profiling.stages import DECODE, READ, READ_DECODE
from unet_engine.storage import archives, stores
from unet_engine.storage.absences import Absences
from unet_engine.storage.bounded import bounded
from unet_engine.storage.busy import BusyStore
from unet_engine.storage.codecs import is_native, missing_codec, native_codecs, own_codecs
from unet_engine.storage.kept import NEVER, Kept
from unet_engine.storage.tokens import token
from unet_engine.storage.vetting import Vetting
from unet_engine.volumes.base import Array, Selection, StoredVolume
from unet_engine.volumes.held import Held
from unet_engine.volumes.linear import Linear
from unet_engine.volumes.witness import Witness, changed_since


def with_own_codecs(place: StorePath) -> zarr.Array:
    """The array at `place`, decoded by zarr's own codecs, which are asked for no more than a chunk can have."""
    with own_codecs():
        return bounded(zarr.open_array(place, mode="r"))


_HELD = " (all of which had been read before that, so that these blocks are of what was there then)"
_FEW = 8
"""Chunks of which fewer say nothing of what others take packed."""
_TRIES = 4
"""Times that a chunk is asked for that came and could not be decoded."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ZarrVolume(StoredVolume):
    """Read by chunks, or by the inner chunks of shards.

    Reading and decoding are told apart as far as they can be. The native codecs of local arrays do both in one call: of
    some calls the stored bytes are fetched beforehand, which is the reading, so that the call itself finds them in
    memory and decodes. What zarr's own codecs read is timed at the store, for every call; fetching and decoding overlap
    there, and counts as reading while anything is under way.
    """

    array: zarr.Array
    witness: Witness
    linear: Linear
    """What stored numbers stand for."""
    _reads: Fetching | None = None
    """How often a run reads a chunk (shard, if sharded), and when, where that is known."""
    _held: Held = field(default_factory=Held)
    """All of the array, where it is small, on a local disk; the same for whatever is picked of it."""

    remedy = "restore the chunk, or delete it to have it read as the fill value"

    @property
    def has_native_codecs(self) -> bool:
        """Whether chunks are decoded by the native pipeline rather than zarr's own."""
        return is_native(self.array)

    @property
    def drawback(self) -> str | None:
        if self.has_native_codecs or not is_local(self.path):
            return None
        return f"{self.path} is decoded by zarr's own codecs, which are slower: the native ones cannot read it"

    def facts(self) -> dict[str, Any]:
        general = super().facts()
        size, shards = general.pop("bytes"), self.array.shards
        return {
            "zarr_format": self.array.metadata.zarr_format,
            **general,
            "shards": list(shards) if shards else None,
            "bytes": size,
        }

    # --- reading ---

    def stored(self, selection: Selection) -> Array:
        return self.linear(self._numbers(selection))

    def _numbers(self, selection: Selection) -> Array:
        if not self._is_certain(selection):
            return np.asarray(self._with_own_codecs[selection])
        try:
            with native_codecs():
                return np.asarray(self.array[selection])
        except Exception as error:
            if not self.has_native_codecs:
                return self._read_again(self.array, selection, error)
            # what the native codecs take for damaged may be none to zarr's own, e.g. bytes behind the data of a chunk
            with suppress(Exception):
                return np.asarray(self._with_own_codecs[selection])
            raise

    def _is_certain(self, selection: Selection) -> bool:
        """Whether the codecs that `array` is opened with can be given the chunks in `selection`: zarr's own always, the
        native ones where it is certain what these unpack to.

        Raises `OSError` where a chunk is there and no file: a folder would read as the fill value, and whoever opens a
        pipe waits for ever; and `ValueError` where one is certain to be none. On a local disk alone, where it is one
        `stat` and one small read for each.
        """
        root = stores.file_of(self.array.store_path)
        if root is None:
            return True
        units = self.array.shards or self.array.chunks
        spans = [part.indices(size)[:2] for part, size in zip(selection, self.stored_shape, strict=True)]
        grid = [range(lo // unit, -(-hi // unit)) for (lo, hi), unit in zip(spans, units, strict=True)]
        folder, key, vetting = f"{root}/", self.array.metadata.encode_chunk_key, self._vetting
        for index in itertools.product(*grid):
            place = folder + key(index)
            with suppress(FileNotFoundError, NotADirectoryError):
                if not self.has_native_codecs:
                    vetting.check(place)
                elif not vetting.certain(place, list(map(_inside, index, units, spans))):
                    return False
        return True

    @cached_property
    def _vetting(self) -> Vetting:
        return Vetting(self.array)

    @cached_property
    def _with_own_codecs(self) -> zarr.Array:
        return with_own_codecs(self.array.store_path)

    def _blamed(self, what: str, error: Exception) -> InputError:
        if missing := missing_codec(error):
            return InputError(f"{self.path} cannot be read: {missing}")
        return super()._blamed(what, error)

    # --- what is kept of a store over a network ---

    @cached_property
    def _kept(self) -> Kept | None:
        store = self.array.store_path.store
        inner = store._store if isinstance(store, Absences) else None
        return inner if isinstance(inner, Kept) else None

    @property
    def units(self) -> tuple[int, ...] | None:
        if self._kept is None:
            return None
        return self.along(self.array.shards or self.array.chunks)

    @property
    def fetches(self) -> int:
        return self._kept.fetched if self._kept else 0

    @property
    def packed(self) -> float:
        """Of the longer half of the chunks that came so far: where there is air, others take more."""
        lengths = sorted(self._kept.lengths) if self._kept else []
        if len(lengths) < _FEW:
            return 1.0
        longer = lengths[len(lengths) // 2 :]
        unpacked = prod(self.array.chunks) * np.dtype(self.array.dtype).itemsize
        return min(1.0, float(sum(longer) / (len(longer) * unpacked)))

    def keep(self, most: int, reads: Fetching | None) -> None:
        if self._kept:
            self._kept.limit(most)
            self._left.clear()
            object.__setattr__(self, "_reads", reads)

    @cached_property
    def _left(self) -> dict[tuple[int, ...], int]:
        """How often chunks will be read again, of those that were."""
        return {}

    def fetch(self, box: Box) -> None:
        with suppress(Exception):
            self._gather(box)

    def _gather(self, box: Box) -> None:
        """The same, all chunks at once. Of shards nothing: which of their parts are meant, their index says."""
        if self._kept is None or self.array.shards:
            return
        keys = [self._key_at(key) for key in self._stored_keys(box)]
        if len(keys) * prod(self.array.chunks) * np.dtype(self.array.dtype).itemsize <= self._kept.most:
            sync(self._kept.gather(keys))

    def _using(self, box: Box) -> list[str]:
        """Have kept what later blocks read of what is about to be read, and return the keys of what none does."""
        if self._kept is None or self._reads is None:
            return []
        units, due, over = self.along(self.array.shards or self.array.chunks), dict[str, int](), list[str]()
        cells = [(tuple(l // u for l, u in zip(cell.lo, units, strict=True)), cell) for cell in box.cells(units)]
        now = self._reads.now([chunk for chunk, _ in cells], self._left) if self._reads.shared else None
        for chunk, cell in cells:
            uses = self._reads.uses(chunk)
            left = self._left.get(chunk, uses) - 1
            while now is not None and left > 0 and self._reads.due(chunk, uses - left) <= now:
                left -= 1  # by another worker
            self._left[chunk] = left
            keys = map(self._key_at, self._stored_keys(cell))
            if left > 0:
                due |= dict.fromkeys(keys, self._reads.due(chunk, uses - left))
            else:
                del self._left[chunk]
                over += keys
        self._kept.expect(due | dict.fromkeys(over, NEVER), now)
        return over

    def _key_at(self, key: str) -> str:
        return f"{self.array.store_path.path}/{key}".lstrip("/")

    # --- what is held of a small volume ---

    def hold(self, most: int) -> None:
        if is_local(self.path):
            self._held.allow(most)

    @property
    def held_bytes(self) -> int:
        return self._bytes if self._held.takes(self._bytes) else 0

    @property
    def _bytes(self) -> int:
        return prod(self.stored_shape) * self.stored_dtype.itemsize

    def _whole(self) -> Array:
        return self.stored(tuple(slice(0, n) for n in self.stored_shape))

    def _of_held(self, box: Box, recorder: Recorder) -> Array | None:
        """What `read` gives, where all is held."""
        with recorder.span(READ_DECODE):
            held = self._held.voxels(self._bytes, self._whole)
            # a copy: who reads may write to what it is given
            voxels = None if held is None else self._oriented(np.array(held[self._selection(box)]))
        if voxels is not None:
            self.confirm()
        return voxels

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        if self.held_bytes and (found := self._of_held(box, recorder)) is not None:
            return found
        before = self._absences
        try:
            self._gather(box)  # before it is said which of it is needed no more
        except Exception as error:
            raise self._unreadable(box, error) from error
        over = self._using(box)
        voxels = self._read(box, recorder)
        if self._kept and over:
            self._kept.drop(over)
        if before is None or self._absences != before:
            self.confirm()
        return voxels

    @property
    def _absences(self) -> int | None:
        """Chunks that were asked for and not found so far; None where that is not known."""
        store = self.array.store_path.store
        return store.count if isinstance(store, Absences) else None

    def changed(self, box: Box, since: float) -> str | None:
        if self.witness.grown:
            return f"the shape of {self.path}"
        archive, file = archives.file_of(self.array.store_path), stores.file_of(self.array.store_path)
        if archive:
            root, keys = str(archive.parent), [archive.name]
        elif file:
            root, keys = str(file), list(self._stored_keys(box))
        else:
            return None
        found = changed_since(root, keys, since)
        whole = self._held.since
        early = changed_since(root, keys, since, whole) if found and whole is not None else found
        if not found:
            return None
        name = str(archive) if archive else f"chunk {early or found} of {self.path}"
        return name if early else name + _HELD

    def token(self, box: Box) -> tuple[str, str] | None:
        if stores.file_of(self.array.store_path):
            return None
        middle = tuple((lo + hi) // 2 for lo, hi in zip(box.lo, box.hi, strict=True))
        key = next(self._stored_keys(Box(middle, tuple(x + 1 for x in middle))))
        found = token(self.array.store_path / key)
        return (f"chunk {key} of {self.path}", found) if found else None

    def confirm(self) -> None:
        self.witness.confirm()

    def _unreadable(self, box: Box, error: Exception) -> InputError:
        if lost := of_store(error):  # it was asked often enough
            return InputError(f"{self.path} cannot be read: {lost.of(self.path)}; {lost.advice}")
        self.confirm()  # nothing is wrong with a chunk of a volume that is gone
        return super()._unreadable(box, error)

    def _read(self, box: Box, recorder: Recorder) -> Array:
        if recorder.recording and not (self.has_native_codecs and is_local(self.path)):
            return self._read_at_store(box, recorder)
        # of a shard only some chunks may be wanted, and where in it they lie is the codec's own knowledge
        if self.array.shards is None and recorder.takes_apart(self.path):
            with recorder.span(READ):
                self._fetch(box)
            with recorder.span(DECODE):
                return self.voxels(box, self.stored)
        return super().read(box, recorder)

    def _fetch(self, box: Box) -> None:
        """Read the stored bytes of all chunks that meet `box`, and let go of them. On a local disk alone."""
        for key in self._stored_keys(box):
            file = stores.file_of(self.array.store_path / key)
            if file and file.is_file():
                with suppress(OSError), file.open("rb", buffering=0) as opened:
                    while opened.read(2**22):
                        pass

    def _read_at_store(self, box: Box, recorder: Recorder) -> Array:
        store, array = self._at_store
        before, begun = store.busy, time.perf_counter_ns()
        try:
            return self.voxels(box, lambda selection: self._timed(array, selection))
        finally:
            ended = time.perf_counter_ns()
            # which moments were which is not kept: all of the reading is shown first
            middle = begun + min(ended - begun, store.busy - before)
            recorder.add(READ, begun, middle)
            recorder.add(DECODE, middle, ended)

    def _timed(self, array: zarr.Array, selection: Selection) -> Array:
        self._is_certain(selection)  # raises where nothing of it must be opened
        try:
            return self.linear(np.asarray(array[selection]))
        except Exception as error:
            return self.linear(self._read_again(array, selection, error))

    def _read_again(self, array: zarr.Array, selection: Selection, error: Exception) -> Array:
        """`selection`, which could not be decoded, asked for once more from a store over a network, chunk by chunk: one
        may have come short, with a length that said so. Raises `error` where it is no better."""
        if is_local(self.path) or of_store(error):
            raise error
        spans = [part.indices(size)[:2] for part, size in zip(selection, self.stored_shape, strict=True)]
        box = Box(tuple(lo for lo, _ in spans), tuple(hi for _, hi in spans))
        found = np.empty(box.shape, np.dtype(array.dtype))
        if self._kept:
            self._kept.clear_all()
        for cell in box.cells(self.stored_chunks):
            found[cell.relative_to(box.lo).slices()] = self._chunk(array, cell.slices(), error)
        return found

    def _chunk(self, array: zarr.Array, selection: Selection, error: Exception) -> Array:
        for _ in range(_TRIES):
            with suppress(ValueError, RuntimeError, TypeError):
                return np.asarray(array[selection])
            if self._kept:
                self._kept.clear_all()
        raise error

    @cached_property
    def _at_store(self) -> tuple[BusyStore, zarr.Array]:
        """The array once more, through a store that takes times."""
        place = self.array.store_path
        store = BusyStore(place.store)
        return store, with_own_codecs(StorePath(store, place.path))

    # --- what is there ---

    def has_data(self, box: Box) -> bool:
        """Whether any stored chunk (shard, if sharded) meets `box`; missing ones read as the fill value."""
        try:
            found = any(stores.holds(self.array.store_path / key) for key in self._stored_keys(box))
        except Exception as error:  # a disk that fails, a store that is not reached
            raise self._unreadable(box, error) from error
        if not found:
            self.confirm()
        return found

    def _stored_keys(self, box: Box) -> Iterator[str]:
        """Where the chunks (shards, if sharded) that meet `box` are stored if they are, below the array."""
        units = self.array.shards or self.array.chunks
        step = self.along(units)
        channels, time = range(1), 0
        if "c" in self.axes:
            at = self.axes.index("c")
            first, stop, _ = self.channel_span.indices(self.stored_shape[at])
            channels = range(first // units[at], -(-stop // units[at]))
        if "t" in self.axes:
            time = self.time // units[self.axes.index("t")]
        for cell in box.cells(step):
            corner: dict[str, int] = {"t": time} | {
                a: l // s for a, l, s in zip(self.spatial, cell.lo, step, strict=True)
            }
            for c in channels:
                index = tuple(corner.get(a, c if a == "c" else 0) for a in self.axes)
                yield str(self.array.metadata.encode_chunk_key(index))


def _inside(number: int, unit: int, span: tuple[int, int]) -> tuple[int, int]:
    """What of `span` lies in chunk `number` of an axis, counted from where that begins."""
    return max(span[0] - number * unit, 0), min(span[1] - number * unit, unit)
