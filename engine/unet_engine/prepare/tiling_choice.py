"""What `--tiling auto` learnt of a model on a kind of data, and what it took for a volume: as stored in the output and
in the user's cache."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from unet_engine.backends import engine_cache
from unet_engine.errors import BackendError, ResumeError
from unet_engine.model.verdict import Quantiles, difference
from unet_engine.plan.grid import Blend
from unet_engine.prepare.precision_proof import Proof
from unet_engine.prepare.survey import Survey
from unet_engine.units import times

KEY = "tiling_choice"
"""Key of the choice in the header of an output."""
KIND = "tiling"
"""Of what is kept in the user's cache."""
KINDS = 8
"""Kinds of data that are remembered of a model; the oldest goes."""


class _Frozen(BaseModel):
    model_config = ConfigDict(defer_build=True, frozen=True)


class Measured(_Frozen):
    """How windows of `context` voxels agree, kept from `margin` voxels off their border on. Per axis of the model, of
    the network's output."""

    context: tuple[int, ...]
    margin: tuple[int, ...]
    agreement: float
    least_dice: float
    spare: float
    """By how much it surely reaches the bar; negative: it may not. See `unet_engine.prepare.proof.spare`."""

    @property
    def passed(self) -> bool:
        return self.spare >= 0


class Learnt(_Frozen):
    """A property of a model on a kind of data; a volume of the kind is tiled by it without looking again."""

    tolerance: float | None
    """Least agreement and Dice; None: what the model's own window at overlap 0.5 has."""
    truth: bool
    """Whether labels decided; else the yardstick is the network itself, with more context."""
    yardstick: tuple[int, ...] | None
    """Sizes of the windows that others are compared with, of the input; None with labels."""
    weaker: bool
    """Whether the yardstick may itself be wrong: the network sees as far as its windows reach, or their statistics
    enter it."""
    bar_agreement: float
    bar_dice: float
    """What the model's own window at overlap 0.5 reaches, on the same regions."""
    regions: tuple[str, ...]
    """Octants of the largest windows that were looked at, in voxels of the volume that was looked at."""
    seed: int
    most: int
    """Voxels of the input that a window may have, by memory."""
    budget: float
    """Part of the run that looking was allowed to take; with more, more may be learnt."""
    share: float
    """Voxels that were computed to find out, for one of a run with the model's own tiling over that volume."""
    quantiles: Quantiles
    """Of the normalised voxels of that volume."""
    measured: tuple[Measured, ...]


class Point(_Frozen):
    """A tiling of this volume: what it costs and how it agrees."""

    window: tuple[int, ...]
    shared: tuple[int, ...]
    work: float
    """Voxels of input computed for one of the volume."""
    agreement: float | None
    """Of `full` it follows from the network's graph, and is 1; None, as is `least_dice`, where the axes are no
    multiples of the step of windows, so that cells of poolings lie otherwise in the last one."""
    least_dice: float | None
    passed: bool
    full: bool = False
    """Whether every voxel that is kept has all the context that the network sees."""
    effort: float | None = None
    """`work`, with threads that the last windows leave idle."""

    @property
    def lasts(self) -> float:
        return self.work if self.effort is None else self.effort


class Timed(_Frozen):
    """How fast windows of a size are."""

    window: tuple[int, ...]
    nanoseconds: float
    """Of one core, for a voxel of the input."""
    beside: float | None = None
    """The same in the model's own windows, timed in turn with these."""

    @property
    def relative(self) -> float:
        return self.nanoseconds / self.beside if self.beside else 1.0


