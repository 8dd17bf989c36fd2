"""Translation consistency: how far labels depend on where windows happen to lie.

Regions of the volume are inferred twice, by the way of every run: with the run's own grid of windows, and with the grid
moved by half the distance of two windows along each axis that has several. Where both give the same label, no seam can
be seen; what differs, differs only because of where windows begin. Voxels near the end of a window are counted apart:
there seams show first. The measure is that of Reina et al., Frontiers in Neuroscience 14:65 (2020), and of Huang et
al., arXiv:1805.12219, for labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from unet_engine.backends.base import Array, Network
from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid
from unet_engine.prepare.agreement import Confusion
from unet_engine.prepare.decisions import Decisions
from unet_engine.prepare.draft import Draft, grid
from unet_engine.prepare.prepare import Prepared
from unet_engine.prepare.regions import values_of
from unet_engine.volumes import windows
from unet_engine.volumes.cropped import Cropped
from unet_engine.volumes.resampled import on_windows_grid
from unet_engine.volumes.validity import unmeasured

REGIONS = 4
"""Of one window each, at most."""
NEAR = 4
"""Voxels from the end of a window that count as near it."""
PART, LEAST = 0.05, 64
"""Of the windows of the run, and how many in any case: what measuring may infer. One region is always measured."""


@dataclass(frozen=True)
class Seams:
    """What was found."""

    offset: tuple[int, ...]
    """Voxels by which the grid was moved, along each axis."""
    regions: tuple[str, ...]
    """In voxels of the grid of windows."""
    voxels: int
    agreement: float
    """Of their labels."""
    dice: dict[str, float | None]
    """Of each class, one grid against the other; None for a class that is not there."""
    near: float | None
    """Part of the voxels near the end of a window whose labels differ; None where there are none."""
    far: float | None
    """The same of all other voxels."""
    windows: int
    """Inferred to find out."""


def seams(prepared: Prepared, network: Network) -> Seams | str:
    """Measured on regions with an image in them, the same ones each time. Returns why not, where that cannot be done.

    network: that of the run, which nothing else uses now. Raises what reading and inferring raise.
    """
    survey, decisions = prepared.survey, prepared.decisions
    if survey.model.spec.channels in ("image", "offsets"):
        return f"the network gives {survey.model.spec.channels}, and no labels"
    axes = grid(survey, decisions.tiling)
    offset = tuple(_offset(axis) for axis in axes)
    if not any(offset):
        return "the volume is as small as one window, there are no seams"
    trier = _Trier(prepared, network, axes, offset)
    boxes = trier.regions()
    if not boxes:
        return "no region of one window has an image in it, apart from what the mask and --roi leave out"
    confusion = Confusion(survey.model.spec.label_count)
    differ, count = np.zeros(2, np.int64), np.zeros(2, np.int64)
    inferred, most, done = 0, max(LEAST, PART * prepared.job.plan.call_count), list[Box]()
    for box in boxes:
        cost = trier.windows(box)
        if done and inferred + cost > most:
            break
        one, other, meant = trier.both(box)
        near = _near(axes, box)[meant]
        confusion.add(one[meant], other[meant])
        for i, where in enumerate((near, ~near)):
            differ[i] += np.count_nonzero((one != other)[meant] & where)
            count[i] += np.count_nonzero(where)
        inferred += cost
        done.append(box & trier.roi)
    names = survey.model.spec.class_names
    parts = [float(d / c) if c else None for d, c in zip(differ, count, strict=True)]
    return Seams(
        offset, tuple(map(str, done)), confusion.voxels, confusion.agreement,
        dict(zip(names, confusion.dice, strict=False)), parts[0], parts[1], inferred,
    )  # fmt: skip


def _offset(axis: AxisGrid) -> int:
    """Half the distance of two windows, or less where the volume would then be shorter than a window; 0 where there is
    one window alone, or nothing to tell of where it lies."""
    if axis.count < 2 or axis.window == 1:
        return 0
    return max(1, min(axis.stride // 2, axis.size - axis.window))


def _near(axes: Sequence[AxisGrid], box: Box) -> npt.NDArray[np.bool_]:
    """Whether voxels of `box` lie near the end of a window's support along any axis, (*box.shape)."""
    found = np.zeros(box.shape, bool)
    for a, (axis, lo, hi) in enumerate(zip(axes, box.lo, box.hi, strict=True)):
        if not _offset(axis):
            continue
        ends = {e for k in axis.meeting(lo, hi) for e in axis.support(k) if 0 < e < axis.size}
        at = np.arange(lo, hi)
        line = np.zeros(hi - lo, bool)
        for end in ends:
            line |= (at >= end - NEAR) & (at < end + NEAR)
        found |= line.reshape([-1 if i == a else 1 for i in range(len(axes))])
    return found


