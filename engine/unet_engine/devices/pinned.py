"""Page-locked host memory that is taken and given back without ever being freed: the device copies to and from nothing
else.

A piece is given back when the last array that looks into it is gone, whichever thread held it. Pools grow until they
hold what is in use at the same time, and no further, so a run allocates as much in its first blocks as in a thousand
more.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.devices.base import Device, Memory, Region, host_array

Array = npt.NDArray[Any]
GRAIN = 2**16
"""Pieces are multiples of so many bytes, so that halos of nearly one size share them."""


class PinnedPool:
    """Pieces of page-locked memory of one device."""

    def __init__(self, device: Device, what: str) -> None:
        self.device, self._what = device, what
        self._lock = threading.Lock()
        self._free: list[Memory] = []
        self._closed = False

    def take(self, size: int) -> Piece:
        """A piece of at least `size` bytes: the smallest that is free and no more than twice as large, else a new
        one."""
        with self._lock:
            fitting = [memory for memory in self._free if size <= memory.size <= max(2 * size, GRAIN)]
            if fitting:
                memory = min(fitting, key=lambda m: m.size)
                # by identity: memories may compare equal
                self._free = [m for m in self._free if m is not memory]
                return Piece(self, memory, size)
        return Piece(self, self.device.pinned(-(-size // GRAIN) * GRAIN, self._what), size)

    def give(self, memory: Memory) -> None:
        with self._lock:
            if not self._closed:
                self._free.append(memory)
                return
        self.device.free(memory)

    def close(self) -> None:
        """Free what nobody uses; what is still in use is freed when it is given back."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
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
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    owner = getattr(base, "owner", None)
    if not isinstance(owner, Piece) or owner.device is not device or not array.flags.c_contiguous:
        return None
    return owner if array.ctypes.data == owner.region.address else None
