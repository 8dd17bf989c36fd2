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
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from unet_engine.backends.base import Array, Backend
from unet_engine.backends.opening import as_host, open_network
from unet_engine.backends.out_of_memory import is_out_of_memory
from unet_engine.backends.receptive_field import radius
from unet_engine.errors import InputError, first_line
from unet_engine.pipeline.reduction import REDUCTIONS
from unet_engine.plan.box import Box
from unet_engine.plan.fitting import lattice_of
from unet_engine.prepare.corners import AxisSizes, Corner, corner_near
from unet_engine.prepare.decisions import Decisions, label_dtype
from unet_engine.prepare.draft import Draft
from unet_engine.prepare.precision import choose
from unet_engine.prepare.proof import Counts, figures, spare
from unet_engine.prepare.regions import labels_of
from unet_engine.prepare.tiling_choice import Learnt, Measured, TilingChoice, known, remember
from unet_engine.prepare.tiling_fit import Fit
from unet_engine.units import Tell, silent, times
from unet_engine.volumes import nodata, samples, windows
from unet_engine.volumes.base import Volume
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.normalize import quantiles

SEED = 0
REGIONS, LEAST_REGIONS = 8, 4
"""Regions that are looked at, and how few are still enough."""
CONTEXTS = (1.0, 1.5, 2.0)
"""Windows that are looked at, as parts of the model's own."""
MARGINS = (0.0, 1 / 16, 1 / 8, 3 / 16, 1 / 4)
"""Distances from a window's border from which on voxels are kept, as parts of the window."""
BUDGET = 0.03
"""Part of the run that looking may take."""
BAR = 0.5
"""Overlap of the model's own tiling."""
EQUAL = 1e-3
"""Dice coefficients against labels that differ by less are equal: two tilings that are as good differ by chance."""


NOT_MEANT = -(2**40)
"""In place of a label: what a tiling gives there does not count."""


class _Keeps(Exception):
    """The model's own tiling is kept, for the reason in its text."""


@dataclass(frozen=True)
class Memory:
    """What windows may take."""

    budget: int
    """Bytes for the network, at work on all threads."""
    per_voxel: float
    """Bytes that a window takes per voxel of its input."""

    def most(self, threads: int) -> int:
        """Voxels of a window of which so many are inferred at once."""
        return int(self.budget / max(self.per_voxel, 1.0) / max(1, threads))


def search(draft: Draft, decisions: Decisions, memory: Memory, tell: Tell = silent) -> TilingChoice:
    """What was learnt of the model on data of this kind, else what is found out now, fitted to this volume. Of the
    decisions so far only the tiling is open, which is the model's own. `tell` hears how far it is.

    Raises `InputError` for labels that do not fit the volume.
    """
    trier = _Trier(draft, decisions, memory, tell)
    try:
        settings = draft.survey.settings
        learnt = None if settings.truth else known(trier.key, trier.quantiles, settings.tiling_budget or 0.0)
        searched = learnt is None
        if learnt is None:
            learnt = trier.learn()
            if not learnt.truth:
                remember(trier.key, learnt)
        most = min(learnt.most, memory.most(trier.threads))
        return trier.fit.chosen(learnt.model_copy(update={"most": most}), searched=searched)
    except _Keeps as reason:
        return trier.fit.kept(str(reason))


