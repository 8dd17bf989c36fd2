"""``--tiling auto``: the cheapest windows whose labels surely agree with the best inference that fits, as well as the
model's own tiling does, on regions of the user's own volume.

At corners in the volume's inside, windows of several sizes are inferred once each, and their octant at the corner is
compared with the middle of a far larger window, or with labels (``--truth``). One such window tells how labels agree at
every distance from its border, along each axis, so every overlap is judged by it: with the blend `crop`, a voxel comes
from the window whose border is farthest. What is learnt is a property of model and data; windows are then fitted to
the volume's shape (`unet_engine.plan.fitting`).

It follows from volume, mask, model, precision and settings, and from neither the region of interest nor the part.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.backends.opening import as_host
from unet_engine.backends.receptive_field import radius
from unet_engine.plan.box import Box
from unet_engine.prepare.corners import AxisSizes, Corner, corner_near
from unet_engine.prepare.decisions import Decisions
from unet_engine.prepare.draft import Draft
from unet_engine.prepare.proof import Counts, figures, spare
from unet_engine.prepare.regions import labels_of
from unet_engine.prepare.tiling_choice import Learnt, Measured, TilingChoice, known, remember
from unet_engine.prepare.tiling_larger import Evidence, judged_larger
from unet_engine.prepare.tiling_looking import BUDGET, SEED, Keeps, Memory
from unet_engine.prepare.tiling_reference import NOT_MEANT, Design, Reference, labels_in, truth_of
from unet_engine.prepare.tiling_settling import FOR_PROOF, Settling
from unet_engine.units import Tell, silent, times
from unet_engine.volumes import windows
from unet_engine.volumes.base import Volume
from unet_engine.volumes.validity import unmeasured

REGIONS, LEAST_REGIONS = 8, 4
"""Regions that are looked at, and how few are still enough."""
MARGINS = (0.0, 1 / 16, 1 / 8, 3 / 16, 1 / 4)
"""Distances from a window's border from which on voxels are kept, as parts of the window."""
BAR = 0.5
"""Overlap of the model's own tiling."""
EQUAL = 1e-3
"""Dice coefficients against labels that differ by less are equal: two tilings that are as good differ by chance."""


def search(draft: Draft, decisions: Decisions, memory: Memory, tell: Tell = silent) -> TilingChoice:
    """What was learnt of the model on data of this kind, else what is found out now, fitted to this volume; and what
    the network's graph tells without looking. Of the decisions so far only the tiling is open, which is the model's
    own. `tell` hears how far it is.

    Raises `InputError` for labels that do not fit the volume.
    """
    trier = _Trier(draft, decisions, memory, tell)
    points = trier.full()
    learnt, searched, reason = None, False, ""
    if not any(point.lasts <= 1 for point in points):  # else nothing can be cheaper
        try:
            learnt, searched = trier.learnt()
        except Keeps as why:
            reason = str(why)
    if learnt is not None:
        points += trier.fit.measured(learnt, min(learnt.most, trier.most))
        if trier.evidence is not None:
            points += judged_larger(trier, learnt, trier.evidence, points)
            learnt = learnt.model_copy(update={"share": round(trier.computed / trier.run(), 4)})
    candidates = trier.fit.candidates(points)
    if not candidates:
        own = trier.fit.kept(reason or trier.fit.why_none(learnt, points), learnt, points, searched=searched)
        return own.model_copy(update={"settled": not reason and any(point.passed for point in points)})
    return trier.settled(candidates, points, learnt, searched=searched)


