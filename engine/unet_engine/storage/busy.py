"""How long a store takes: what zarr's own codecs fetch overlaps with decoding, so it is timed at the store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zarr.storage import WrapperStore


class BusyStore(WrapperStore[Any]):  # type: ignore[misc]
    """Counts the time while any request is under way. All requests of zarr come from its one event loop."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.busy = 0
        """Nanoseconds so far."""
        self._open, self._since = 0, 0

    @contextmanager
    def _under_way(self) -> Iterator[None]:
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