class _Trier:
    """Everything that is asked of volume and network."""

    def __init__(self, draft: Draft, decisions: Decisions, memory: Memory, tell: Tell) -> None:
        self.draft, self.decisions, self.memory, self.tell = draft, decisions, memory, tell
        self.survey, self.spec = draft.survey, draft.survey.model.spec
        self.window = decisions.tiling.window
        self.planes = len(self.survey.volume.shape) - len(self.spec.axes)
        self.threads = draft.network.setup.threads
        self.quantiles = quantiles(samples.measured(self.survey.scan), draft.scale)
        self.reduced = REDUCTIONS["labels"](self.spec.activation, label_dtype(self.spec), self.spec.regions)
        self.fit = Fit(self.survey, decisions, self._run(), self.admits)
        self.computed = 0
        """Voxels of input so far."""
        settings, setup = self.survey.settings, draft.network.setup
        self.key = {
            "model": self.survey.model.sha256,
            "library": draft.network.version,
            "device": setup.device.partition(":")[0],
            "precision": [setup.precision, setup.network, setup.rest, list(setup.judged)],
            "window": list(self.window),
            "fixed": settings.window is not None,
            "normalization": str(self.spec.normalization),
            "tolerance": settings.tolerance,
            "version": 1,
        }

    # --- what there is to choose from ---

    def admits(self, window: tuple[int, ...]) -> bool:
        """Whether a run may have these windows: in its precision, and in its poses."""
        survey, choice = self.survey, self.survey.choice
        if survey.settings.window and window != self.window:
            return False
        if any(pose.swaps for pose in self.decisions.poses) and window[-1] != window[-2]:
            return False
        if window == self.window or choice.precision == "fp32":
            return True
        other = choose(survey.model, survey.backend, survey.devices[0], survey.settings.precision, window)
        return (other.precision, other.network, other.judged) == (choice.precision, choice.network, choice.judged)

    def axes(self) -> list[AxisSizes]:
        """Per axis of the volume; one that the model does not have is walked plane by plane."""
        return [
            AxisSizes(size, 1, 0, 1) if a < self.planes else self._sizes(a - self.planes, size)
            for a, size in enumerate(self.survey.volume.shape)
        ]

    def _sizes(self, a: int, size: int) -> AxisSizes:
        spec = self.spec
        margin, step = spec.margin[a], spec.window_step[a]
        least = (spec.window_min[a] if step else self.window[a]) - 2 * margin
        while least < 1:
            least += step
        return AxisSizes(size, least, step, lattice_of(step, self.window[a]), margin)

    def contexts(self) -> list[tuple[int, ...]]:
        """Sizes of the output of windows to look at, per axis of the volume, the model's own first."""
        found = []
        for factor in CONTEXTS:
            sizes = [
                1 if a < self.planes else axis.at_least(round(factor * self.own[a]))
                for a, axis in enumerate(self.axes())
            ]
            if None not in sizes and self.admits(self.inputs(sizes)):
                found.append(tuple(int(s or 0) for s in sizes))
        if not found:
            raise _Keeps(f"{self.survey.volume.path} is smaller than a window")
        return list(dict.fromkeys(found))

    @property
    def own(self) -> tuple[int, ...]:
        """Output of the model's own window, per axis of the volume."""
        return (1,) * self.planes + tuple(w - 2 * m for w, m in zip(self.window, self.spec.margin, strict=True))

    def inputs(self, lengths: Sequence[int | None]) -> tuple[int, ...]:
        """The window with this output, per axis of the model."""
        return tuple(int(n or 0) + 2 * m for n, m in zip(lengths[self.planes :], self.spec.margin, strict=True))

    # --- learning ---

    def learn(self) -> Learnt:
        survey, settings = self.survey, self.survey.settings
        truth = _truth(settings.truth, survey.volume, self.spec.label_count) if settings.truth else None
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
            most=min(self.memory.most(self.threads), 2 * prod(self.inputs(design.contexts[-1]))),
            share=round(self.computed / self._run(), 4),
            quantiles=self.quantiles,
            measured=tuple(measured),
        )

    def _reach(self) -> tuple[int, ...] | None:
        """How far the network sees, per axis of the volume, beyond what it loses."""
        reach = self.spec.context
        if reach is None:
            with as_host(self.draft.network) as host:
                reach = radius(host)
            self.computed += 9 * prod(self.window)
        if reach is None:
            return None
        return (0,) * self.planes + tuple(max(0, r - m) for r, m in zip(reach, self.spec.margin, strict=True))

    def _run(self) -> int:
        """Voxels that a run with the model's own tiling computes."""
        whole = Box.of_shape(self.survey.volume.shape)
        return self._windows(whole) * prod(self.window)

    def _windows(self, region: Box) -> int:
        decisions = self.decisions.labels_of(self.spec, region, self.decisions.tiling)
        return self.draft.plan(decisions).window_range.size

    def _design(self, reach: tuple[int, ...] | None, truth: Volume | None) -> _Design:
        """The largest windows of which enough regions are within the budget, in time and memory."""
        contexts, axes = self.contexts(), self.axes()
        budget = self.survey.settings.tiling_budget or BUDGET
        while contexts:
            design = _Design(tuple(contexts), None if truth else self._yardstick(contexts[-1], reach, axes))
            if truth or design.yardstick:
                each = sum(prod(self.inputs(size)) for size in (*contexts, *filter(None, [design.yardstick])))
                each += 2 ** len(self.spec.axes) * prod(self.window)
                count = int((budget * self._run() - self.computed) / each)
                if count >= LEAST_REGIONS:
                    return replace(design, regions=min(count, REGIONS))
            contexts.pop()
        share = (LEAST_REGIONS * each + self.computed) / self._run() if truth or design.yardstick else None
        raise _Keeps(
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
            if None not in sizes and prod(self.inputs(sizes)) <= self.memory.most(1):
                return tuple(int(s or 0) for s in sizes)
        return None

    def _corners(self, design: _Design) -> list[Corner]:
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
            raise _Keeps(
                f"{survey.volume.path} has {len(corners)} region(s) to look at, and {LEAST_REGIONS} are needed"
            )
        return corners

    def _references(self, design: _Design, corners: Sequence[Corner], truth: Volume | None) -> list[_Reference]:
        """Labels around each corner to compare with."""
        largest = [corner.box(design.octant(design.contexts[-1], corner)) for corner in corners]
        if truth is not None:
            return [self._reference(box, _labels_in(truth, box, self.spec.label_count)) for box in largest]
        assert design.yardstick is not None
        boxes = [
            corner.around(octant, design.yardstick, self.axes())
            for corner, octant in zip(corners, largest, strict=True)
        ]
        if not all(box.contains(octant) for box, octant in zip(boxes, largest, strict=True)):
            raise _Keeps(f"{self.survey.volume.path} has no room for windows with more context")
        found = list(map(self._reference, boxes, self._inferred(design.yardstick, boxes)))
        present = {int(label) for reference in found for label in np.unique(reference.labels)} - {NOT_MEANT}
        if len(present) < 2:
            only = " and ".join(self.spec.class_names[k] for k in present) or "nothing"
            raise _Keeps(f"the network gives {only} alone in all of {len(found)} regions")
        return found

    def _reference(self, box: Box, labels: Array) -> _Reference:
        """Without what no tiling decides: voxels outside the mask, or never measured."""
        found = labels.astype(np.int64)
        for mask in self.survey.seen_masks:
            found[mask.read(box) == 0] = NOT_MEANT
        if self.survey.volume.nodata:
            missing = nodata.where(self.survey.volume.read(box), self.survey.volume.nodata)
            found[missing.any(axis=0)] = NOT_MEANT
        return _Reference(box, found)

    def _compared(
        self, design: _Design, corners: Sequence[Corner], references: Sequence[_Reference]
    ) -> dict[tuple[tuple[int, ...], tuple[int, ...]], Counts]:
        """Per context and margin, the confusion of every region."""
        found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Array]] = {}
        for context in design.contexts:
            boxes = [corner.box(context) for corner in corners]
            for corner, box, reference, labels in zip(
                corners, boxes, references, self._inferred(context, boxes), strict=True
            ):
                octant = corner.box(design.octant(context, corner))
                codes = reference.at(octant) * self.spec.label_count + _Reference(box, labels).at(octant)
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

    def _bar(self, design: _Design, corners: Sequence[Corner], references: Sequence[_Reference]) -> Counts:
        """The confusion of every region with the model's own tiling, in a cell of its grid at the corner."""
        cell = [max(1, int(n * (1 - BAR))) if a >= self.planes else 1 for a, n in enumerate(self.own)]
        found = []
        for corner, reference in zip(corners, references, strict=True):
            octant = design.octant(design.contexts[-1], corner)
            region = corner.box([min(c, o) for c, o in zip(cell, octant, strict=True)])
            decisions = self.decisions.labels_of(self.spec, region, self.decisions.tiling)
            self.computed += self.draft.plan(decisions).window_range.size * prod(self.window)
            codes = reference.at(region) * self.spec.label_count + labels_of(self.draft, decisions)
            found.append(self._confusion(codes))
        return np.stack(found)

    # --- the network ---

    def _inferred(self, lengths: Sequence[int], boxes: Sequence[Box]) -> Iterator[Array]:
        """Labels of each box (*box.shape), in order; all have the output of one size of window."""
        window = self.inputs(lengths)
        margin = (0,) * self.planes + self.spec.margin
        inputs = (windows.cut(self.survey.volume, self.draft.scale, box.grow(margin), window) for box in boxes)
        self.computed += prod(window) * len(boxes)
        with self._opened(window) as host:
            for box, logits in zip(boxes, _through(host, inputs), strict=True):
                found = np.asarray(self.reduced.on_host(np.ascontiguousarray(logits, np.float32)))
                yield found.reshape(box.shape)

    @contextmanager
    def _opened(self, window: tuple[int, ...]) -> Iterator[Backend]:
        """The network for windows of this size, on as many threads as memory allows."""
        if window == self.window:
            with as_host(self.draft.network) as host:
                yield host
            return
        threads = min(self.threads, max(1, self.memory.most(1) // prod(window)))
        setup = replace(self.draft.network.setup, window=window, threads=threads, batch=1)
        network = None
        try:
            network = open_network(self.survey.backend, setup)
            with as_host(network) as host:
                yield host
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise _Keeps(f"windows of {times(window)} do not fit the memory ({first_line(error)})") from error
        finally:
            if network is not None:
                network.close()


@dataclass(frozen=True)
class _Design:
    """What is looked at. Sizes of the output, per axis of the volume."""

    contexts: tuple[tuple[int, ...], ...]
    """From the smallest to the largest."""
    yardstick: tuple[int, ...] | None
    regions: int = 0

    def octant(self, context: Sequence[int], corner: Corner) -> tuple[int, ...]:
        """The part of a window that is nearest to its corner; all of it along axes without one."""
        return tuple(-(-n // 2) if s else n for n, s in zip(context, corner.signs, strict=True))


@dataclass(frozen=True)
class _Reference:
    """Labels (*box.shape) of a box of the volume."""

    box: Box
    labels: Array

    def at(self, box: Box) -> Array:
        return self.labels[box.relative_to(self.box.lo).slices()]


def _through(host: Backend, inputs: Iterable[Array]) -> Iterator[Array]:
    """What the network makes of each input, in order, as many at once as it has threads. Valid until the next one is
    asked for."""
    slots = min(host.slots, max(1, host.setup.threads))
    waiting: deque[int] = deque()
    for number, window in enumerate(inputs):
        slot = number % slots
        if len(waiting) == slots:
            yield host.result(waiting.popleft())[0]
        host.input(slot)[...] = window
        host.start(slot)
        waiting.append(slot)
    while waiting:
        yield host.result(waiting.popleft())[0]


def _truth(path: str, volume: Volume, labels: int) -> Volume:
    """The labels at `path`. Raises `InputError` where they do not lie over the volume."""
    truth = open_volume(path)
    if truth.shape != volume.shape or truth.channels != 1:
        raise InputError(
            f"--truth {path} has the shape {truth.shape} and {truth.channels} channel(s), the volume {volume.shape}; give "
            "labels of its shape"
        )
    if truth.dtype.kind not in "biu":
        raise InputError(f"--truth {path} holds {truth.dtype}; give whole numbers, 0 to {labels - 1}")
    return truth


def _labels_in(truth: Volume, box: Box, labels: int) -> Array:
    found = np.asarray(truth.read(box)[0])
    if found.size and not 0 <= int(found.min()) <= int(found.max()) < labels:
        raise InputError(
            f"--truth {truth.path} has labels from {found.min()} to {found.max()} at {box}, the network gives 0 to "
            f"{labels - 1}; give labels as the network numbers them"
        )
    return found.astype(np.int64)
