"""A small volume's voxels, all of them, unpacked once: else each chunk is unpacked for every block and every sample that
shares it, three times and more in a volume of a few chunks an axis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
MOST = 2**26
"""Bytes of the largest volume that is held: 256³ voxels of four bytes."""
PART = 8
"""Of the memory that a run may use, such a part at most."""


class Held:
    """Of one stored array, however it is seen. Any thread may ask."""

    def __init__(self) -> None:
        self._most, self._lock = 0, threading.Lock()
        self._voxels: Array | None = None
        self.since: float | None = None
        """When all of it had been read, in seconds since the epoch: what is changed later is in none of it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Held, ()  # another process holds what it reads itself, or nothing

    def allow(self, most: int) -> None:
        """Hold an array of up to so many bytes from now on, once any of it is read; what is held and larger goes."""
        with self._lock:
            self._most = most
            if self._voxels is not None and self._voxels.nbytes > most:
                self._voxels = self.since = None

    def takes(self, size: int) -> bool:
        """Whether an array of so many bytes is held, or will be."""
        return 0 < size <= self._most

    def voxels(self, size: int, read: Callable[[], Array]) -> Array | None:
        """All of an array of `size` bytes, read-only: `read` is called for the first who asks. None where it is not
        held, also as something of it cannot be read: whoever reads that part is told."""
        with self._lock:
            if self._voxels is None and self.takes(size):
                with suppress(Exception):
                    voxels = np.asarray(read())
                    voxels.flags.writeable = False
                    self._voxels, self.since = voxels, time.time()
                if self._voxels is None:
                    self._most = 0
            return self._voxels
