"""``--overlap auto``: the cheapest overlap whose labels agree with those of overlap 0.5, on regions of the user's own volume.

Regions of one window each are run through the planning and prediction of any run, as regions of interest: first with overlap 0.5 and
Gaussian blending, then with each cheaper candidate, the cheapest first, until one agrees. A region is at least as long as the distance of
two windows at any overlap, so it has its fair share of seams, wherever they lie.

The choice follows from volume, mask, model, window, precision and tolerance, and from neither the region of interest nor the part: so a
region still gives the bytes of the whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from unet_engine.backends.base import Backend
from unet_engine.backends.opening import Network
from unet_engine.backends.receptive_field import radius
from unet_engine.errors import DataError, InputError, ResumeError, SettingsError
from unet_engine.model.spec import ModelSpec
from unet_engine.output.header import read_header
from unet_engine.pipeline.columns import run_local
from unet_engine.pipeline.job import Array, Job
from unet_engine.pipeline.worker import Worker
from unet_engine.plan.box import Box
from unet_engine.plan.grid import Blend
from unet_engine.plan.plan import Plan
from unet_engine.prepare.agreement import Confusion
from unet_engine.prepare.survey import Survey
from unet_engine.stitching import operations
from unet_engine.units import Tell, silent, times
from unet_engine.volumes import windows
from unet_engine.volumes.normalize import Scaling

SEED = 0
REGIONS, LEAST_REGIONS = 8, 4
"""Regions that are compared, and how few are still enough."""
OVERLAPS = (0.375, 0.25, 0.125, 0.0)
TOLERANCE = 0.999
KEY = "overlap_choice"
"""Key of the choice in the header of an output."""


class Overlap(BaseModel):
    """An overlap fraction with the way to blend."""

    model_config = ConfigDict(frozen=True)

    overlap: float
    blend: Blend = "gaussian"

    def __str__(self) -> str:
        return f"overlap {self.overlap:.3g}, {self.blend}"


REFERENCE = Overlap(overlap=0.5)
Draft = Callable[[Overlap, Box], Job]
"""The job that gives the labels of a region (in voxels of the volume) with that overlap."""


class OverlapTrial(BaseModel):
    """What was found about a candidate. One that fails on the first regions is not tried on the others."""

    model_config = ConfigDict(frozen=True)

    candidate: Overlap
    windows: int
    """Windows it takes for the region of interest, seams of columns and parts left out."""
    regions: int
    """Regions it was compared on."""
    agreement: float
    """Fraction of voxels there with the same label as the reference's."""
    dice: dict[str, float | None]
    """Dice coefficient of each class against the reference; None for a class that is not there."""
    passed: bool

    @property
    def worst(self) -> tuple[str, float]:
        """The class with the least Dice coefficient."""
        return min(((name, d) for name, d in self.dice.items() if d is not None), key=lambda pair: pair[1])


class OverlapChoice(BaseModel):
    """The overlap that ``auto`` took, and on what grounds; as stored in the output."""

    model_config = ConfigDict(frozen=True)

    chosen: Overlap
    reference: Overlap = REFERENCE
    tolerance: float
    agreement: float
    """Measured for what was chosen, as are the Dice coefficients; 1 for the reference itself."""
    dice: dict[str, float | None]
    windows: int
    windows_of_reference: int
    """Windows of both for the region of interest, seams of columns and parts left out."""
    seed: int
    regions: tuple[str, ...]
    """Boxes to compare, in voxels of the volume, in this order."""
    receptive_radius: tuple[int, ...] | None
    """Per axis of the model; None where the network sees farther than half a window."""
    trials: tuple[OverlapTrial, ...]

    @property
    def line(self) -> str:
        """The choice in a sentence."""
        where = f"on {len(self.regions)} regions of this volume"
        if self.chosen == self.reference:
            best = max(self.trials, key=lambda t: min(t.agreement, t.worst[1]))
            where = "on regions of this volume"
            return (
                f"overlap 0.5 is kept: no smaller one reaches {self.tolerance:g} {where}; the nearest is {best.candidate} with "
                f"{best.agreement:.5f} of the labels and a Dice of {best.worst[1]:.5f} for {best.worst[0]}; see --overlap-tolerance"
            )
        name, worst = min(((n, d) for n, d in self.dice.items() if d is not None), key=lambda pair: pair[1])
        return (
            f"{self.chosen} takes {self.windows:,} windows instead of {self.windows_of_reference:,} "
            f"({self.windows_of_reference / self.windows:.2f} times fewer); {where} {self.agreement:.5f} of the labels agree with "
            f"overlap 0.5, least Dice {worst:.5f} ({name})"
        )


