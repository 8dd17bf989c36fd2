"""Windows of a run that a network is warmed up with, in place of others: they are inferred once, and a run of no more
windows than threads infers nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, product
from math import prod

import numpy as np

from unet_engine.backends.base import Ahead, Array
from unet_engine.errors import DataError
from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.plan import Index
from unet_engine.prepare.decisions import Tiling
from unet_engine.prepare.draft import blocks_of, grid
from unet_engine.prepare.evidence import WINDOWS
from unet_engine.prepare.survey import Survey
from unet_engine.stitching import operations
from unet_engine.volumes import samples
from unet_engine.volumes.normalize import Scaling
from unet_engine.volumes.resampled import Interpolated
from unet_engine.volumes.validity import unmeasured

WORTH = 64
"""Windows for each that is inferred ahead, at most: of longer runs it is too little to compare windows for."""


def ahead_of(
    survey: Survey, scale: Scaling, tiling: Tiling, *, looked_at: bool = True
) -> Callable[[tuple[int, ...], int], Sequence[Ahead]]:
    """See `Trial.ahead`, of a run with that tiling over the survey's region. Those with most contrast are among them,
    and `looked_at` if that is wanted."""
    axes, roi = grid(survey, tiling), survey.windows_roi
    spans = [axis.meeting(lo, hi) for axis, lo, hi in zip(axes, roi.lo, roi.hi, strict=True)]
    block = blocks_of(survey, axes)

    def order(window: Index) -> tuple[Index, Index]:
        return tuple(k // b for k, b in zip(window, block, strict=True)), window

    def ahead(window: tuple[int, ...], most: int) -> list[Ahead]:
        if window != tiling.window or not 0 < prod(map(len, spans)) <= WORTH * most:
            return []
        rich = _rich(survey, axes, spans, min(WINDOWS, most))
        if rich is None:
            return []
        chosen = list(dict.fromkeys([*rich, *islice(product(*spans), most)]))[:most]
        return [
            Ahead(Cut(survey, scale, axes, index), looked_at and index in rich) for index in sorted(chosen, key=order)
        ]

    return ahead


def _rich(survey: Survey, axes: Sequence[AxisGrid], spans: Sequence[range], count: int) -> list[Index] | None:
    """Up to so many windows in whose middle the samples have most contrast; None where these lie outside of the run,
    whose windows may then tell too little of what the network gives."""
    found: dict[Index, None] = {}
    for sample in samples.by_contrast(survey.volume):
        middle = [(lo + hi) // 2 for lo, hi in zip(sample.lo, sample.hi, strict=True)]
        meeting = [axis.meeting(at, at + 1) for axis, at in zip(axes, middle, strict=True)]
        index = tuple(near[len(near) // 2] for near in meeting)
        if not all(k in span for k, span in zip(index, spans, strict=True)):
            return None
        found[index] = None
        if len(found) == count:
            break
    return list(found)


class Cut:
    """One window, cut as a run cuts it where all voxels are there and finite; else as `windows.cut` says."""

    def __init__(self, survey: Survey, scale: Scaling, axes: Sequence[AxisGrid], window: Index) -> None:
        self._survey, self._axes, self._window = survey, axes, window
        self._scale = survey.volume.fed if isinstance(survey.volume, Interpolated) else scale

    def __call__(self, out: Array) -> bool:
        """Into ``out``: (channels in, *window) float32. Whether it could be read; else it is 0."""
        padding, volume, scale = self._survey.settings.padding_mode, self._survey.volume, self._scale
        sources = [
            np.asarray(axis.source(*axis.input(k), padding), np.int64)
            for axis, k in zip(self._axes, self._window, strict=True)
        ]
        lo = tuple(int(s[s >= 0].min()) for s in sources)
        box = Box(lo, tuple(int(s.max()) + 1 for s in sources))
        out.fill(0)
        try:
            voxels = volume.read(box)
            absent = unmeasured(volume, box, voxels)
        except DataError:
            return False
        index = [np.where(s < 0, -1, s - l) for s, l in zip(sources, lo, strict=True)]
        shaped = out.reshape(len(out), *(s.size for s in sources))
        factors = np.asarray(scale.scale), np.asarray(scale.shift)
        operations.gather(shaped, voxels, index, *factors, 0.0, limits=scale.limits)
        if absent is not None:
            where = np.zeros(shaped.shape, np.float32)
            one = np.ones(len(absent)), np.zeros(len(absent))
            operations.gather(where, np.ascontiguousarray(absent), index, *one, 0.0)
            out[where.reshape(out.shape) != 0] = 0
        out[~np.isfinite(out)] = 0
        return True
