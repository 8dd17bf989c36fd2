"""What a store was asked for and does not hold: told by its own answers, so that nobody has to ask twice."""

from __future__ import annotations

from typing import Any

from zarr.storage import WrapperStore


class Absences(WrapperStore[Any]):  # type: ignore[misc]
    """A store that counts what it was asked for and does not hold. Nothing else is paid for it."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.count = 0

    async def get(self, *args: Any, **keywords: Any) -> Any:
        found = await self._store.get(*args, **keywords)
        self.count += found is None
        return found

    async def get_partial_values(self, *args: Any, **keywords: Any) -> Any:
        found = await self._store.get_partial_values(*args, **keywords)
        self.count += any(value is None for value in found)
        return found
