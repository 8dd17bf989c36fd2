"""Whether a precision that was proved in windows of one size may run in others.

Weights and scales are the same in windows of any size, but a library may choose other kernels for them. So before a
lower precision runs in windows that its verdict does not speak of, what they give is compared with fp32 on regions of
the volume, and asked for what the verdict asks for. fp32 needs no such windows: a smaller one around the same place, of
which those voxels count that have all their context, is as good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from unet_engine.backends.base import Array, Backend
from unet_engine.model.last_layer import LastLayer
from unet_engine.model.verdict import Figures, Thresholds, shortfall
from unet_engine.plan.box import Box
from unet_engine.prepare.agreement import Confusion
from unet_engine.prepare.blending import outputs_of
from unet_engine.prepare.corners import AxisSizes
from unet_engine.prepare.precision_proof import Proof

LEAST = 2
"""Regions that a precision is compared on, at least."""


class Networks(Protocol):
    """The network in windows of any size."""

    def opened(self, window: tuple[int, ...]) -> AbstractContextManager[Backend]:
        """In the precision of the run."""

    def in_fp32(self, window: tuple[int, ...]) -> AbstractContextManager[Backend]: ...


@dataclass(frozen=True)
class Case:
    """A place where both are compared. Boxes are of the networks' outputs, per axis of the volume."""

    box: Box
    """Of the windows that are to be proved."""
    reference: Box
    """Of a window in fp32."""
    counts: Box
    """What is compared."""


@dataclass(frozen=True)
class Cases:
    places: Sequence[Case]
    reference: tuple[int, ...]
    """Input size of the windows in fp32, per axis of the model."""


def cases_around(
    cells: Sequence[Box],
    lengths: Sequence[int],
    own: Sequence[int],
    reach: Sequence[int] | None,
    axes: Sequence[AxisSizes],
    inputs: Callable[[Sequence[int]], tuple[int, ...]],
) -> Cases:
    """Places around the middles of `cells` for windows of `lengths`. Per axis of the volume, of outputs; own: of the
    model's own window; reach: how far the network sees, None where it has no end."""
    small = list(lengths)
    for a, (axis, length) in enumerate(zip(axes, lengths, strict=True)):
        wanted = None if reach is None else axis.at_least(own[a] + 2 * reach[a] + 2 * axis.lattice)
        if wanted is not None and wanted < length:
            small[a] = wanted
    places = []
    for cell in cells:
        spans = [_along(axis, c, length, s, r) for axis, c, length, s, r in zip(
            axes, zip(cell.lo, cell.hi, strict=True), lengths, small, reach or (0,) * len(axes), strict=True)]  # fmt: skip
        box, reference, counts = (Box(*map(tuple, zip(*ends, strict=True))) for ends in zip(*spans, strict=True))
        if not counts.is_empty:
            places.append(Case(box, reference, counts))
    return Cases(list(dict.fromkeys(places)), inputs(small))


_Span = tuple[int, int]


def _along(axis: AxisSizes, cell: _Span, length: int, small: int, reach: int) -> tuple[_Span, _Span, _Span]:
    """Along one axis: the window, the one in fp32, and what counts."""
    boxes = [_around(axis, cell, n) for n in (length, small)]
    if small == length:
        return boxes[0], boxes[1], (max(0, boxes[0][0]), min(axis.size, boxes[0][1]))
    inner = [(lo if lo <= axis.margin else lo + reach, hi if hi >= axis.size - axis.margin else hi - reach)
             for lo, hi in boxes]  # fmt: skip
    lo, hi = max(lo for lo, _ in inner), min(axis.size, *(hi for _, hi in inner))
    return boxes[0], boxes[1], (lo, max(lo, hi))


