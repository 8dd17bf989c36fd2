"""Large arrays whose memory is used again once nothing refers to them.

The sums of a block are made and dropped with it. Left to the system, they would be new memory each time, which it has
to clear: with a hundred classes 80 MB for every window. Nothing has to be given back by hand: an array's memory is free
when its last view is gone, whichever thread held it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Memory = npt.NDArray[np.uint8]

SMALLEST = 2**26
"""Bytes from which on memory is kept. New memory from the system takes room only as it is filled, which leaves blocks
of few classes 45 MiB less at the peak, and clearing it is nothing beside the windows that go into them."""


class Recycler:
    """Makes float32 arrays, contiguous, of any shape. Any thread may call it, and drop what it made.

    There are never more pieces of memory than arrays were in use at once, and none is larger than the largest array. So
    it is for arrays that are few at a time and of much the same size.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Memory] = []
        self._dropped: deque[Memory] = deque()
        """What came back and was not looked at yet: an array may be dropped anywhere, even inside a call of this
        class."""

    def empty(self, shape: Sequence[int]) -> F32:
        """An array of `shape`, float32; what is in it is arbitrary."""
        found = self._leased(shape)
        return np.empty(shape, np.float32) if found is None else found

    def zeros(self, shape: Sequence[int]) -> F32:
        """An array of `shape`, float32, all zero."""
        found = self._leased(shape)
        if found is None:
            return np.zeros(shape, np.float32)  # new memory comes cleared
        found.fill(0)
        return found

    def _leased(self, shape: Sequence[int]) -> F32 | None:
        """An array of `shape` in memory that is kept; None where it is so small that it is better new."""
        size = 4 * prod(shape)
        with self._lock:
            memory = self._take(size)
        if memory is None:
            return None
        flat: F32 = np.asarray(_Lease(memory, size, self._dropped))
        return flat.reshape(shape)

    @property
    def kept(self) -> int:
        """Bytes that wait to be used again."""
        with self._lock:
            self._collect()
            return sum(memory.nbytes for memory in self._free)

    def _take(self, size: int) -> Memory | None:
        """The smallest memory that is large enough; where all are too small, the largest of them goes and a new one
        comes, or none for a small array. A small one takes what is there: new memory beside it would come on top."""
        self._collect()
        for i, memory in enumerate(self._free):
            if memory.nbytes >= size:
                return self._free.pop(i)
        if size < SMALLEST:
            return None
        if self._free:
            self._free.pop()
        return np.empty(size, np.uint8)

    def _collect(self) -> None:
        while self._dropped:
            self._free.append(self._dropped.popleft())
        self._free.sort(key=lambda memory: memory.nbytes)


class _Lease:
    """What the arrays of one call to `Recycler.empty` have as their base. Goes with the last of them, and hands the
    memory back."""

    def __init__(self, memory: Memory, size: int, dropped: deque[Memory]) -> None:
        self._memory, self._dropped = memory, dropped
        self.__array_interface__: dict[str, Any] = {
            "shape": (size // 4,), "typestr": np.dtype(np.float32).str, "data": (memory.ctypes.data, False),
            "version": 3,
        }  # fmt: skip

    def __del__(self) -> None:
        self._dropped.append(self._memory)