class _Trier:
    """The same regions on both grids."""

    def __init__(self, prepared: Prepared, network: Network, axes: Sequence[AxisGrid], offset: tuple[int, ...]) -> None:
        survey = prepared.survey
        self._survey, self._offset, self._axes = survey, offset, axes
        self._scale, self._decisions = prepared.job.fed, prepared.decisions
        plan = prepared.job.plan
        self.roi = plan.core_of(plan.roi) & Box.of_shape(survey.volume.shape)
        """What the run is of, in voxels of the grid of windows."""
        self.mask = on_windows_grid(survey.mask, survey.image, survey.back)
        plain = replace(survey, mask=None, grids=None, image=())
        self._here = Draft(plain, network, self._scale, "")
        self._moved = Draft(
            replace(plain, volume=Cropped(survey.volume, Box(offset, survey.volume.shape))), network, self._scale, ""
        )

    def regions(self) -> list[Box]:
        survey = self._survey

        around = self._around_roi()

        def region(box: Box) -> Box:
            return self._clear(box.shift(around.lo))

        def admits(box: Box) -> bool:
            meant = region(box) & self.roi
            return not meant.is_empty and (self.mask is None or bool(self.mask.read(meant).any()))

        rng = np.random.default_rng(0)
        drawn = survey.volume if around == Box.of_shape(survey.volume.shape) else Cropped(survey.volume, around)
        found = windows.pool(drawn, self._scale, self._here.network.setup.window, REGIONS, rng, admits)
        return list(dict.fromkeys(map(region, found)))

    def _around_roi(self) -> Box:
        """The region that the run is of, grown to a window where it is smaller."""
        lo, hi = [], []
        for axis, l, h in zip(self._axes, self.roi.lo, self.roi.hi, strict=True):
            first = max(0, min(l, axis.size - axis.window))
            lo.append(first)
            hi.append(max(h, min(first + axis.window, axis.size)))
        return Box(tuple(lo), tuple(hi))

    def _clear(self, box: Box) -> Box:
        """The same at the size of a window's output, and moved away from where the moved volume begins: windows are
        fewer there than in the middle of the volume."""
        lo = []
        for axis, offset, start in zip(self._axes, self._offset, box.lo, strict=True):
            last = max(0, axis.size - axis.window)
            lo.append(min(last, max(start, offset + axis.window - axis.stride)) if offset else start)
        hi = (min(l + axis.window, axis.size) for l, axis in zip(lo, self._axes, strict=True))
        return Box(tuple(lo), tuple(hi))

    def _as(self, box: Box) -> Decisions:
        return self._decisions.labels_of(self._survey.model.spec, box, self._decisions.tiling)

    def windows(self, box: Box) -> int:
        """That both grids take for a region."""
        moved = box.relative_to(self._offset)
        return sum(d.plan(self._as(b)).call_count for d, b in ((self._here, box), (self._moved, moved)))

    def both(self, box: Box) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
        """Labels on either grid, and which voxels are meant: those of the run, that no mask leaves out."""
        one = self._labels(self._here, box)
        other = self._labels(self._moved, box.relative_to(self._offset))
        meant = np.zeros(box.shape, bool)
        own = (box & self.roi).relative_to(box.lo).slices()
        meant[own] = True if self.mask is None else np.asarray(self.mask.read(box & self.roi)) != 0
        volume = self._survey.volume
        if volume.missing or volume.gaps is not None:
            absent = unmeasured(volume, box, volume.read(box))
            meant &= True if absent is None else ~absent.all(axis=0)
        return one, other, meant

    def _labels(self, draft: Draft, box: Box) -> Array:
        """Of all voxels, also those that the run overwrites: they are not counted."""
        decisions = self._as(box)
        return values_of(draft, replace(draft.job(decisions, draft.plan(decisions)), mask=None, outside=None))
