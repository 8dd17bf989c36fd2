"""The device memory of one pipeline, allocated once, and the events that say when each piece of it may be used
again."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from unet_engine.devices.base import Device, Event, Memory, Region
from unet_engine.plan.device_memory import FLAG, RAW_SLOTS, SUMS_SLOTS, Extents, aligned, raw_bytes
from unet_engine.plan.memory import Sizes


@dataclass
class RawSlot:
    """A raw block and its tables on the device."""

    raw: Region
    tables: Region
    copied: Event
    """Both are there."""
    free: Event
    """The last kernel that reads them is over."""


@dataclass
class SumsSlot:
    """The sums of one block."""

    sums: Region
    ready: Event
    """All windows were added."""
    free: Event
    """The last kernel that reads them is over."""


@dataclass(frozen=True)
class Scratch:
    """Bytes of each piece that one kernel leaves for the next."""

    grid: Sequence[int] = ()
    """On the way to the grid of the output."""
    image: Sequence[int] = ()
    """On the way to that of windows."""


class DeviceBuffers:
    """All that `device_plan.device_memory` counts but the network."""

    def __init__(
        self, device: Device, largest: Extents, sizes: Sizes, constants: int, scratch: Scratch = Scratch()
    ) -> None:
        """constants: bytes that every block uses."""
        self._device = device
        self.packed_free: Event
        """Packed halos are copied down, and their memory may be packed into again."""
        self.halos_free: Event
        """Halos that came up are merged."""
        self.out_free: Event
        """Finished voxels are copied down."""
        self._memory: list[Memory] = []
        try:
            self._raw = deque(self._raw_slot(largest, sizes) for _ in range(RAW_SLOTS))
            self._sums = [self._sums_slot(largest, sizes) for _ in range(SUMS_SLOTS)]
            self.halos_out = self._allocate(aligned(largest.sums * sizes.sums), "outgoing halos")
            self.halos_in = self._allocate(max(1, aligned(largest.halos_in * sizes.sums)), "incoming halos")
            self.out = self._allocate(FLAG + aligned(largest.write * sizes.out), "finished voxels")
            self.constants = self._allocate(constants, "constants")
            self.grid_scratch = [self._allocate(size, "sums between two grids") for size in scratch.grid]
            self.image_scratch = [self._allocate(size, "voxels between two grids") for size in scratch.image]
            self.image = self._allocate(max(1, aligned(largest.read * sizes.raw)), "voxels") if sizes.scan else None
            """A block on the grid of windows, where it is made on the device; of one stream alone."""
            self.packed_free, self.halos_free, self.out_free = (device.event() for _ in range(3))
        except BaseException:
            self.close()
            raise
        self._freed = threading.Condition()
        self._broken = False

    def _allocate(self, size: int, what: str) -> Region:
        memory = self._device.allocate(size, what)
        self._memory.append(memory)
        return Region.of(memory)

    def _raw_slot(self, largest: Extents, sizes: Sizes) -> RawSlot:
        raw = self._allocate(max(1, aligned(raw_bytes(largest, sizes))), "raw voxels")
        tables = self._allocate(largest.table_bytes, "tables")
        return RawSlot(raw, tables, self._device.event(), self._device.event())

    def _sums_slot(self, largest: Extents, sizes: Sizes) -> SumsSlot:
        return SumsSlot(
            self._allocate(aligned(largest.sums * sizes.sums), "sums"), self._device.event(), self._device.event()
        )

    def next_raw(self) -> RawSlot:
        """The raw slot that was used longest ago; what is put into it must wait for its `free`."""
        self._raw.rotate(-1)
        return self._raw[0]

    def take_sums(self) -> SumsSlot:
        """A slot for the sums of a block; waits until one was given back."""
        with self._freed:
            self._freed.wait_for(lambda: self._sums)
            return self._sums.pop(0)

    def give_sums(self, slot: SumsSlot) -> None:
        """Give it back; its `free` says from when on the device is through with it."""
        with self._freed:
            self._sums.append(slot)
            self._freed.notify()

    def close(self) -> None:
        for memory in self._memory:
            self._device.free(memory)
        self._memory = []
