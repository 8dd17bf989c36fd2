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
from math import ceil
from typing import Literal

Blend = Literal["gaussian", "constant", "crop", "monai", "nnunet"]
"""How windows are put together, see `unet_engine.stitching.weights`. `nnunet` places them otherwise, too: in equal
steps from end to end, as that tool does."""


@dataclass(frozen=True, slots=True)
class AxisGrid:
    """Windows along one axis of `size` voxels: output length `window`, distance `stride`, input margin `margin` per
    side."""

    size: int
    window: int
    stride: int
    margin: int = 0
    blend: Blend = "gaussian"
    steps: int | None = None
    """Where windows are spread evenly from end to end, the number of distances between them; `stride` is then the
    smallest of these but for the last, and the largest is at most a `lattice` more."""
    lattice: int = 1
    """Windows that are spread evenly begin at multiples of it, but for the last, which ends with the axis: there the
    cells of the network's poolings lie as they would in a single window."""

    @classmethod
    def with_overlap(cls, size: int, window: int, overlap: float, margin: int, blend: Blend) -> AxisGrid:
        """The grid for an overlap fraction r in [0, 1): stride ``max(1, int(window * (1 - r)))``; `window` is the
        output's. With `nnunet` as few windows as are no farther apart than ``max(1, window * (1 - r))``."""
        wanted, left = window * (1 - overlap), size - window
        if blend != "nnunet" or left <= 0:
            return cls(size, window, max(1, int(wanted)), margin, blend)
        steps = ceil(left / max(1.0, wanted))
        return cls(size, window, left // steps, margin, blend, steps)

    @classmethod
    def evenly(cls, size: int, window: int, shared: int, margin: int, blend: Blend, lattice: int = 1) -> AxisGrid:
        """The grid of as few windows as share `shared` voxels or more with each neighbour, spread evenly: no last
        window is moved back over work that is done. `lattice` counts where windows share few enough to lie on it.

        Raises `ValueError` unless ``0 <= shared < window``."""
        if not 0 <= shared < window:
            raise ValueError(f"windows of {window} voxels cannot share {shared}")
        left, most = size - window, window - shared
        if left <= 0:
            return cls(size, window, most, margin, blend)
        lattice = lattice if most >= lattice else 1
        cells = -(-left // lattice)
        steps = -(-cells // (most // lattice))
        return cls(size, window, cells // steps * lattice, margin, blend, steps, lattice)

    @property
    def _cells(self) -> int:
        """Cells of the lattice from the first window's start to the last's."""
        return -(-(self.size - self.window) // self.lattice)

    @property
    def count(self) -> int:
        if self.steps is not None:
            return self.steps + 1
        return 1 if self.size <= self.window else -(-(self.size - self.window) // self.stride) + 1

    @property
    def divides(self) -> bool:
        """Whether sums are divided by what the weights come to, as these are no product of normalised vectors."""
        return self.blend == "monai"

    @property
    def longest(self) -> int:
        """The largest distance of two neighbours."""
        return self.stride if self.steps is None else -(-self._cells // self.steps) * self.lattice

    @property
    def is_even(self) -> bool:
        """Whether all neighbours have the same distance, but for a last window that was moved back."""
        return self.stride == self.longest

    @property
    def most(self) -> int:
        """Windows that cover a voxel, at most: windows that many apart share none."""
        if self.steps is not None:
            last = self.start(self.steps) - self.start(self.steps - 1)  # may be shorter than the others
            return max(-(-self.window // self.stride), 1 - (last - self.window) // self.stride)
        ends = range(max(0, self.count - 2 - self.window // self.stride), self.count)
        return max(sum(self.start(j) < self.start(k) + self.window for j in ends if j >= k) for k in ends)

    def start(self, k: int) -> int:
        """First output voxel of window k; negative only where the axis is shorter than the window."""
        if self.size <= self.window:
            return -((self.window - self.size) // 2)
        if self.steps is not None:
            return min(round(self._cells / self.steps * k) * self.lattice, self.size - self.window)
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
        if self.steps is not None:
            distance = self._cells / self.steps * self.lattice
            first, last = int((x - self.window) / distance) - 2, int(x / distance) + 2
        else:
            first, last = (x - self.window) // self.stride - 1, x // self.stride + 1
        return range(max(0, min(self.count, first)), min(self.count, last + 1))

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
