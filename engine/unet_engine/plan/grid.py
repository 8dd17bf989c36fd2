"""The window grid along one axis: where windows start, what each contributes to, which of them meet an interval.

        volume   |---------------------------------|          size n
        windows  [======]                                     output length w, at 0, s, 2s, ...
                     [======]
                             ...           [======]           the last one moved back to end at n

All positions are voxels of the volume, of the windows' *output*: a network with valid convolutions reads `margin`
voxels more on either side. An axis shorter than w has one window, centred, that sticks out; what sticks out is padded
on reading and never written.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Literal

Blend = Literal["gaussian", "constant", "crop"]


@dataclass(frozen=True, slots=True)
class AxisGrid:
    """Windows along one axis of `size` voxels: output length `window`, distance `stride`, input margin `margin` per
    side."""

    size: int
    window: int
    stride: int
    margin: int = 0
    blend: Blend = "gaussian"

    @classmethod
    def with_overlap(cls, size: int, window: int, overlap: float, margin: int, blend: Blend) -> AxisGrid:
        """The grid for an overlap fraction r in [0, 1): stride ``max(1, int(window * (1 - r)))``; `window` is the
        output's."""
        return cls(size, window, max(1, int(window * (1 - overlap))), margin, blend)

    @property
    def count(self) -> int:
        return 1 if self.size <= self.window else -(-(self.size - self.window) // self.stride) + 1

    def start(self, k: int) -> int:
        """First output voxel of window k; negative only where the axis is shorter than the window."""
        if self.size <= self.window:
            return -((self.window - self.size) // 2)
        return min(k * self.stride, self.size - self.window)

    def input(self, k: int) -> tuple[int, int]:
        """The interval that window k reads; it may stick out of the volume."""
        start = self.start(k) - self.margin
        return start, start + self.window + 2 * self.margin

    def support(self, k: int) -> tuple[int, int]:
        """The voxels inside the volume to which window k contributes.

        With `crop`, neighbours part in the middle of what they share, so that the supports are a partition of the axis.
        """
        lo, hi = self.start(k), self.start(k) + self.window
        if self.blend == "crop":
            if k > 0:
                lo = (self.start(k - 1) + self.window + lo) // 2
            if k + 1 < self.count:
                hi = (hi + self.start(k + 1)) // 2
        return max(lo, 0), min(hi, self.size)

    def meeting(self, lo: int, hi: int) -> range:
        """Indices of the windows whose support shares a voxel with [lo, hi): a contiguous range, as supports only move
        up."""
        if hi <= lo:
            return range(0)
        first = bisect_right(windows := self._near(lo), lo, key=lambda k: self.support(k)[1]) + windows.start
        stop = bisect_left(windows := self._near(hi), hi, key=lambda k: self.support(k)[0]) + windows.start
        return range(first, max(first, stop))

    def _near(self, x: int) -> range:
        """The windows whose support may begin or end at x; all before end below it, all behind begin above it."""
        return range(
            max(0, min(self.count, (x - self.window) // self.stride - 1)), min(self.count, x // self.stride + 2)
        )

    def source(self, lo: int, hi: int, padding: str) -> list[int]:
        """Volume index that each voxel of [lo, hi) is read from: itself inside, the padding's choice outside (-1:
        constant).

        `reflect` mirrors about the edge voxel without repeating it, again and again where the axis is short (as
        `numpy.pad` does).
        """
        return [x if 0 <= x < self.size else _padded(x, self.size, padding) for x in range(lo, hi)]


def _padded(x: int, size: int, padding: str) -> int:
    if padding == "constant":
        return -1
    if padding == "edge" or size == 1:
        return min(max(x, 0), size - 1)
    period = 2 * (size - 1)
    x %= period
    return min(x, period - x)