def _around(axis: AxisSizes, cell: _Span, length: int) -> _Span:
    """A window of this length around the middle of the cell, on the lattice, as far as the volume goes."""
    last = axis.size - axis.margin - length
    middle = (cell[0] + cell[1] - length) // 2
    start = max(axis.margin, min(middle, last)) // axis.lattice * axis.lattice
    start = max(start, -(-axis.margin // axis.lattice) * axis.lattice)
    return start, start + length


# --- precision ---


def proved(
    cases: Sequence[Case],
    window: tuple[int, ...],
    reference: tuple[int, ...],
    networks: Networks,
    cut: Callable[[Box, tuple[int, ...]], Array],
    judge: Judge,
) -> Proof:
    """The precision of the run in windows of `window`, against fp32 in windows of `reference`."""
    boxes = [case.reference for case in cases]
    with networks.in_fp32(reference) as host:
        expected = [
            part.copy() for part in _logits(host, boxes, cases, [cut(box, reference) for box in boxes])
        ]  # fmt: skip
    boxes = [case.box for case in cases]
    with networks.opened(window) as host:
        for truth, found in zip(
            expected, _logits(host, boxes, cases, (cut(box, window) for box in boxes)), strict=True
        ):
            judge.add(truth, found)
    return judge.verdict(window, len(cases))


def _logits(host: Backend, boxes: Sequence[Box], cases: Sequence[Case], inputs: Any) -> Iterator[Array]:
    """What the network gives in the part of each box that counts: (channels out, *counts.shape) float32."""
    for box, case, window in zip(boxes, cases, inputs, strict=True):
        found = np.asarray(host.infer(window)[0], np.float32)
        found = found.reshape(len(found), *box.shape)
        yield np.ascontiguousarray(found[(slice(None), *case.counts.relative_to(box.lo).slices())])


class Judge:
    """Counts as the accuracy gate does, and asks for what it asked for."""

    def __init__(
        self,
        classes: tuple[str, ...],
        labels: Callable[[Array], Array],
        asked: Thresholds,
        last: LastLayer | None = None,
    ) -> None:
        self._labels, self._asked, self._last = labels, asked, last
        self._classes, self._confusion = classes, Confusion(len(classes))
        self._largest = self._error = self._sum = 0.0
        self._values = self._nonfinite = 0

    def add(self, truth: Array, found: Array) -> None:
        """Logits, or the features that the last layer makes them of; a plane at a time, as of those they may be
        many."""
        for plane in range(truth.shape[1]):
            part = slice(None), slice(plane, plane + 1)
            self._count(*(self._outputs(np.ascontiguousarray(given[part])) for given in (truth, found)))

    def _outputs(self, given: Array) -> Array:
        return given if self._last is None else outputs_of(self._last, given)

    def _count(self, truth: Array, found: Array) -> None:
        bad = ~np.isfinite(found)
        self._nonfinite += int(bad.sum())
        apart = np.abs(np.where(bad, 0, found) - truth)
        self._largest = max(self._largest, float(np.abs(truth).max(initial=0)))
        self._error = max(self._error, float(apart.max(initial=0)))
        self._sum, self._values = self._sum + float(apart.sum()), self._values + apart.size
        self._confusion.add(self._labels(truth), self._labels(np.where(bad, 0, found)))

    def verdict(self, window: tuple[int, ...], regions: int) -> Proof:
        counts, scale = self._confusion.counts, self._largest or 1.0
        theirs, ours = counts.sum(1), counts.sum(0)
        figures = Figures(
            windows=regions,
            voxels=self._confusion.voxels,
            nonfinite=self._nonfinite,
            max_error=self._error / scale,
            mean_error=self._sum / max(1, self._values) / scale,
            agreement=self._confusion.agreement,
            classes=self._classes,
            dice=self._confusion.dice,
            lost=tuple(c for c, t, o in zip(self._classes, theirs, ours, strict=True) if t and not o),
            one_class=bool((ours > 0).sum() == 1 < (theirs > 0).sum()),
        )
        return Proof(
            window=window,
            regions=regions,
            voxels=figures.voxels,
            agreement=figures.agreement,
            least_dice=figures.worst_dice,
            max_error=figures.max_error,
            reason=shortfall(figures, self._asked),
        )
