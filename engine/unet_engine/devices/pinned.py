"""Page-locked host memory that is taken and given back without ever being freed: the device copies to and from nothing
else.

Page-locking is slow, so what a run will need is locked beforehand (`lock`), by a thread of its own, and who takes a
piece that is to come waits for it. A piece is given back when the last array that looks into it is gone, whichever
thread held it. Pools grow until they hold what is in use at the same time, and no further, so a run allocates as much
in its first blocks as in a thousand more.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.devices.base import Device, Memory, Region, host_array
from unet_engine.plan.pinned_memory import fits, rounded

Array = npt.NDArray[Any]


class PinnedPool:
    """Pieces of page-locked memory of one device."""

    def __init__(self, device: Device, what: str) -> None:
        self.device, self._what = device, what
        self._changed = threading.Condition()
        self._free: list[Memory] = []
        self._coming: list[int] = []
        """Bytes of pieces that somebody is about to lock."""
        self._closed = False

    def expect(self, size: int) -> None:
        """A piece of `size` bytes will be locked."""
        with self._changed:
            self._coming.append(size)

    def lock(self, size: int) -> bool:
        """Lock a piece that was expected; False where the pool is closed. Raises `BackendError` where there is no
        memory for it."""
        if self._closed:
            return False
        memory = self.device.pinned(size, self._what)
        with self._changed, suppress(ValueError):
            self._coming.remove(size)
        self.give(memory)
        return True

    def expect_no_more(self) -> None:
        """Whoever waits for a piece that was expected goes on, and locks its own."""
        with self._changed:
            self._coming.clear()
            self._changed.notify_all()

    def take(self, size: int) -> Piece:
        """A piece of at least `size` bytes: the smallest that is free and no more than twice as large, else one that is
        about to come, else a new one."""
        with self._changed:
            while True:
                fitting = [memory for memory in self._free if fits(size, memory.size)]
                if fitting:
                    memory = min(fitting, key=lambda m: m.size)
                    # by identity: memories may compare equal
                    self._free = [m for m in self._free if m is not memory]
                    return Piece(self, memory, size)
                if not any(fits(size, coming) for coming in self._coming):
                    break
                self._changed.wait()
        return Piece(self, self.device.pinned(rounded(size), self._what), size)

    def give(self, memory: Memory) -> None:
        with self._changed:
            if not self._closed:
                self._free.append(memory)
                self._changed.notify_all()
                return
        self.device.free(memory)

    def close(self) -> None:
        """Free what nobody uses; what is still in use is freed when it is given back."""
        with self._changed:
            self._closed = True
            free, self._free = self._free, []
            self._coming.clear()
            self._changed.notify_all()
        for memory in free:
            self.device.free(memory)


class Piece:
    """Some pinned memory in use, for as long as this or an array of it lives."""

    def __init__(self, pool: PinnedPool, memory: Memory, size: int) -> None:
        self._pool, self.memory, self.device = pool, memory, pool.device
        self.region = Region(memory, 0, size)

    def array(self, shape: tuple[int, ...], dtype: str, start: int = 0) -> Array:
        """Part of it as an array that keeps the piece."""
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        flat = host_array(self.memory, self)
        return flat[start : start + count].view(dtype).reshape(shape)

    def __del__(self) -> None:
        if not sys.is_finalizing():  # the system takes it all back
            self._pool.give(self.memory)


def piece_of(array: Array, device: Device) -> Piece | None:
    """The piece of `device` that begins with `array`, which is C-contiguous; None where it lies elsewhere."""
    owner = piece_under(array, device)
    if owner is None or not array.flags.c_contiguous:
        return None
    return owner if array.ctypes.data == owner.region.address else None


def piece_under(array: Array, device: Device) -> Piece | None:
    """The piece of `device` that `array` is a view of; None where it lies elsewhere."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    owner = getattr(base, "owner", None)
    return owner if isinstance(owner, Piece) and owner.device is device else None
