"""What was fetched over a network and is needed again, kept as it came: packed."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.storage import WrapperStore

from unet_engine.storage.remote import CHUNKS, is_metadata
from unet_engine.units import parse_bytes

CACHE = "UNET_ENGINE_STORE_CACHE"
"""Environment variable: bytes that a volume may be kept of, e.g. 256MiB; 0 for no more than a few blocks take."""
NEVER = 2**62
"""When something is needed that is not any more."""
SEEN = 1024
"""Lengths that are remembered, of what came first."""
BEFORE = 2**26
"""Bytes that are kept before there is a plan that says what is needed again."""


def allowed(most: int) -> int:
    """Bytes that may be kept, `most` unless the environment says less or more."""
    try:
        return parse_bytes(os.environ[CACHE])
    except (KeyError, ValueError):
        return most


def _holds_voxels(byte_range: Any) -> bool:
    """Whether that is a chunk, or a part of a shard behind its beginning, where an index may be as at its end."""
    return byte_range is None or (isinstance(byte_range, RangeByteRequest) and byte_range.start > 0)


class Kept(WrapperStore[Any]):  # type: ignore[misc]
    """A store that keeps what it gave, up to `most` bytes. Where it is told when things are needed next, what is needed
    last goes first (L. A. Belady, 1966), else what was longest not asked for; and what is needed no more at once."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.most = BEFORE
        self.fetched = 0
        """Objects, or ranges of them, that were asked of the store and there."""
        self.lengths: list[int] = []
        """Bytes of what came first, but for indices of shards."""
        self._found: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._spans: dict[str, set[str]] = {}
        self._due: dict[str, int] = {}
        self._last: list[tuple[int, str]] = []
        """A heap of all that was said of when things are needed, the last first; what does not hold any more too."""
        self._bytes = 0
        self._before: int | None = None
        """Bytes that were kept as it was first said how many may be."""
        self._now = 0
        self._first: list[tuple[int, str]] = []
        """The same as `_last`, the first first, of what may never be read again."""
        self._asked: dict[tuple[str, str], asyncio.Event] = {}
        """What is under way. All is asked on the one loop of zarr's."""
        self._absent: set[str] = set()
        """What was gathered and is not there."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (self._store,)  # another process keeps what it fetches itself

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if key in self._absent:
            self._absent.discard(key)
            return None
        name = key, repr(byte_range)
        if (asked := self._asked.get(name)) and name not in self._found:
            await asked.wait()  # who asks at the same moment is given the same
        with self._lock:
            if name in self._found:
                self._found.move_to_end(name)
                return self._found[name]
        self._asked[name] = asked = asyncio.Event()
        try:
            found = await self._store.get(key, prototype, byte_range)
            if found is not None and not is_metadata(key):
                self.fetched += 1
                if len(self.lengths) < SEEN and _holds_voxels(byte_range):
                    self.lengths.append(len(found))
                self._keep(name, found)
        finally:
            self._asked.pop(name, None)
            asked.set()
        return found

    async def gather(self, keys: Sequence[str]) -> None:
        """Fetch what is not kept yet, all at once. What is absent is told so to whoever asks for it next, once."""

        async def one(key: str) -> None:
            if await self.get(key, default_buffer_prototype()) is None:
                self._absent.add(key)

        await concurrent_map([(key,) for key in keys], one, CHUNKS)

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> list[Any]:
        return [await self.get(key, prototype, span) for key, span in key_ranges]

    def _keep(self, name: tuple[str, str], found: Any) -> None:
        with self._lock:
            if len(found) > self.most or name in self._found:
                return
            self._found[name] = found
            self._spans.setdefault(name[0], set()).add(name[1])
            self._bytes += len(found)
            if key_due := self._due.get(name[0]):
                heappush(self._last, (-key_due, name[0]))
            while self._bytes > self.most:
                self._let_go(self._needed_last())

    def expect(self, due: Mapping[str, int], now: int | None = None) -> None:
        """When keys are needed next, as numbers that grow with time. now: such a number, where they may not be needed at
        all: what was to be by then and was not goes before what is needed last."""
        with self._lock:
            if now is not None:
                self._now = max(self._now, now)
                for key, when in due.items():
                    heappush(self._first, (when, key))
                if len(self._first) > 4 * len(self._due) + 64:
                    self._first = [(when, key) for key, when in self._due.items()]
                    heapify(self._first)
            self._due.update(due)
            for key, when in due.items():
                heappush(self._last, (-when, key))
            if len(self._last) > 4 * len(self._due) + 64:
                self._last = [(-when, key) for key, when in self._due.items()]
                heapify(self._last)

    def _needed_last(self) -> tuple[str, str]:
        while self._first and self._first[0][0] < self._now:
            when, key = heappop(self._first)
            if key in self._spans and self._due.get(key) == when:
                return key, next(iter(self._spans[key]))
        while self._last:
            when, key = self._last[0]
            if key in self._spans and self._due.get(key) == -when:
                return key, next(iter(self._spans[key]))
            heappop(self._last)
        return next(iter(self._found))

    def _let_go(self, name: tuple[str, str]) -> None:
        self._bytes -= len(self._found.pop(name))
        spans = self._spans[name[0]]
        spans.discard(name[1])
        if not spans:
            del self._spans[name[0]]
            self._due.pop(name[0], None)

    def limit(self, most: int) -> None:
        """Keep so many bytes from now on, beside what is kept already: those are part of what the process was found to
        take."""
        with self._lock:
            self._before = self._bytes if self._before is None else self._before
            self.most = most + self._before
            self._now, self._first = 0, []

    def clear_all(self) -> None:
        """What came was wrong, and shall be fetched again."""
        with self._lock:
            self._found.clear()
            self._spans.clear()
            self._due.clear()
            self._last.clear()
            self._bytes = 0

    def drop(self, keys: Iterable[str]) -> None:
        """Nobody needs these any more."""
        with self._lock:
            for key in keys:
                self._due.pop(key, None)
                for span in list(self._spans.get(key, ())):
                    self._let_go((key, span))
