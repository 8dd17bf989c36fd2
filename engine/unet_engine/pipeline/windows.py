"""The windows of one task: which are left out, how they are cut, and where they lie in the sums."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.pipeline.job import Job, Raw
from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.plan import Index, Task
from unet_engine.plan.poses import UPRIGHT, Pose
from unet_engine.stitching import operations
from unet_engine.stitching.weights import axis_weights, covers

Placement = tuple[Sequence[Array], Sequence[int], Sequence[int], Sequence[int]]
"""Weights per axis, position in the sums, and the range that is added, as `operations.add` takes them."""


class Windows:
    """Those of one task, over its raw voxels; None where nothing is stored."""

    def __init__(self, job: Job, task: Task, raw: Raw | None) -> None:
        self._raw, self._job = raw, job
        self._axes, self._lo = job.plan.axes, task.read.lo
        self._background = job.background
        self._scale = np.asarray(job.fed.scale)
        self._shift = np.asarray(job.fed.shift)
        self._limits = job.fed.limits
        self._padding = job.plan.padding
        self._index: dict[tuple[int, int], Array] = {}
        self._mirrored: dict[tuple[int, int], Array] = {}

    def _positions(self, a: int, k: int) -> Array:
        """Where along axis `a` each voxel of window k lies in the raw block; -1 for constant padding."""
        if (a, k) not in self._index:
            source = np.asarray(self._axes[a].source(*self._axes[a].input(k), self._padding), np.int64)
            self._index[a, k] = np.where(source < 0, -1, source - self._lo[a])
        return self._index[a, k]

    def _held(self, a: int, k: int, pose: Pose) -> Array:
        """The same in the order in which the network is given them."""
        if not pose.mirrors(a, len(self._axes)):
            return self._positions(a, k)
        if (a, k) not in self._mirrored:
            self._mirrored[a, k] = np.ascontiguousarray(self._positions(a, k)[::-1])
        return self._mirrored[a, k]

    def is_empty(self, window: Index) -> bool:
        """Whether the window is skipped: it holds nothing but background, or what it gives is not meant."""
        if not self._job.skips:
            return False
        if self._raw is None or self._is_outside(window):
            return True
        known = self._job.model.spec.empty is not None
        return known and operations.is_constant(self._raw.voxels, *self._reach(window), self._background)

    def is_overwritten(self, window: Index) -> bool:
        """Whether it is skipped since all that it gives is overwritten, whatever that is."""
        written = self._job.outside is not None and not self._job.plan.back
        return written and self._raw is not None and self._is_outside(window)

    def _is_outside(self, window: Index) -> bool:
        """Whether no voxel that is meant lies in what the window gives, where all others are overwritten; else in what
        it reads."""
        assert self._raw is not None
        if self._raw.inside is None:
            return False
        span = self._reach(window) if self._job.outside is None else self._support(window)
        return operations.is_constant(self._raw.inside[np.newaxis], *span, 0)

    def _reach(self, window: Index) -> tuple[list[int], list[int]]:
        """Corners of what the window reads, in the raw block."""
        spans = [self._positions(a, k) for a, k in enumerate(window)]
        return [int(s[s >= 0].min()) for s in spans], [int(s.max()) + 1 for s in spans]

    def _support(self, window: Index) -> tuple[list[int], list[int]]:
        """Corners of what the window contributes to, in the raw block."""
        spans = [axis.support(k) for axis, k in zip(self._axes, window, strict=True)]
        return [s[0] - l for s, l in zip(spans, self._lo, strict=True)], [
            s[1] - l for s, l in zip(spans, self._lo, strict=True)
        ]

    def cut(self, window: Index, out: Array, pose: Pose = UPRIGHT) -> None:
        """Normalise one window, held in `pose`, into ``out``: (channels in, *window) float32."""
        assert self._raw is not None
        voxels, spans = self._raw.voxels, [self._held(a, k, pose) for a, k in enumerate(window)]
        if pose.swaps:
            voxels, spans = voxels.swapaxes(-1, -2), [*spans[:-2], spans[-1], spans[-2]]
        shaped = out.reshape(len(out), *(s.size for s in spans))
        operations.gather(shaped, voxels, spans, self._scale, self._shift, 0.0, limits=self._limits)


def placement(job: Job, window: Index, sums: Box, share: float = 1.0) -> Placement:
    """Where a window goes in the sums of its block, which span the box `sums`. share: of this answer in all that is
    added for the window."""
    along = [_along(axis, k) for axis, k in zip(job.plan.axes, window, strict=True)]
    at = [start - l for (start, _, _, _), l in zip(along, sums.lo, strict=True)]
    lo = [max(first, l) - start for (start, first, _, _), l in zip(along, sums.lo, strict=True)]
    hi = [min(stop, h) - start for (start, _, stop, _), h in zip(along, sums.hi, strict=True)]
    weights = [w for _, _, _, w in along]
    if share != 1:  # a vector as long as the window; on a device it is one product more, of the same bits
        weights[0] = np.float32(share) * weights[0]
    return weights, at, lo, hi


@lru_cache(maxsize=4096)
def _along(axis: AxisGrid, k: int) -> tuple[int, int, int, Array]:
    """Where window k begins along an axis, what it contributes to, and its weights."""
    return axis.start(k), *axis.support(k), axis_weights(axis, k)


def divide(job: Job, sums: Array, box: Box) -> None:
    """What is left to do once all windows were added to the sums of a block, which span `box`: where weights are bare,
    to divide by what they come to. Other blocks add what they have divided alike."""
    if not job.plan.axes[0].divides:
        return
    found = [covers(axis, lo, hi) for axis, lo, hi in zip(job.plan.axes, box.lo, box.hi, strict=True)]
    operations.divide(sums, found, job.floor)
