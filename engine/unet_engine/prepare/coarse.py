"""``--coarse auto``: where foreground cannot be, nothing is computed.

The network runs over the volume seen from farther away, and gives each cell of it a score: the largest probability of
anything but background there or in the cells around it. Regions of the run's own grid, drawn at random, are computed in
full until they tell enough, and it is counted what cells below a threshold would have missed there
(`unet_engine.prepare.missed`). Where that is surely little enough, windows without a cell above the threshold are left
out. Cells are kept whose windows are all computed, whatever their score, so less is missed than is counted; voxels
outside of these are background, and all others are those of a run that skips nothing.

It follows from volume, mask, model and settings, and from neither the region of interest nor the part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from unet_engine.backends.base import Array, Network
from unet_engine.backends.opening import open_network
from unet_engine.model.spec import ModelSpec
from unet_engine.pipeline.columns import run_columns
from unet_engine.pipeline.worker import Opened, Worker
from unet_engine.plan.box import Box
from unet_engine.plan.fitting import AxisNeeds, fitted
from unet_engine.plan.plan import Plan
from unet_engine.prepare.coarse_choice import MISS, CoarseChoice
from unet_engine.prepare.coarse_sample import (
    LEAST,
    LIKELY,
    MOST_REGIONS,
    SEED,
    Sample,
    best,
    closed,
    computed,
    computed_once,
    drawn_of,
    over,
    proved,
)
from unet_engine.prepare.decisions import Decisions, Tiling
from unet_engine.prepare.draft import Draft
from unet_engine.prepare.missed import CONFIDENCE, Rate, hopeless
from unet_engine.prepare.outside import stored_of
from unet_engine.units import Tell, silent
from unet_engine.volumes.cells import CellMask
from unet_engine.volumes.coarse import Coarse

FACTOR = 4
"""Voxels to one of the coarse pass, along each axis of the model."""
CELL = 2
"""Voxels of the coarse pass to a cell."""
OVERLAP = 0.125
"""Of windows of the coarse pass, at least."""
LARGER = 1.5
"""Voxels of such a window that fits the volume better, to those of the model's own, at most."""
BUDGET = 0.1
"""Part of a run that coarse pass and regions may compute."""
SURE = 255
"""The largest score that a cell has by itself."""


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
    regions, cost = drawn_of(draft, decisions, run)
    coarse = Coarse(survey.volume, factors)
    work, first = computed(run), computed(_coarse_plan(draft, decisions, coarse))
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
    scores = _ranked(alone)
    windows = best(scores, [[axis.support(k) for k in range(axis.count)] for axis in run.axes], cell)
    sample = Sample(draft, decisions, regions[:count], scores, cell, background, windows)
    likely = [int((over(alone, box, cell) >= LIKELY).sum()) for box in regions]
    threshold, rated = proved(sample, choice.target, sum(likely) / len(likely), cost / computed_once(run), tell)
    sample.take_up(threshold)
    count = len(sample.found)
    mask = CellMask.of(closed(windows >= threshold, run.axes, cell), survey.volume.shape, cell)
    return choice.model_copy(
        update={
            "kept": _objection(rated, choice.target, mask, in_vain=hopeless(sample.found, choice.target)),
            "factors": factors,
            "threshold": threshold,
            "seed": SEED,
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
    if (scan := draft.survey.scan).missing or scan.validity is not None or scan.gaps is not None:
        return "voxels of the volume were not measured; a --mask leaves those out"
    if spec.activation == "none":
        return "the network gives numbers, not probabilities"
    if background and not _excludes(spec):
        return f"windows that hold nothing are {spec.class_names[background]}, which is no background"
    return ""


def _excludes(spec: ModelSpec) -> bool:
    """Whether each label is a channel, the background, too."""
    return spec.channels_out > 1 and spec.label_count == spec.channels_out


def _objection(rated: Rate, target: float, mask: CellMask, *, in_vain: bool) -> str:
    if not rated.cells:
        return "no region that was computed has foreground, so nothing tells how much is missed"
    if in_vain:
        return (
            f"the network does not see the foreground in voxels {FACTOR} times as large: in {rated.cells:,} cells it missed "
            f"{rated.seen:.2g}, and {target:g} are allowed"
        )
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
    looking = _looking(decisions, draft, coarse)
    return _seen(draft, coarse, draft.network, looking.tiling).plan(looking)


def _seen(draft: Draft, coarse: Coarse, network: Network, tiling: Tiling) -> Draft:
    survey = replace(draft.survey, volume=coarse, scan=coarse, mask=None, window=tiling.window)
    return replace(draft, survey=survey, network=network)


def _looking(decisions: Decisions, draft: Draft, coarse: Coarse) -> Decisions:
    return replace(
        decisions, tiling=_tiling(draft, coarse), roi=Box.of_shape(coarse.shape), part=(1, 1), kind="probabilities",
        dtype="uint8", poses=decisions.poses[:1],
    )  # fmt: skip


def _tiling(draft: Draft, coarse: Coarse) -> Tiling:
    """Windows of the coarse pass: the model's own or the user's, or somewhat larger ones that fit it better, as a last
    window that is moved back may be as much again."""
    spec = draft.survey.model.spec
    window = draft.survey.settings.window or spec.window
    shared = tuple(int(OVERLAP * (w - 2 * m)) for w, m in zip(window, spec.margin, strict=True))
    sizes = coarse.shape[len(coarse.shape) - len(window) :]
    needs = [
        AxisNeeds(n, w - 2 * m, s, w, step, m)
        for n, w, s, step, m in zip(sizes, window, shared, spec.window_step, spec.margin, strict=True)
    ]
    better = fitted(needs, int(LARGER * prod(window)))
    return Tiling(better.window if better else window, None, "gaussian", shared)


def _scores(draft: Draft, decisions: Decisions, coarse: Coarse, background: int) -> Array:
    """The probability of anything but background, of 255: (*coarse.shape) uint8."""
    setup, network = draft.network.setup, draft.network
    looking = _looking(decisions, draft, coarse)
    if setup.window != looking.tiling.window:
        network = open_network(draft.survey.backend, replace(setup, window=looking.tiling.window, batch=1))
    try:
        seen = _seen(draft, coarse, network, looking.tiling)
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


def _ranked(alone: Array) -> Array:
    """Scores by which cells are kept, from `alone`: the largest of a cell and of those around it; where that is as large
    as can be, what the cell has itself on top, so that borders of what is surely there can be left out. uint16."""
    around = alone
    for a in range(alone.ndim):
        padded = np.pad(around, [(1, 1) if b == a else (0, 0) for b in range(alone.ndim)])
        n = alone.shape[a]
        around = np.maximum.reduce([padded.take(range(k, k + n), a) for k in range(3)])
    return around + np.where(around == SURE, alone, np.uint16(0)).astype(np.uint16)
