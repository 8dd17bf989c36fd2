"""Halos that never leave the device: packed by the out stream, merged by the out stream, so what is given back may be
packed into again without an event."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence

from unet_engine.devices.base import Device, Region
from unet_engine.errors import BackendError
from unet_engine.plan.kept_halos import Place, Shelves
from unet_engine.plan.plan import Index


class KeptMemory:
    """Device memory for halos that wait, in shelves by how long they do."""

    def __init__(self, device: Device, order: Sequence[int], sizes: Sequence[int]) -> None:
        """As `Shelves`. Where somebody else has taken the memory by now, halos pass through the host."""
        self._device, self._memory = device, None
        try:
            self._memory = device.allocate(sum(sizes), "halos that wait") if sum(sizes) else None
        except BackendError:
            sizes = ()
        self._shelves = Shelves(order, sizes)
        self._given: deque[Place] = deque()
        """Given back and not looked at yet: a halo may be dropped anywhere, even inside a call of this class."""

    def take(self, source: Index, target: Index, size: int) -> Kept | None:
        """Room for a halo of `size` bytes; None where it has to wait on the host. Call from one thread at a time."""
        while self._given:
            self._shelves.give(self._given.popleft())
        place = self._shelves.take(source, target, size) if self._memory else None
        if place is None or self._memory is None:
            return None
        return Kept(self._given, place, Region(self._memory, place.start, size))

    def close(self) -> None:
        if self._memory:
            self._device.free(self._memory)
        self._memory = None


class Kept:
    """A halo's room on the device, until it is released or dropped."""

    def __init__(self, given: deque[Place], place: Place, region: Region) -> None:
        self._given, self._place, self.region = given, place, region
        self._held = True

    def release(self) -> None:
        """All that reads it was put on the out stream."""
        if self._held:
            self._held = False
            self._given.append(self._place)

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.release()