class _Trier(Settling):
    """Looks at regions, and learns from them."""

    evidence: Evidence | None = None
    """What larger windows than were looked at can be judged by; None where labels do not decide."""

    # --- learning ---

    def learnt(self) -> tuple[Learnt, bool]:
        """What is known of the model on data of this kind, and whether that had to be found out."""
        settings = self.survey.settings
        found = None if settings.truth else known(self.key, self.quantiles, settings.tiling_budget or 0.0)
        if found is not None:
            return found, False
        found = self.learn()
        if not found.truth:
            remember(self.key, found)
        return found, True

    def learn(self) -> Learnt:
        survey, settings = self.survey, self.survey.settings
        truth = truth_of(settings.truth, survey.volume, self.spec.label_count) if settings.truth else None
        reach = None if truth else self._reach()
        design = self._design(reach, truth)
        corners = self._corners(design)
        self.tell(
            f"looking at {len(corners)} regions: windows of {', '.join(times(self.inputs(c)) for c in design.contexts)}"
            + (f" against one of {times(self.inputs(design.yardstick))}" if design.yardstick else " against the labels")
        )
        references = self._references(design, corners, truth)
        counts = self._compared(design, corners, references)
        bar = self._bar(design, corners, references)
        needed: Counts | float = bar if settings.tolerance is None else settings.tolerance
        slack = EQUAL if truth and settings.tolerance is None else 0.0
        measured = [
            Measured(
                context=context[self.planes :],
                margin=margin[self.planes :],
                agreement=figures(found.sum(0)).agreement,
                least_dice=figures(found.sum(0)).least_dice,
                spare=spare(found, needed, dice_alone=truth is not None) + slack,
            )
            for (context, margin), found in counts.items()
        ]
        own = figures(bar.sum(0))
        if truth is not None:
            cells = self._bar_cells(design, corners)
            codes = [r.at(cell) * self.spec.label_count for r, cell in zip(references, cells, strict=True)]
            self.evidence = Evidence(cells, lambda n, labels: self._confusion(codes[n] + labels), needed, slack)
        return Learnt(
            tolerance=settings.tolerance,
            truth=truth is not None,
            yardstick=self.inputs(design.yardstick) if design.yardstick else None,
            weaker=truth is None and reach is None,
            bar_agreement=own.agreement,
            bar_dice=own.least_dice,
            regions=tuple(str(corner.box(design.octant(design.contexts[-1], corner))) for corner in corners),
            seed=SEED,
            budget=settings.tiling_budget or BUDGET,
            most=min(self.most, 2 * prod(self.inputs(design.contexts[-1]))),
            share=round(self.computed / self.run(), 4),
            quantiles=self.quantiles,
            measured=tuple(measured),
        )

    def _reach(self) -> tuple[int, ...] | None:
        """How far the network sees, per axis of the volume, beyond what it loses; measured where nothing tells it."""
        reach = self.reach
        if reach is None:
            with as_host(self.draft.network) as host:
                found = radius(host)
            self.computed += 9 * prod(self.window)
            reach = found and tuple(max(0, r - m) for r, m in zip(found, self.spec.margin, strict=True))
        return None if reach is None else (0,) * self.planes + reach

    def _design(self, reach: tuple[int, ...] | None, truth: Volume | None) -> Design:
        """The largest windows of which enough regions are within the budget, in time and memory."""
        contexts, axes = self.contexts(), self.axes()
        budget = self.survey.settings.tiling_budget or BUDGET
        kept = FOR_PROOF if self.survey.choice.proved else 0.0
        while contexts:
            design = Design(tuple(contexts), None if truth else self._yardstick(contexts[-1], reach, axes))
            if truth or design.yardstick:
                each = sum(prod(self.inputs(size)) for size in contexts) + 2 ** len(self.spec.axes) * prod(self.window)
                each += self.dearer * prod(self.inputs(design.yardstick)) if design.yardstick else 0
                count = int(((1 - kept) * self.budget - self.computed) / each)
                if count >= LEAST_REGIONS:
                    return replace(design, regions=min(count, REGIONS))
            contexts.pop()
        share = (LEAST_REGIONS * each + self.computed) / self.run() if truth or design.yardstick else None
        raise Keeps(
            "no window with more context fits the memory"
            if share is None
            else f"looking at {LEAST_REGIONS} regions would take {share:.0%} of the run, and {budget:.0%} are allowed; "
            "see --tiling-budget"
        )

    def _yardstick(
        self, context: tuple[int, ...], reach: tuple[int, ...] | None, axes: Sequence[AxisSizes]
    ) -> tuple[int, ...] | None:
        """Output of the window around an octant of `context` in which the octant has all the context the network sees,
        or twice its own where it sees farther; less where memory is short."""
        full = [min(r, c) for r, c in zip(reach or context, context, strict=True)]
        for part in (1.0, 0.75, 0.5):
            sizes = [
                1 if a < self.planes else axis.at_least(-(-context[a] // 2) + 2 * round(part * full[a]) + axis.lattice)
                for a, axis in enumerate(axes)
            ]
            if None not in sizes and prod(self.inputs(sizes)) <= self.memory.most(1) // self.larger:
                return tuple(int(s or 0) for s in sizes)
        return None

    def _corners(self, design: Design) -> list[Corner]:
        survey, axes = self.survey, self.axes()
        rng = np.random.default_rng(SEED)
        boxes = windows.pool(
            survey.volume, self.draft.scale, self.own[self.planes :], design.regions, rng,
            lambda box: all(mask.read(box).any() for mask in survey.seen_masks),
        )  # fmt: skip
        strides = [max(1, int(n * (1 - BAR))) for n in self.own]
        corners = [corner_near(box, design.contexts[-1], axes, strides, rng) for box in boxes]
        corners = [
            replace(
                c, at=(*box.lo[: self.planes], *c.at[self.planes :]), signs=(0,) * self.planes + c.signs[self.planes :]
            )
            for c, box in zip(corners, boxes, strict=True)
        ]
        corners = list(dict.fromkeys(corners))
        if len(corners) < LEAST_REGIONS:
            raise Keeps(f"{survey.volume.path} has {len(corners)} region(s) to look at, and {LEAST_REGIONS} are needed")
        return corners

    def _references(self, design: Design, corners: Sequence[Corner], truth: Volume | None) -> list[Reference]:
        """Labels around each corner to compare with."""
        largest = [corner.box(design.octant(design.contexts[-1], corner)) for corner in corners]
        if truth is not None:
            return [self._reference(box, labels_in(truth, box, self.spec.label_count)) for box in largest]
        assert design.yardstick is not None
        boxes = [
            corner.around(octant, design.yardstick, self.axes())
            for corner, octant in zip(corners, largest, strict=True)
        ]
        if not all(box.contains(octant) for box, octant in zip(boxes, largest, strict=True)):
            raise Keeps(f"{self.survey.volume.path} has no room for windows with more context")
        self.computed += self.dearer * prod(self.inputs(design.yardstick)) * len(boxes)
        with self.in_fp32(self.inputs(design.yardstick)) as host:
            found = list(map(self._reference, boxes, self.labels(host, boxes)))
        present = {int(label) for reference in found for label in np.unique(reference.labels)} - {NOT_MEANT}
        if len(present) < 2:
            only = " and ".join(self.spec.class_names[k] for k in present) or "nothing"
            raise Keeps(f"the network gives {only} alone in all of {len(found)} regions")
        return found

    def _reference(self, box: Box, labels: Array) -> Reference:
        """Without what no tiling decides: voxels outside the mask, or never measured."""
        found = labels.astype(np.int64)
        for mask in self.survey.seen_masks:
            found[mask.read(box) == 0] = NOT_MEANT
        volume = self.survey.volume
        if volume.missing or volume.gaps is not None:
            absent = unmeasured(volume, box, volume.read(box))
            if absent is not None:
                found[absent.any(axis=0)] = NOT_MEANT
        return Reference(box, found)

    def _compared(
        self, design: Design, corners: Sequence[Corner], references: Sequence[Reference]
    ) -> dict[tuple[tuple[int, ...], tuple[int, ...]], Counts]:
        """Per context and margin, the confusion of every region."""
        found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Array]] = {}
        for context in design.contexts:
            boxes = [corner.box(context) for corner in corners]
            for corner, box, reference, labels in zip(
                corners, boxes, references, self.inferred(context, boxes), strict=True
            ):
                octant = corner.box(design.octant(context, corner))
                codes = reference.at(octant) * self.spec.label_count + Reference(box, labels).at(octant)
                codes = codes[tuple(slice(None, None, -1 if s < 0 else 1) for s in corner.signs)]
                for margin in self.margins(context):
                    kept = codes[tuple(slice(m if s else 0, None) for m, s in zip(margin, corner.signs, strict=True))]
                    found.setdefault((context, margin), []).append(self._confusion(kept))
            self.tell(f"windows of {times(self.inputs(context))} are looked at")
        return {key: np.stack(counts) for key, counts in found.items()}

    def _confusion(self, codes: Array) -> Array:
        n = self.spec.label_count
        return np.bincount(codes[codes >= 0], minlength=n * n).reshape(n, n)

    def margins(self, context: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Margins per axis of the volume to judge; of half a cell of the lattice, as windows begin there."""
        per_axis = []
        for a, axis in enumerate(self.axes()):
            unit = max(1, axis.lattice // 2)
            steps = {0} if a < self.planes else {round(part * context[a] / unit) * unit for part in MARGINS}
            per_axis.append(sorted(m for m in steps if 2 * m < context[a]))
        return list(itertools.product(*per_axis))

    def _bar(self, design: Design, corners: Sequence[Corner], references: Sequence[Reference]) -> Counts:
        """The confusion of every region with the model's own tiling, in a cell of its grid at the corner."""
        found = []
        for region, reference in zip(self._bar_cells(design, corners), references, strict=True):
            decisions = self.decisions.labels_of(self.spec, region, self.decisions.tiling)
            self.computed += self.draft.plan(decisions).window_range.size * prod(self.window)
            codes = reference.at(region) * self.spec.label_count + labels_of(self.draft, decisions)
            found.append(self._confusion(codes))
        return np.stack(found)

    def _bar_cells(self, design: Design, corners: Sequence[Corner]) -> list[Box]:
        cell = [max(1, int(n * (1 - BAR))) if a >= self.planes else 1 for a, n in enumerate(self.own)]
        octants = (design.octant(design.contexts[-1], corner) for corner in corners)
        return [corner.box([*map(min, cell, octant)]) for corner, octant in zip(corners, octants, strict=True)]
