"""Large arrays whose memory is used again once nothing refers to them.

Sums and halos are made and dropped with every block. Left to the system, each is new memory, which it has to clear: with a hundred classes
a gigabyte for every ten windows. Nothing has to be given back by hand: an array's memory
is free when its last view is gone, whichever thread held it.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

SMALLEST = 2**20
"""Bytes from which on memory is kept; NumPy serves smaller arrays well."""
SEGMENT = 2**26
"""Least bytes that are taken from the system at once. What of them was never used costs nothing."""
GRAIN = 2**12
"""Arrays begin at multiples of so many bytes in their segment."""


class Recycler:
    """Makes float32 arrays, contiguous, of any shape. Any thread may call it, and drop what it made.

    They lie in segments, each array in the smallest gap that holds it; gaps side by side become one. Halos and sums of the blocks at the
    edges of a volume come in many sizes, and with a list of gaps by size every second array was new memory. A segment that is too small
    for what is wanted and holds nothing goes back to the system, so little more is held than was in use at once (1.1 times, replayed from
    a run with 104 classes).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dropped: deque[_Span] = deque()
        """What came back and was not looked at yet: an array may be dropped anywhere, even inside a call of this class."""
        self._segments: list[_Segment] = []

    def empty(self, shape: Sequence[int]) -> F32:
        """An array of `shape`, float32; what is in it is arbitrary."""
        size = 4 * prod(shape)
        if size < SMALLEST:
            return np.empty(shape, np.float32)
        with self._lock:
            span = self._take(-(-size // GRAIN) * GRAIN)
        flat: F32 = np.asarray(_Lease(span, size, self._dropped))
        return flat.reshape(shape)

    def zeros(self, shape: Sequence[int]) -> F32:
        """An array of `shape`, float32, all zero."""
        array = self.empty(shape)
        array.fill(0)
        return array

    def copy(self, values: F32) -> F32:
        """A contiguous copy."""
        array = self.empty(values.shape)
        np.copyto(array, values)
        return array

    @property
    def held(self) -> int:
        """Bytes in use and kept for later."""
        with self._lock:
            return sum(segment.size for segment in self._segments)

    def _take(self, size: int) -> _Span:
        while self._dropped:
            span = self._dropped.popleft()
            span.segment.put_back(span.lo, span.hi)
        fitting = [(hi - lo, i, lo) for i, s in enumerate(self._segments) for lo, hi in s.gaps if hi - lo >= size]
        if fitting:
            _, i, lo = min(fitting)
            return self._segments[i].cut(lo, size)
        self._segments = [s for s in self._segments if s.gaps != [(0, s.size)]]
        self._segments.append(_Segment(max(size, SEGMENT)))
        return self._segments[-1].cut(0, size)


class _Segment:
    """Memory from the system, and the gaps in it, from low to high."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = np.empty(size, np.uint8)
        self.gaps = [(0, size)]

    def cut(self, lo: int, size: int) -> _Span:
        """Take `size` bytes from the beginning of the gap at `lo`."""
        i = bisect.bisect_left(self.gaps, (lo, lo))
        _, hi = self.gaps[i]
        self.gaps[i : i + 1] = [(lo + size, hi)] if lo + size < hi else []
        return _Span(self, lo, lo + size)

    def put_back(self, lo: int, hi: int) -> None:
        i = bisect.bisect_left(self.gaps, (lo, hi))
        first = last = i
        if i > 0 and self.gaps[i - 1][1] == lo:
            first, lo = i - 1, self.gaps[i - 1][0]
        if i < len(self.gaps) and self.gaps[i][0] == hi:
            last, hi = i + 1, self.gaps[i][1]
        self.gaps[first:last] = [(lo, hi)]


@dataclass(frozen=True)
class _Span:
    """Bytes `lo` to `hi` of a segment."""

    segment: _Segment
    lo: int
    hi: int


class _Lease:
    """What the arrays of one call to `Recycler.empty` have as their base. Goes with the last of them, and hands the memory back."""

    def __init__(self, span: _Span, size: int, dropped: deque[_Span]) -> None:
        self._span, self._dropped = span, dropped
        self.__array_interface__: dict[str, Any] = {
            "shape": (size // 4,), "typestr": np.dtype(np.float32).str, "data": (span.segment.memory.ctypes.data + span.lo, False),
            "version": 3,
        }  # fmt: skip

    def __del__(self) -> None:
        self._dropped.append(self._span)
