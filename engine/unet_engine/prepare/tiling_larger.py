"""Windows larger than those that were looked at, where labels decide.

What was learnt holds for windows of up to twice the voxels of the largest that were looked at: the statistics of a
window (InstanceNorm) change with its size. With labels (``--truth``) larger ones can be judged by themselves: the
tilings that would be fastest are run where the octants lie that were looked at, as a run would, seams and all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Protocol

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.plan.box import Box
from unet_engine.prepare.decisions import Decisions, Tiling
from unet_engine.prepare.draft import Draft
from unet_engine.prepare.proof import Counts, figures, spare
from unet_engine.prepare.regions import labels_of
from unet_engine.prepare.tiling_choice import Learnt, Point
from unet_engine.prepare.tiling_looking import Keeps
from unet_engine.prepare.tiling_settling import Settling
from unet_engine.units import times

TRIED = 2
"""Tilings that are judged at most."""


class Confusion(Protocol):
    def __call__(self, box: int, labels: Array) -> Array:
        """Of the labels (*box.shape) in that box of the evidence: (labels, labels)."""


@dataclass(frozen=True)
class Evidence:
    """What tilings are judged by."""

    boxes: Sequence[Box]
    confusion: Confusion
    needed: Counts | float
    """What the bar has there, or a figure."""
    slack: float
    """Dice that differs by less is equal."""


def judged_larger(trier: Settling, learnt: Learnt, evidence: Evidence, points: Sequence[Point]) -> list[Point]:
    """Tilings in larger windows that compute less than all of `points` that pass, with what the evidence says of them."""
    nearest = min((p.lasts for p in points if p.passed), default=inf)
    offered = [
        p
        for p in trier.fit.measured(learnt, trier.most)
        if p.passed and prod(p.window) > learnt.most and p.lasts < min(nearest, trier.fit.lasts)
    ]
    found: list[Point] = []
    for point in trier.fit.candidates(offered)[:TRIED]:
        decisions = _decisions(trier, point, evidence.boxes)
        cost = sum(trier.draft.plan(d).window_range.size for d in decisions) * prod(point.window)
        if trier.computed + cost > trier.budget:
            continue
        trier.tell(f"windows of {times(point.window)}, larger than those that were looked at, are judged by the labels")
        try:
            found.append(_judged(trier, point, decisions, evidence))
        except Keeps:  # they do not fit the memory
            continue
        trier.computed += cost
        if found[-1].passed:
            break
    return found


def _decisions(trier: Settling, point: Point, boxes: Sequence[Box]) -> list[Decisions]:
    """The regions to run: one around all boxes, or each of them, whichever takes fewer windows."""
    tiling = Tiling(point.window, None, "crop", point.shared)
    around = Box(
        tuple(map(min, zip(*(b.lo for b in boxes), strict=True))),
        tuple(map(max, zip(*(b.hi for b in boxes), strict=True))),
    )
    whole = [trier.decisions.labels_of(trier.spec, around, tiling)]
    each = [trier.decisions.labels_of(trier.spec, box, tiling) for box in boxes]

    def windows(decisions: Sequence[Decisions]) -> int:
        return sum(trier.draft.plan(d).window_range.size for d in decisions)

    return whole if windows(whole) <= windows(each) else each


def _judged(trier: Settling, point: Point, decisions: Sequence[Decisions], evidence: Evidence) -> Point:
    with trier.network(point.window) as network:
        draft: Draft = replace(trier.draft, survey=replace(trier.survey, window=point.window), network=network)
        runs = [(d.roi, labels_of(draft, d)) for d in decisions]
    counts = []
    for number, box in enumerate(evidence.boxes):
        roi, labels = next((roi, labels) for roi, labels in runs if roi.contains(box))
        counts.append(evidence.confusion(number, labels[box.relative_to(roi.lo).slices()]))
    found = np.stack(counts)
    have = figures(found.sum(0))
    passed = spare(found, evidence.needed, dice_alone=True) + evidence.slack >= 0
    return point.model_copy(update={"agreement": have.agreement, "least_dice": have.least_dice, "passed": passed})
