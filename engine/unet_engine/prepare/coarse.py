"""``--coarse auto``: where foreground cannot be, nothing is computed.

The network runs over the volume seen from farther away, and gives each cell of it a score: the largest probability of
anything but background there or in the cells around it. Regions of the run's own grid, drawn at random, are computed in
full, and it is counted what cells below a threshold would have missed there (`unet_engine.prepare.missed`). Where that
is surely little enough, windows without a cell above the threshold are left out, and voxels outside of all such cells
are background: all others are those of a run that skips nothing.

It follows from volume, mask, model and settings, and from neither the region of interest nor the part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil, prod

import numpy as np

from unet_engine.backends.base import Array, Network
from unet_engine.backends.opening import open_network
from unet_engine.model.spec import ModelSpec
from unet_engine.pipeline.columns import run_columns
from unet_engine.pipeline.worker import Opened, Worker
from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.plan import Plan
from unet_engine.prepare.coarse_choice import MISS, CoarseChoice
from unet_engine.prepare.decisions import Decisions, Tiling
from unet_engine.prepare.draft import Draft
from unet_engine.prepare.missed import CONFIDENCE, Rate, Region, needed, settled
from unet_engine.prepare.outside import stored_of
from unet_engine.prepare.regions import labels_of
from unet_engine.units import Tell, silent
from unet_engine.volumes.cells import CellMask
from unet_engine.volumes.coarse import Coarse

SEED = 0
FACTOR = 4
"""Voxels to one of the coarse pass, along each axis of the model."""
CELL = 2
"""Voxels of the coarse pass to a cell."""
OVERLAP = 0.125
"""Of windows of the coarse pass."""
BUDGET = 0.1
"""Part of a run that coarse pass and regions may compute."""
LEAST = 8
"""Regions that are computed at least."""
SPARED = 4
"""A threshold is taken that misses such a part of what is allowed in the regions, at most."""
LIKELY, EVIDENCE = 128, 2
"""Cells of such a score are taken for foreground where it is counted how many regions hold enough of it, and how many
times the cells that prove the rate where none are missed."""
MOST_REGIONS = 2048
"""Regions that are drawn at most: in 3D with the blend `crop` one is a window's own 48³ voxels, 216 cells, of which few
hold foreground where that is sparse."""
MANY, DRAWN = 2**24, 2**18
"""Regions of a volume of which not all are put in order, and how many are then."""
SPAN = 4
"""Windows along each axis that a region spans where they overlap: those around it are computed for it alone."""


def search(draft: Draft, decisions: Decisions, tell: Tell = silent) -> CoarseChoice:
    """Where foreground can be. `decisions`: of the run, with its tiling; `draft` has the network open for that."""
    survey = draft.survey
    settings, spec = survey.settings, survey.model.spec
    background = _background(spec)
    choice = CoarseChoice(
        kept="", target=settings.coarse_miss or MISS, background=spec.class_names[background]
    )  # fmt: skip
    if why := _unfit(draft, background):
        return choice.model_copy(update={"kept": why})
    planes = len(survey.volume.shape) - len(spec.axes)
    factors = (1,) * planes + (FACTOR,) * len(spec.axes)
    run = draft.plan(decisions.labels_of(spec, Box.of_shape(survey.volume.shape), decisions.tiling))
    regions, cost = _regions(draft, decisions, run, survey.volume.shape)
    coarse = Coarse(survey.volume, factors)
    work, first = _computed(run), _computed(_coarse_plan(draft, decisions, coarse))
    budget = settings.coarse_budget or BUDGET
    count = min(MOST_REGIONS, len(regions), int((budget * work - first) / max(1, cost)))
    if count < LEAST:
        needed = (first + LEAST * cost) / work
        why = (
            f"the volume has {len(regions)} regions, and {LEAST} are computed in full at least"
            if len(regions) < LEAST
            else f"looking would take {needed:.0%} of the run, and {budget:.0%} are allowed; see --coarse-budget"
        )
        return choice.model_copy(update={"kept": why})
    tell(f"coarse pass over voxels of {'×'.join(map(str, factors))}")
    cell = tuple(CELL * f if a >= planes else 1 for a, f in enumerate(factors))
    alone = _cells(_scores(draft, decisions, coarse, background), planes)
    count = _enough(regions, count, alone, cell, choice.target)
    scores = _spread(alone)
    tell(f"{count} regions are computed in full")
    found = [_region(draft, decisions, box, scores, cell, background) for box in regions[:count]]
    threshold, rated = settled(found, choice.target, choice.target / SPARED)
    mask = CellMask.of(scores >= threshold, survey.volume.shape, cell)
    return choice.model_copy(
        update={
            "kept": _objection(rated, choice.target, mask),
            "factors": factors,
            "threshold": threshold,
            "regions": tuple(map(str, regions[:count])),
            "proving": count,
            "cells": rated.cells,
            "missed": rated.seen,
            "bound": rated.bound,
            "left": mask.share,
            "share": round((first + count * cost) / work, 4),
            "shape": mask.shape,
            "cell": cell,
            "mask": mask.text,
        }
    )


def _unfit(draft: Draft, background: int) -> str:
    """Why nothing can be looked at; empty where it can."""
    spec = draft.survey.model.spec
    if draft.survey.crop is not None:
        return "of the volume, a part is looked at, outside of which all is 0"
    if draft.survey.image:
        apart = "resampled for the network" if draft.survey.grids else "normalised by what lies around a voxel"
        return f"the volume is {apart}"
    if draft.survey.scan.nodata or draft.survey.scan.validity is not None:
        return "voxels of the volume were not measured; a --mask leaves those out"
    if spec.activation == "none":
        return "the network gives numbers, not probabilities"
    if background and not _excludes(spec):
        return f"windows that hold nothing are {spec.class_names[background]}, which is no background"
    return ""


def _excludes(spec: ModelSpec) -> bool:
    """Whether each label is a channel, the background, too."""
    return spec.channels_out > 1 and spec.label_count == spec.channels_out


def _objection(rated: Rate, target: float, mask: CellMask) -> str:
    if not rated.cells:
        return "no region that was computed has foreground, so nothing tells how much is missed"
    if rated.bound > target:
        return (
            f"of the foreground's voxels up to {rated.bound:.2g} might be missed at {CONFIDENCE:.0%} confidence, and "
            f"{target:g} are allowed; more --coarse-budget shows more"
        )
    return "foreground can be everywhere" if mask.share == 1 else ""


def _background(spec: ModelSpec) -> int:
    """The label of windows that hold nothing, as the spec tells it; else 0."""
    return 0 if spec.empty is None else int(stored_of(spec, "labels", "uint16", spec.empty)[0])


# --- the coarse pass ---


def _coarse_plan(draft: Draft, decisions: Decisions, coarse: Coarse) -> Plan:
    return _seen(draft, coarse, draft.network).plan(_looking(decisions, draft, coarse))


def _seen(draft: Draft, coarse: Coarse, network: Network) -> Draft:
    survey = replace(draft.survey, volume=coarse, scan=coarse, mask=None, window=_window(draft))
    return replace(draft, survey=survey, network=network)


def _window(draft: Draft) -> tuple[int, ...]:
    """The model's own, or the user's."""
    return draft.survey.settings.window or draft.survey.model.spec.window


def _looking(decisions: Decisions, draft: Draft, coarse: Coarse) -> Decisions:
    tiling = Tiling(_window(draft), OVERLAP, "gaussian")
    return replace(
        decisions, tiling=tiling, roi=Box.of_shape(coarse.shape), part=(1, 1), kind="probabilities", dtype="uint8",
        poses=decisions.poses[:1],
    )  # fmt: skip


def _scores(draft: Draft, decisions: Decisions, coarse: Coarse, background: int) -> Array:
    """The probability of anything but background, of 255: (*coarse.shape) uint8."""
    setup, window = draft.network.setup, _window(draft)
    network = draft.network
    if setup.window != window:
        network = open_network(draft.survey.backend, replace(setup, window=window, batch=1))
    try:
        seen, looking = _seen(draft, coarse, network), _looking(decisions, draft, coarse)
        kept = _Scores(coarse.shape, _score_of(draft.survey.model.spec, background))
        job = replace(seen.job(looking, seen.plan(looking)), mask=None, outside=None)
        worker = Worker(job, Opened(coarse, None, network, kept))
        run_columns([worker], lambda _: True)
        worker.leave()
        return kept.values
    finally:
        if network is not draft.network:
            network.close()


def _score_of(spec: ModelSpec, background: int) -> Callable[[Array], Array]:
    """What probabilities (channels, ...) uint8 come to: the largest of the foreground's, and what the background's own
    leaves."""
    if not _excludes(spec):
        return lambda values: values.max(axis=0)
    return lambda values: 255 - values[background]


class _Scores:
    """Takes the place of an `Output`; keeps a byte for a voxel."""

    def __init__(self, shape: Sequence[int], score: Callable[[Array], Array]) -> None:
        self.values: Array = np.zeros(shape, np.uint8)
        self._score = score

    def write(self, box: Box, values: Array) -> None:
        self.values[box.slices()] = self._score(values)

    def mark(self, index: tuple[int, ...], stored: object = None) -> None:
        """Nobody will resume it."""

    def doubt(self, blocks: Sequence[tuple[int, ...]], what: str) -> None:
        """It is said when the run itself reads there."""

    def settle(self) -> None:
        """Nothing is recorded."""

    def pending(self) -> Callable[[tuple[int, ...]], bool]:
        return lambda _: True


def _cells(scores: Array, planes: int) -> Array:
    """The largest score of each cell."""
    for a in range(planes, scores.ndim):
        scores = np.maximum.reduceat(scores, np.arange(0, scores.shape[a], CELL), axis=a)
    return scores


def _spread(scores: Array) -> Array:
    """The largest of each cell and of those around it."""
    for a in range(scores.ndim):
        padded = np.pad(scores, [(1, 1) if b == a else (0, 0) for b in range(scores.ndim)])
        n = scores.shape[a]
        scores = np.maximum.reduce([padded.take(range(k, k + n), a) for k in range(3)])
    return scores


# --- regions ---


def _regions(draft: Draft, decisions: Decisions, run: Plan, shape: Sequence[int]) -> tuple[list[Box], int]:
    """Boxes of the run's grid that partition the volume, in a random order, and the voxels of input that the first
    computes: at most as many as any, since windows at the border of the volume are as large."""
    spans = [_spans(axis, decisions.tiling.blend) for axis in run.axes]
    counts = [len(s) for s in spans]
    found: list[Box] = []
    for number in _drawn(prod(counts)):
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
    return found, max(_computed(draft.plan(decisions.labels_of(spec, box, tiling))) for box in found[:LEAST])


def _drawn(count: int) -> Array:
    """Numbers below `count` in a random order: all, or of very many as many as memory holds."""
    rng = np.random.default_rng(SEED)
    return rng.permutation(count) if count < MANY else rng.choice(count, DRAWN, replace=False)


def _computed(plan: Plan) -> int:
    """Voxels of input, in all poses and by all networks."""
    return plan.window_range.size * plan.calls * prod(plan.window_shape)


def _spans(axis: AxisGrid, blend: str) -> list[tuple[int, int]]:
    """Where regions begin and end along an axis."""
    if blend == "crop" or axis.count == 1:
        return [axis.support(k) for k in range(axis.count)]
    starts = [axis.start(k) for k in range(0, axis.count, SPAN)]
    ends = [*starts[1:], axis.size]
    return [(max(0, lo), hi) for lo, hi in zip(starts, ends, strict=True) if hi > max(0, lo)]


def _enough(regions: Sequence[Box], most: int, scores: Array, cell: Sequence[int], target: float) -> int:
    """How many of the regions hold as many cells with foreground as the proof asks for, to go by the coarse pass. It
    does not depend on which of them are computed."""
    likely = [int((_over(scores, box, cell) >= LIKELY).sum()) for box in regions]
    wanted = EVIDENCE * needed(target) / max(1e-9, sum(likely) / len(likely))
    return max(LEAST, min(most, ceil(wanted)))


def _over(scores: Array, box: Box, cell: Sequence[int]) -> Array:
    """Those of the cells that meet the box."""
    return scores[tuple(slice(lo // c, -(-hi // c)) for lo, hi, c in zip(box.lo, box.hi, cell, strict=True))]


def _region(
    draft: Draft, decisions: Decisions, box: Box, scores: Array, cell: Sequence[int], background: int
) -> Region:
    """The cells of a box that have foreground."""
    spec = draft.survey.model.spec
    foreground = labels_of(draft, decisions.labels_of(spec, box, decisions.tiling)) != background
    for mask in draft.survey.seen_masks:
        foreground &= mask.read(box) != 0
    voxels = foreground.astype(np.int64)
    for a, (lo, hi, size) in enumerate(zip(box.lo, box.hi, cell, strict=True)):
        first = [lo, *range((lo // size + 1) * size, hi, size)]
        voxels = np.add.reduceat(voxels, np.array(first) - lo, axis=a)
    there = _over(scores, box, cell)
    some = voxels > 0
    return Region(voxels[some], there[some].astype(np.int64))
