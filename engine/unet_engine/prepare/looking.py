"""What a network makes of windows of the volume, which says whether its outputs can be what its spec says.

A network that is loaded for the run is warmed up with these windows. One that another volume has loaded is warm: there,
windows that the run infers anyway stand for them, and are looked at as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from unet_engine.backends.base import NO_TRIAL, Array, Network, Trial
from unet_engine.backends.opening import as_host
from unet_engine.errors import DataError
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index, Plan
from unet_engine.prepare.evidence import WINDOWS, Outputs, contradiction, cut_off
from unet_engine.prepare.notes import fall_back
from unet_engine.prepare.survey import Survey
from unet_engine.volumes import windows
from unet_engine.volumes.normalize import Scaling


def trial_of(survey: Survey, scale: Scaling, seen: Outputs) -> Trial:
    """Windows of the volume to warm up with instead of zeros, whose outputs `seen` takes in. The identity network's
    mean nothing, and a chunk that cannot be read is named where its block is."""
    if survey.model.format == "fake":
        return NO_TRIAL

    def cut(window: tuple[int, ...]) -> list[Array]:
        with suppress(DataError):
            boxes = windows.richest(survey.volume, window, WINDOWS)
            return [windows.cut(survey.volume, scale, box, window) for box in boxes]
        return []

    return Trial(cache(cut), seen.look)


def about_outputs(survey: Survey, seen: Outputs, notes: list[str]) -> None:
    """Say where what the network makes of real windows is not what its spec says. What its graph says is told
    already."""
    spec, output = survey.model.spec, survey.settings.output
    reason = contradiction(seen, spec, labels=output in ("labels", "masks"))
    if not reason and output == "probabilities":
        reason = cut_off(seen, spec)
    if not reason or survey.model.contradiction:
        return
    fall_back(survey.settings, notes, f"{survey.model.path.name}: on windows of this volume {reason}")


@dataclass(frozen=True)
class Look:
    """The same of a network that was not loaded for this run. Each way raises `BackendError` as `prepare` does."""

    survey: Survey
    trial: Trial
    seen: Outputs

    def now(self, network: Network) -> list[str]:
        """Notes on what `network` makes of the trial's windows. It stays open, and nothing else may use it."""
        with as_host(network) as host:
            host.look_at(self.trial)
        return self.notes()

    def notes(self) -> list[str]:
        """Notes on what was seen."""
        notes: list[str] = []
        about_outputs(self.survey, self.seen, notes)
        return notes

    def among(self, plan: Plan) -> set[Index]:
        """Windows of the plan that stand for the trial's, as they lie a step from them at most; none where there are
        none for some."""
        if self.trial is NO_TRIAL:
            return set()
        with suppress(DataError):
            boxes = windows.richest(self.survey.volume, self.survey.window, WINDOWS)
            found = [_nearest(plan, box) for box in boxes]
            return {window for window in found if window} if all(found) else set()
        return set()


def _nearest(plan: Plan, box: Box) -> Index | None:
    """The window of the plan that begins nearest to where `box` does; None where that is farther than a step."""
    found = []
    for axis, at, lo, hi in zip(plan.axes, box.lo, plan.window_range.lo, plan.window_range.hi, strict=True):
        around = at // max(1, axis.stride)
        near = [k for k in range(around - 1, around + 3) if lo <= k < hi]
        k = min(near, key=lambda k: abs(max(0, axis.input(k)[0]) - at), default=None)
        if k is None or abs(max(0, axis.input(k)[0]) - at) > axis.stride:
            return None
        found.append(k)
    return tuple(found)


@dataclass
class Watched:
    """Windows whose outputs are looked at as they leave the network; of each the first."""

    left: set[Index]
    look: Look
    seen: Callable[[], None]
    """Called once all were."""

    def __call__(self, window: Index, output: Array) -> None:
        """output: (channels, *window), valid for this call alone"""
        if window in self.left:
            self.left.remove(window)
            self.look.trial.look(output)
            if not self.left:
                self.seen()
