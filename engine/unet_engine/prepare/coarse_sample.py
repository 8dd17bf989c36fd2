"""Regions of a run that are drawn at random and computed in full, until they tell enough of what ``--coarse auto`` would
miss: see `unet_engine.prepare.missed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, prod

import numpy as np

from unet_engine.backends.base import COPIES, Array, Backend, hash_of
from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.plan import Index, Plan
from unet_engine.prepare.ahead import Cut
from unet_engine.prepare.decisions import Decisions
from unet_engine.prepare.draft import Draft, grid
from unet_engine.prepare.missed import (
    CONFIDENCE,
    LOOKS,
    Rate,
    Region,
    evidence,
    hopeless,
    settled,
    tells,
    threshold_of,
)  # fmt: skip
from unet_engine.prepare.regions import labels_of_each
from unet_engine.units import Tell

SEED = 0
LEAST = 8
"""Regions that are computed at least."""
SPARED = 4
"""A threshold is taken that misses such a part of what is allowed in the regions, at most."""
LIKELY = 128
"""Cells of such a score are taken for foreground where it is guessed how many regions hold enough of it."""
FEWEST = 2
"""Regions that are computed before it is asked again whether they tell enough, or a multiple of it: as many windows as
mostly go through a network at once."""
MOST_REGIONS = 2048
"""Regions that are drawn at most: in 3D with the blend `crop` one is a window's own 48³ voxels, 216 cells, of which few
hold foreground where that is sparse."""
MANY, DRAWN = 2**24, 2**18
"""Regions of a volume of which not all are put in order, and how many are then."""
SPAN = 4
"""Windows along each axis that a region spans where they overlap: those around it are computed for it alone."""


def drawn_of(draft: Draft, decisions: Decisions, run: Plan) -> tuple[list[Box], int]:
    """Boxes of the run's grid that partition the volume, in a random order, and the voxels of input that the first
    computes: at most as many as any, since windows at the border of the volume are as large."""
    spans = [_spans(axis, decisions.tiling.blend) for axis in run.axes]
    counts = [len(s) for s in spans]
    found: list[Box] = []
    for number in drawn(prod(counts)):
        index = np.unravel_index(int(number), counts)
        ends = [span[int(i)] for span, i in zip(spans, index, strict=True)]
        box = Box(*map(tuple, zip(*ends, strict=True)))
        if all(mask.may_hold(box) for mask in draft.survey.seen_masks):
            found.append(box)
        if len(found) == MOST_REGIONS:
            break
    if not found:
        return [], 1
    spec, tiling = draft.survey.model.spec, decisions.tiling
    return found, max(computed(draft.plan(decisions.labels_of(spec, box, tiling))) for box in found[:LEAST])


def drawn(count: int) -> Array:
    """Numbers below `count` in a random order: all, or of very many as many as memory holds."""
    rng = np.random.default_rng(SEED)
    return rng.permutation(count) if count < MANY else rng.choice(count, DRAWN, replace=False)


def computed_once(plan: Plan) -> int:
    """Voxels of input of a window, in all poses and by all networks."""
    return plan.calls * prod(plan.window_shape)


def computed(plan: Plan) -> int:
    """Voxels of input, in all poses and by all networks."""
    return plan.window_range.size * computed_once(plan)


def _spans(axis: AxisGrid, blend: str) -> list[tuple[int, int]]:
    """Where regions begin and end along an axis."""
    if blend == "crop" or axis.count == 1:
        return [axis.support(k) for k in range(axis.count)]
    starts = [axis.start(k) for k in range(0, axis.count, SPAN)]
    ends = [*starts[1:], axis.size]
    return [(max(0, lo), hi) for lo, hi in zip(starts, ends, strict=True) if hi > max(0, lo)]


@dataclass
class Sample:
    """Regions in the order in which they were drawn, computed as far as is asked for."""

    draft: Draft
    decisions: Decisions
    boxes: Sequence[Box]
    scores: Array
    cell: Sequence[int]
    background: int
    windows: Array
    """The largest score of the cells that each window of the run gives something to."""
    found: list[Region] = field(default_factory=list)
    answers: dict[Index, Array] = field(default_factory=dict)
    """What the network gave for windows that the run may infer, too: as many as there is room for."""

    @property
    def left(self) -> int:
        return len(self.boxes) - len(self.found)

    def take(self, count: int) -> None:
        """Compute so many more."""
        boxes = self.boxes[len(self.found) : len(self.found) + count]
        labels = labels_of_each(self.draft, self.decisions, boxes, self._keep)
        self.found += [self._region(box, values) for box, values in zip(boxes, labels, strict=True)]

    def _keep(self, window: Index, output: Array) -> None:
        if self.windows[window] >= LIKELY and (1 + len(self.answers)) * output.nbytes <= COPIES:
            self.answers[window] = np.array(output)

    def take_up(self, threshold: int) -> None:
        """Let the run have these answers, where it infers such windows."""
        survey, network = self.draft.survey, self.draft.network
        if not isinstance(network, Backend) or network.setup.batch != 1:
            return
        axes = grid(survey, self.decisions.tiling)
        window = np.empty(network.setup.input_shape, np.float32)
        known: dict[bytes, Array] = {}
        for index, output in self.answers.items():
            if self.windows[index] >= threshold and Cut(survey, self.draft.scale, axes, index)(window[0]):
                known[hash_of(window)] = output[np.newaxis]
        network.known = known

    def _region(self, box: Box, labels: Array) -> Region:
        """The cells of a box that have foreground."""
        foreground = labels != self.background
        for mask in self.draft.survey.seen_masks:
            foreground &= mask.read(box) != 0
        voxels = foreground.astype(np.int64)
        for a, (lo, hi, size) in enumerate(zip(box.lo, box.hi, self.cell, strict=True)):
            first = [lo, *range((lo // size + 1) * size, hi, size)]
            voxels = np.add.reduceat(voxels, np.array(first) - lo, axis=a)
        there = over(self.scores, box, self.cell)
        some = voxels > 0
        return Region(voxels[some], there[some].astype(np.int64))


def proved(sample: Sample, target: float, likely: float, cost: float, tell: Tell) -> tuple[int, Rate]:
    """The threshold that is taken, and what it misses. `likely`: cells with foreground of a region, by the coarse pass;
    `cost`: windows of one.

    How many regions are computed before a look depends on their foreground, and not on what of it is missed."""
    left, taken = 1 - CONFIDENCE, (0, Rate(0.0, 1.0, 0))
    for number, look in enumerate(LOOKS):
        while sample.left and not (len(sample.found) >= LEAST and tells(sample.found, look, target)):
            if hopeless(sample.found, target):
                return settled(sample.found, target, target / SPARED, left)
            count = _next(look.needed(target) - evidence(sample.found), likely, len(sample.found), sample.left)
            tell(f"{count} {'more ' if sample.found else ''}regions are computed in full")
            sample.take(count)
        error = look.error if sample.left else left
        found = settled(sample.found, target, target / SPARED, error)
        taken, left = _better(taken, found, target), left - error
        if not sample.left or number + 1 == len(LOOKS):
            break
        more = (LOOKS[number + 1].needed(target) - evidence(sample.found)) / max(1e-9, likely)
        wished = threshold_of(sample.found, target / SPARED)
        spared = int(((sample.windows >= taken[0]) & (sample.windows < wished)).sum())
        if taken[1].bound <= target and spared <= cost * more:
            break
    return taken


def _better(one: tuple[int, Rate], other: tuple[int, Rate], target: float) -> tuple[int, Rate]:
    """Of two looks' thresholds the larger one that is proved, as both may be believed; else the later one."""
    return one if one[1].bound <= target and (other[1].bound > target or other[0] < one[0]) else other