# --- what an earlier run chose ---


def stored(found: Survey) -> OverlapChoice | None:
    """The choice in the output that is to be gone on with; None where there is none. Raises `ResumeError` for another tolerance."""
    header = read_header(found.out) if found.settings.resume else None
    if not header or not header.get(KEY):
        return None
    choice = OverlapChoice.model_validate(header[KEY])
    wanted = found.settings.overlap_tolerance or TOLERANCE
    if choice.tolerance != wanted:
        raise ResumeError(
            f"{found.out} was begun with --overlap-tolerance {choice.tolerance:g}, now {wanted:g}: repeat that run's settings "
            "or use --overwrite"
        )
    return choice


# --- the search ---


def search(found: Survey, scale: Scaling, backend: Network, draft: Draft, tell: Tell = silent) -> OverlapChoice:
    """Try the candidates that are cheaper than the reference, the cheapest first, and take the first that agrees with it. `tell` hears how
    far it is.

    Raises `SettingsError` or `InputError` where overlap makes no difference, `InputError` or `DataError` where the volume has too little to
    compare.
    """
    reach = found.model.spec.context or (radius(backend) if isinstance(backend, Backend) else None)
    cheaper = _cheaper(found, reach, draft)
    trier = _Trier(found, scale, backend, draft)
    trier.regions = regions = _regions(found, scale, trier.contents)
    trials: list[OverlapTrial] = []
    for candidate in cheaper:
        tell(f"comparing {candidate} with overlap 0.5 on up to {len(regions)} regions")
        trials.append(trier.judge(candidate))
        tell(f"{candidate}: {trials[-1].agreement:.5f} of the labels agree on {trials[-1].regions} of them")
        if trials[-1].passed:
            break
    best = trials[-1] if trials[-1].passed else None
    names = found.model.spec.class_names
    return OverlapChoice(
        chosen=best.candidate if best else REFERENCE,
        tolerance=trier.tolerance,
        agreement=best.agreement if best else 1.0,
        dice=best.dice if best else dict.fromkeys(names, 1.0),
        windows=best.windows if best else trier.windows(REFERENCE),
        windows_of_reference=trier.windows(REFERENCE),
        seed=SEED,
        regions=tuple(map(str, regions)),
        receptive_radius=reach,
        trials=tuple(trials),
    )


def _cheaper(found: Survey, reach: tuple[int, ...] | None, draft: Draft) -> list[Overlap]:
    """Candidates that take fewer windows for the whole volume than the reference, those with the fewest first."""
    spec, whole = found.model.spec, Box.of_shape(found.volume.shape)
    polluted = None if reach is None else [max(0, r - m) for r, m in zip(reach, spec.margin, strict=True)]
    if reach is not None and _sees_no_padding(spec, reach):
        raise SettingsError(
            f"--overlap auto: windows of {spec.name} agree wherever they overlap, as it sees no farther than the {times(spec.margin)} "
            "voxels it loses at each side; use --overlap 0"
        )
    candidates = [Overlap(overlap=overlap) for overlap in OVERLAPS]
    if polluted is not None:
        sizes = [w - 2 * m for w, m in zip(found.window, spec.margin, strict=True)]
        share = max(2 * p / size for p, size in zip(polluted, sizes, strict=True))
        if share < REFERENCE.overlap:  # neighbours part in the middle of what they share: each keeps what is exact
            candidates.insert(0, Overlap(overlap=share, blend="crop"))
    windows = {c: draft(c, whole).plan.window_range.size for c in (*candidates, REFERENCE)}
    cheaper = [c for c in candidates if windows[c] < windows[REFERENCE]]
    if not cheaper:
        raise InputError(
            f"--overlap auto: {found.volume.path} is too small for it, any overlap takes {windows[REFERENCE]} window(s) of "
            f"{times(found.window)}; use --overlap 0.5"
        )
    return sorted(cheaper, key=lambda c: windows[c])


def _sees_no_padding(spec: ModelSpec, reach: tuple[int, ...]) -> bool:
    """Whether what the network makes of a voxel is the same in every window: its convolutions lose what they would have to pad.

    Where a voxel lies in a cell of the pooling lattice moves what it sees by less than the cell, of which `reach` is the largest.
    """
    return all(
        r == 0 if m == 0 else r <= m + max(1, step) - 1
        for r, m, step in zip(reach, spec.margin, spec.window_step, strict=True)
    )