class TilingChoice(_Frozen):
    """The tiling that ``auto`` took, and on what grounds; as stored in the output."""

    window: tuple[int, ...]
    """Of the input, as are the sizes of `Point.window`."""
    overlap: float | None
    """Where the model's own tiling is kept; else `shared` says it."""
    shared: tuple[int, ...] | None
    blend: Blend
    work: float
    work_of_default: float
    agreement: float | None
    least_dice: float | None
    """Measured for what was chosen; None where nothing was learnt."""
    kept: str
    """Why the model's own tiling is kept; empty where it is not."""
    settled: bool = False
    """Whether it is kept because nothing that passes is known to be faster, and not because nothing could be found."""
    searched: bool
    """Whether it was found out for this volume; else it was known from another one of its kind."""
    frontier: tuple[Point, ...]
    """Of all that was measured, what nothing cheaper agrees better than, the cheapest first."""
    tolerance: float | None = None
    truth: bool = False
    learnt: Learnt | None = None
    """Without what was measured: the frontier is made of that. None where nothing was looked at."""
    reach: tuple[int, ...] | None = None
    """How far the network sees, where every voxel has that context."""
    proof: Proof | None = None
    """Of the precision in these windows, where it is lower than fp32 and its verdict is of others."""
    timed: tuple[Timed, ...] = ()
    """Sizes of windows that were timed to choose among, the model's own first."""
    lasts: float | None = None
    """How long inference takes, of what it takes with the model's own tiling, by what was timed; None where nothing
    was."""
    proving: float = 0.0
    """What was computed to prove and to time, of a run with the model's own tiling over this volume."""

    @property
    def line(self) -> str:
        """The choice in a sentence."""
        if self.kept:
            return f"windows of {times(self.window)} at overlap 0.5 are kept: {self.kept}"
        assert self.shared is not None
        return f"{self._cheaper}; {self._grounds}{self._proved}; {self._cost}"

    @property
    def _cheaper(self) -> str:
        less = self.work_of_default / self.work
        return (
            f"windows of {times(self.window)} that share {times(self.shared or ())}, {self.blend}, compute "
            f"{self.work:.2f} voxels for one instead of {self.work_of_default:.2f}"
            + (f" ({less:.1f} times less)" if less >= 1.05 else "")
            + self._timed
        )

    @property
    def _timed(self) -> str:
        if self.lasts is None:
            return ""
        others = f", the fastest of {len(self.timed)} sizes that were timed" if len(self.timed) > 1 else ""
        return f" in {self.lasts:.2f} of the time{others}"

    @property
    def _grounds(self) -> str:
        if self.reach is not None or self.learnt is None:
            return (
                f"every voxel has all the context that the network sees, {times(self.reach or ())} voxels at each side"
            )
        compared = "labels given" if self.learnt.truth else f"windows of {times(self.learnt.yardstick or ())}"
        weak = ", which are themselves less than sure, see --truth" if self.learnt.weaker else ""
        return (
            f"on {len(self.learnt.regions)} regions {self.agreement:.5f} of the labels agree with {compared}{weak}, "
            f"least Dice {self.least_dice:.5f}; overlap 0.5 has {self.learnt.bar_agreement:.5f} and "
            f"{self.learnt.bar_dice:.5f}"
        )

    @property
    def _proved(self) -> str:
        if self.proof is None:
            return ""
        dice = "" if self.proof.least_dice is None else f", least Dice {self.proof.least_dice:.5f}"
        return f"; its precision passes in these windows, too{dice} against fp32 on {self.proof.regions} regions"

    @property
    def _cost(self) -> str:
        if self.learnt is None:
            looked = "told by its graph"
        elif self.searched:
            looked = f"looking took {self.learnt.share:.1%} of such a run"
        else:
            looked = "known from data of its kind"
        return looked + (f", proving and timing {self.proving:.1%}" if self.proving else "")

    @property
    def table(self) -> list[str]:
        """The frontier, a line each: cost, a bar as long as it, and what it agrees."""
        longest = max([self.work_of_default, *(point.work for point in self.frontier)])
        lines = []
        for point in self.frontier:
            bar = "█" * max(1, round(24 * point.work / longest))
            mark = "passes" if point.passed else "fails"
            taken = ", taken" if (point.window, point.shared) == (self.window, self.shared) else ""
            known = point.agreement is not None and point.least_dice is not None
            found = f"{point.agreement:.5f} {point.least_dice:.5f} " if known else "all its context "
            lines.append(
                f"{point.work:5.2f} {bar:<24} {found}{times(point.window)} sharing {times(point.shared)}: {mark}{taken}"
            )
        return lines


def frontier(points: Sequence[Point], taken: Point | None = None) -> tuple[Point, ...]:
    """Those that nothing as cheap agrees better than, and what is taken, the cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.work, not p.passed, -_agreement(p))):
        better = not found or _agreement(point) > _agreement(found[-1])
        if point in found:  # offered again as larger windows were tried
            continue
        if better or point == taken or (point.passed and not any(p.passed for p in found)):
            found.append(point)
    same = [p for p in found if taken and p != taken and (p.window, p.shared) == (taken.window, taken.shared)]
    return tuple(p for p in found if p not in same)


def _agreement(point: Point) -> float:
    return 1.0 if point.agreement is None else point.agreement


# --- what an earlier run chose ---


def stored(survey: Survey) -> TilingChoice | None:
    """The choice in the output that is to be resumed; None where there is none. Raises `ResumeError` where it was
    begun with another bar."""
    choice = survey.chosen_before(KEY, TilingChoice)
    if choice is None:
        return None
    settings = survey.settings
    if choice.tolerance != settings.tolerance or choice.truth != bool(settings.truth):
        raise ResumeError(
            f"{survey.out} was begun with another --tolerance or --truth: repeat that run's settings or use --overwrite"
        )
    return choice


def facts(choice: TilingChoice | None) -> dict[str, Any] | None:
    """The choice as JSON values."""
    return choice.model_dump(mode="json") if choice else None


# --- what is remembered of a model ---


def known(key: Mapping[str, object], quantiles: Quantiles, budget: float) -> Learnt | None:
    """What was learnt on data of this kind with at least this budget, if anything was; the latest first."""
    alike = (learnt for learnt in _all(key) if not difference(quantiles, learnt.quantiles))
    return next((learnt for learnt in alike if learnt.budget >= budget), None)


def remember(key: Mapping[str, object], learnt: Learnt) -> None:
    """Keep it for the next volume, in place of what was learnt on data of this kind. A cache that cannot be used is no
    error: the next run looks again."""
    others = [other for other in _all(key) if difference(other.quantiles, learnt.quantiles)]
    values = [entry.model_dump(mode="json") for entry in (learnt, *others)][:KINDS]
    with suppress(BackendError):
        engine_cache.store(KIND, key, json.dumps(values).encode())


def _all(key: Mapping[str, object]) -> list[Learnt]:
    with suppress(BackendError, ValueError, ValidationError):
        return [Learnt.model_validate(entry) for entry in json.loads(engine_cache.load(KIND, key) or b"[]")]
    return []