def _next(missing: float, likely: float, done: int, left: int) -> int:
    """How many regions are computed before it is asked again whether they tell enough: a third of those that it seems to
    take, as one cannot know; at first `LEAST`, and never more than were computed before."""
    wanted = ceil(max(0.0, missing) / max(1e-9, likely) / 3 / FEWEST) * FEWEST
    return min(left, max(FEWEST, min(wanted, done)) if done else LEAST)


def best(scores: Array, spans: Sequence[Sequence[tuple[int, int]]], cell: Sequence[int]) -> Array:
    """The largest score of the cells that meet each box of a grid, whose spans are given per axis."""
    for a, (along, size) in enumerate(zip(spans, cell, strict=True)):
        scores = np.stack([scores.take(range(lo // size, -(-hi // size)), a).max(a) for lo, hi in along], a)
    return scores


def closed(inferred: Array, axes: Sequence[AxisGrid], cell: Sequence[int]) -> Array:
    """The cells of a volume all of whose windows are inferred, (*cells) bool. `inferred`: (*windows) bool."""
    for a, (axis, size) in enumerate(zip(axes, cell, strict=True)):
        near = [axis.meeting(lo, min(lo + size, axis.size)) for lo in range(0, axis.size, size)]
        inferred = np.stack([inferred.take(windows, a).all(a) for windows in near], a)
    return inferred


def over(scores: Array, box: Box, cell: Sequence[int]) -> Array:
    """Those of the cells that meet the box."""
    return scores[tuple(slice(lo // c, -(-hi // c)) for lo, hi, c in zip(box.lo, box.hi, cell, strict=True))]
