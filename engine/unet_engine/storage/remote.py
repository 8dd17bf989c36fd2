"""What a store over a network is to zarr: asked patiently, and never for more than there can be."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.common import concurrent_map
from zarr.storage import WrapperStore

from unet_engine.storage.patience import patiently

LONGEST_METADATA = 2**26
"""Bytes. Those of all arrays of a large plate, consolidated, have half of it; read, they take many times as much."""
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
AT_ONCE = 16
"""Ranges of one object that are asked for at once."""

CHUNKS = 32
"""Chunks of a volume that are asked for at once, where there is room to keep them: those of a block then come in one or
two rounds, however long an answer takes."""

_TRIES = 3
"""Times that metadata are asked for again that came and were none."""

T = TypeVar("T")


class Opened(Protocol):
    """How a store of zarr's is opened; it is opened again where its credentials were refused."""

    def __call__(self) -> Store: ...


class Remote(WrapperStore[Any]):  # type: ignore[misc]
    """A store of zarr's behind a network, each request of which is asked for `patiently`."""

    _store: Any

    def __init__(self, store: Store, url: str, opened: Opened | None = None) -> None:
        """url: what is at the root of `store`, as people are told; opened: gives `store` anew"""
        super().__init__(store)
        self.url, self._opened = url.rstrip("/"), opened

    def _with_store(self, store: Store) -> Remote:
        return Remote(store, self.url, self._opened)

    def _renew(self) -> None:
        if self._opened:
            self._store = self._opened().with_read_only(self._store.read_only)

    async def _ask(self, key: str, ask: Callable[[], Awaitable[T]]) -> T:
        return await patiently(ask, located(self.url, key), self._renew)

    async def ask(self, key: str, ask: Callable[[Any], Awaitable[T]]) -> T:
        """What `ask` makes of the store itself, patiently; `key` is what it is about."""
        return await self._ask(key, lambda: ask(self._store))

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        found = await self._ask(key, lambda: self._store.get(key, prototype, byte_range))
        for _ in range(_TRIES):
            if found is None or byte_range is not None or not is_metadata(key) or _is_json(found):
                break
            # a body that was cut off where its length was taken; what is really so comes so again
            found = await self._ask(key, lambda: self._store.get(key, prototype))
        return found

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> list[Any]:
        asked = [(key, prototype, span) for key, span in key_ranges]
        return list(await concurrent_map(asked, self.get, AT_ONCE))

    async def _get_many(self, requests: Iterable[tuple[str, Any, Any]]) -> AsyncIterator[tuple[str, Any]]:
        for key, prototype, span in requests:
            yield key, await self.get(key, prototype, span)

    async def exists(self, key: str) -> bool:
        return bool(await self._ask(key, lambda: self._store.exists(key)))

    async def getsize(self, key: str) -> int:
        return int(await self._ask(key, lambda: self._store.getsize(key)))

    async def set(self, key: str, value: Any) -> None:
        await self._ask(key, lambda: self._store.set(key, value))

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        await self._ask(key, lambda: self._store.set_if_not_exists(key, value))

    async def delete(self, key: str) -> None:
        await self._ask(key, lambda: self._store.delete(key))

    async def delete_dir(self, prefix: str) -> None:
        await self._ask(prefix, lambda: self._store.delete_dir(prefix))

    async def _set_many(self, values: Iterable[tuple[str, Any]]) -> None:
        await concurrent_map(list(values), self.set, AT_ONCE)

    async def is_empty(self, prefix: str) -> bool:
        return bool(await self._ask(prefix, lambda: self._store.is_empty(prefix)))

    def list(self) -> AsyncIterator[str]:
        return self._listed("", self._store.list)

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self._listed(prefix, lambda: self._store.list_prefix(prefix))

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self._listed(prefix, lambda: self._store.list_dir(prefix))

    async def _listed(self, prefix: str, names: Callable[[], AsyncIterator[str]]) -> AsyncIterator[str]:
        async def whole() -> Any:
            return [name async for name in names()]

        for name in await self._ask(prefix, whole):
            yield name


def located(root: str, key: str) -> str:
    """The URL of what is called `key` below `root`: before what stands behind its ``?``."""
    place, mark, query = root.partition("?")
    return f"{place.rstrip('/')}/{key}".rstrip("/") + mark + query


async def concurrent(items: Iterable[Any], ask: Callable[..., Awaitable[T]]) -> list[T]:
    """What `ask` gives for each of `items`, tuples of its arguments; several are asked for at once."""
    return list(await concurrent_map(list(items), ask, AT_ONCE))


def _is_json(data: Any) -> bool:
    try:
        json.loads(data.to_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def is_metadata(key: str) -> bool:
    return key.rpartition("/")[2] in METADATA


def too_long(key: str) -> OSError:
    return OSError(errno.EFBIG, f"{key} has more than {LONGEST_METADATA:,} bytes, and no metadata have")


def spanned(byte_range: Any, size: int) -> tuple[int, int]:
    """The bytes from and to that `byte_range` means of an object of `size` bytes."""
    if isinstance(byte_range, RangeByteRequest):
        return min(byte_range.start, size), min(byte_range.end, size)
    if isinstance(byte_range, OffsetByteRequest):
        return min(byte_range.offset, size), size
    if isinstance(byte_range, SuffixByteRequest):
        return max(0, size - byte_range.suffix), size
    return 0, size