def _regions(found: Survey, scale: Scaling, contents_of: Callable[[Box], Array]) -> list[Box]:
    """Up to `REGIONS` boxes of one window each, those richest in rare classes first: a candidate that fails does so soon."""
    volume, window, spec = found.volume, found.window, found.model.spec
    rng = np.random.default_rng(SEED)

    def unmasked(box: Box) -> bool:
        return found.mask is None or bool(found.mask.read(box).any())

    boxes = windows.pool(volume, scale, window, windows.POOL * REGIONS, rng, unmasked)
    if len(boxes) < LEAST_REGIONS:
        raise InputError(
            f"--overlap auto: {volume.path} has {len(boxes)} region(s) of {times(window)} with an image in them, and {LEAST_REGIONS} are "
            "needed; use a smaller --window, or --overlap 0.5"
        )
    contents = np.array([contents_of(box) for box in boxes])
    if np.count_nonzero(contents.sum(0)) == 1:
        name = spec.class_names[int(contents.sum(0).argmax())]
        raise DataError(
            f"--overlap auto: the network gives {name} alone in all of {len(boxes)} regions, so there is nothing to compare; "
            "check model and --normalize, or use --overlap 0.5"
        )
    (chosen,) = windows.dealt(contents, (min(REGIONS, len(boxes)),), rng)
    return [boxes[i] for i in chosen]


class _Trier:
    """The reference's labels on the regions, and how candidates compare."""

    def __init__(self, found: Survey, scale: Scaling, backend: Network, draft: Draft) -> None:
        self.tolerance = found.settings.overlap_tolerance or TOLERANCE
        self._found, self._scale, self._backend, self._draft = found, scale, backend, draft
        self.regions: Sequence[Box] = ()
        self._truth: dict[Box, Array] = {}

    def windows(self, candidate: Overlap) -> int:
        return self._draft(candidate, self._found.roi).plan.window_range.size

    def judge(self, candidate: Overlap) -> OverlapTrial:
        names = self._found.model.spec.class_names
        confusion, looked_at = Confusion(len(names)), 0
        allowed = (1 - self.tolerance) * sum(region.size for region in self.regions)
        for region in self.regions:
            if region not in self._truth:
                self._truth[region] = self._labels(REFERENCE, region)
            confusion.add(self._truth[region], self._labels(candidate, region))
            looked_at += 1
            if confusion.differing > allowed:
                break  # all the other regions together could not make up for it
        figures = (confusion.agreement, *(d for d in confusion.dice if d is not None))
        return OverlapTrial(
            candidate=candidate,
            windows=self.windows(candidate),
            regions=looked_at,
            agreement=confusion.agreement,
            dice=dict(zip(names, confusion.dice, strict=True)),
            passed=looked_at == len(self.regions) and min(figures) >= self.tolerance,
        )

    def contents(self, box: Box) -> Array:
        """Voxels of each label there, (labels,); of one window, or where a device pipeline has the network, of all windows that meet it."""
        found, spec = self._found, self._found.model.spec
        if isinstance(self._backend, Backend):
            window = windows.cut(found.volume, self._scale, box, found.window)
            logits = np.ascontiguousarray(self._backend.infer(window[None])[0], np.float32)
            labels = np.empty(logits.shape[1:], np.uint16)
            operations.labels(logits, labels, spec.activation)
        else:
            labels = self._labels(Overlap(overlap=0), box)
        return np.bincount(labels.ravel(), minlength=spec.label_count)

    def _labels(self, candidate: Overlap, region: Box) -> Array:
        """Labels (*region.shape), by the way of every run."""
        job = self._draft(candidate, region)
        worker, kept = Worker(job), _Kept(job)
        # what is open already, and an output that is kept in memory
        worker.__dict__.update(volume=self._found.volume, mask=self._found.mask, backend=self._backend, output=kept)
        run_local([worker], lambda _: True)
        worker.__dict__.pop("backend")  # it stays open
        worker.close()
        return kept.values


class _Kept:
    """Takes the place of an `Output`."""

    def __init__(self, job: Job) -> None:
        self.values: Array = np.zeros(job.plan.roi.shape, job.layout.dtype)

    def write(self, box: Box, values: Array) -> None:
        self.values[box.slices()] = values

    def mark(self, index: tuple[int, ...]) -> None:
        """Nobody will go on with it."""

    def pending(self, plan: Plan) -> Callable[[tuple[int, ...]], bool]:
        """All of it: nothing is kept of what was done."""
        return lambda _: True


def facts(choice: OverlapChoice | None) -> dict[str, Any] | None:
    """The choice as JSON values."""
    return choice.model_dump(mode="json") if choice else None
