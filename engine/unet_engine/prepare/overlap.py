"""``--overlap auto``: the cheapest overlap whose labels agree with those of overlap 0.5, on regions of the user's own
volume.

Regions of one window each are run through the planning and prediction of any run, as regions of interest: first with
overlap 0.5 and Gaussian blending, then with each cheaper candidate, the cheapest first, until one agrees. A region is
at least as long as the distance of two windows at any overlap, so it has its fair share of seams, wherever they lie.

The choice follows from volume, mask, model, window, precision and tolerance, and from neither the region of interest
nor the part: so a region still gives the bytes of the whole run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unet_engine.backends.base import Array, Backend
from unet_engine.backends.opening import as_host
from unet_engine.backends.receptive_field import radius
from unet_engine.errors import DataError, InputError, SettingsError
from unet_engine.model.spec import ModelSpec
from unet_engine.plan.box import Box
from unet_engine.prepare.agreement import Confusion
from unet_engine.prepare.decisions import Decisions
from unet_engine.prepare.draft import Draft
from unet_engine.prepare.overlap_choice import REFERENCE, TOLERANCE, Overlap, OverlapChoice, OverlapTrial
from unet_engine.prepare.regions import labels_of
from unet_engine.stitching import operations
from unet_engine.units import Tell, silent, times
from unet_engine.volumes import windows

SEED = 0
REGIONS, LEAST_REGIONS = 8, 4
"""Regions that are compared, and how few are still enough."""
OVERLAPS = (0.375, 0.25, 0.125, 0.0)


def search(draft: Draft, decisions: Decisions, tell: Tell = silent) -> OverlapChoice:
    """Try the candidates that are cheaper than the reference, the cheapest first, and take the first that agrees with
    it. `tell` hears how far it is. Of the decisions so far only the tiling's overlap and blend are open.

    Raises `SettingsError` or `InputError` where overlap makes no difference, `InputError` or `DataError` where the
    volume has too little to compare.
    """
    with as_host(draft.network) as host:
        return _searched(_Trier(draft, decisions, host), tell)


def _searched(trier: _Trier, tell: Tell) -> OverlapChoice:
    survey = trier.survey
    reach = survey.model.spec.context or radius(trier.host)
    cheaper = _cheaper(trier, reach)
    trier.regions = regions = _regions(trier)
    trials: list[OverlapTrial] = []
    for candidate in cheaper:
        tell(f"comparing {candidate} with overlap 0.5 on up to {len(regions)} regions")
        trials.append(trier.judge(candidate))
        tell(f"{candidate}: {trials[-1].agreement:.5f} of the labels agree on {trials[-1].regions} of them")
        if trials[-1].passed:
            break
    best = trials[-1] if trials[-1].passed else None
    names = survey.model.spec.class_names
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


def _cheaper(trier: _Trier, reach: tuple[int, ...] | None) -> list[Overlap]:
    """Candidates that take fewer windows for the whole volume than the reference, those with the fewest first."""
    survey, window = trier.survey, trier.window
    spec, whole = survey.model.spec, Box.of_shape(survey.volume.shape)
    polluted = None if reach is None else [max(0, r - m) for r, m in zip(reach, spec.margin, strict=True)]
    if reach is not None and _sees_no_padding(spec, reach):
        raise SettingsError(
            f"--overlap auto: windows of {spec.name} agree wherever they overlap, as it sees no farther than the "
            f"{times(spec.margin)} voxels it loses at each side; use --overlap 0"
        )
    candidates = [Overlap(overlap=overlap) for overlap in OVERLAPS]
    if polluted is not None:
        sizes = [w - 2 * m for w, m in zip(window, spec.margin, strict=True)]
        share = max(2 * p / size for p, size in zip(polluted, sizes, strict=True))
        if share < REFERENCE.overlap:  # neighbours part in the middle of what they share: each keeps what is exact
            candidates.insert(0, Overlap(overlap=share, blend="crop"))
    counts = {c: trier.windows(c, whole) for c in (*candidates, REFERENCE)}
    cheaper = [c for c in candidates if counts[c] < counts[REFERENCE]]
    if not cheaper:
        raise InputError(
            f"--overlap auto: {survey.volume.path} is too small for it, any overlap takes {counts[REFERENCE]} "
            f"window(s) of {times(window)}; use --overlap 0.5"
        )
    return sorted(cheaper, key=lambda c: counts[c])


def _sees_no_padding(spec: ModelSpec, reach: tuple[int, ...]) -> bool:
    """Whether what the network makes of a voxel is the same in every window: its convolutions lose what they would have
    to pad.

    Where a voxel lies in a cell of the pooling lattice moves what it sees by less than the cell, of which `reach` is
    the largest.
    """
    return all(
        r == 0 if m == 0 else r <= m + max(1, step) - 1
        for r, m, step in zip(reach, spec.margin, spec.window_step, strict=True)
    )


def _regions(trier: _Trier) -> list[Box]:
    """Up to `REGIONS` boxes of one window each, those richest in rare classes first: a candidate that fails does so
    soon."""
    survey, window, spec = trier.survey, trier.window, trier.survey.model.spec
    rng = np.random.default_rng(SEED)

    def unmasked(box: Box) -> bool:
        return all(mask.read(box).any() for mask in survey.seen_masks)

    boxes = windows.pool(survey.volume, trier.scale, window, windows.POOL * REGIONS, rng, unmasked)
    if len(boxes) < LEAST_REGIONS:
        raise InputError(
            f"--overlap auto: {survey.volume.path} has {len(boxes)} region(s) of {times(window)} with an image in "
            f"them, and {LEAST_REGIONS} are needed; use a smaller --window, or --overlap 0.5"
        )
    contents = np.array([trier.contents(box) for box in boxes])
    if np.count_nonzero(contents.sum(0)) == 1:
        name = spec.class_names[int(contents.sum(0).argmax())]
        raise DataError(
            f"--overlap auto: the network gives {name} alone in all of {len(boxes)} regions, so there is nothing to "
            "compare; check model and --normalize, or use --overlap 0.5"
        )
    (chosen,) = windows.dealt(contents, (min(REGIONS, len(boxes)),), rng)
    return [boxes[i] for i in chosen]


class _Trier:
    """The reference's labels on the regions, and how candidates compare."""

    def __init__(self, draft: Draft, decisions: Decisions, host: Backend) -> None:
        """host: the network, for windows one by one."""
        self.survey, self.scale, self.window = draft.survey, draft.scale, decisions.tiling.window
        self.tolerance = draft.survey.settings.overlap_tolerance or TOLERANCE
        self.host = host
        self._draft, self._decisions = draft, decisions
        self.regions: Sequence[Box] = ()
        self._truth: dict[Box, Array] = {}

    def _labels_of(self, candidate: Overlap, region: Box) -> Decisions:
        tiling = replace(self._decisions.tiling, overlap=candidate.overlap, blend=candidate.blend)
        return self._decisions.labels_of(self.survey.model.spec, region, tiling)

    def windows(self, candidate: Overlap, region: Box | None = None) -> int:
        """Windows that it takes for a region of the volume, by default for the region of interest."""
        return self._draft.plan(self._labels_of(candidate, region or self.survey.windows_roi)).window_range.size

    def judge(self, candidate: Overlap) -> OverlapTrial:
        names = self.survey.model.spec.class_names
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
        """Voxels of each label in one window, (labels,)."""
        spec = self.survey.model.spec
        window = windows.cut(self.survey.volume, self.scale, box, self.window)
        logits = np.ascontiguousarray(self.host.infer(window[None])[0], np.float32)
        labels = np.empty(logits.shape[1:], np.uint16)
        operations.labels(logits, labels, spec.activation, threshold=spec.threshold)
        if spec.kept_labels is not None:
            operations.keep(labels, spec.kept_labels)
        return np.bincount(labels.ravel(), minlength=spec.label_count)

    def _labels(self, candidate: Overlap, region: Box) -> Array:
        """Labels (*region.shape) of a candidate there."""
        return labels_of(self._draft, self._labels_of(candidate, region))
