"""A chain of operations on intensities, as sources list them, as one `Normalization` and what follows it in the
graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unet_export.importers.steps import Affine, Clip, Step

_SLIGHT = 1e-5
"""What is added to a deviation of voxels that were brought to about 0 to 1 and makes no difference."""


class NotPossible(Exception):
    """An operation that no normalisation of whole volumes does. Its text says why."""


@dataclass
class Intensity:
    """What was understood so far: clip, statistics or an affine form of raw voxels, steps in the graph."""

    clip: tuple[tuple[float, float], ...] | None = None
    clip_percentiles: tuple[float, float] | None = None
    gain: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    """Of raw values, where nothing is measured."""
    measured: dict[str, Any] | None = None
    """Fields of a `Normalization` that looks at the volume."""
    foreground: str | None = None
    """Of a fixed form: ``nonzero``, where zeros stay."""
    steps: list[Step] = field(default_factory=list)

    @property
    def untouched(self) -> bool:
        """Whether voxels are raw so far."""
        return self == Intensity()

    def raw(self, value: float) -> float | None:
        """The number that raw voxels exceed where `value` is exceeded by what they have become; None where that is not
        the same one for all channels, or not known without looking at the volume."""
        if self.measured or self.steps or self.foreground or self.clip_percentiles or min(self.gain) <= 0:
            return None
        gain, offset = np.broadcast_arrays(self.gain, self.offset)
        found = set(np.asarray((value - offset) / gain, np.float32).tolist())  # what voxels are compared as
        if len(found) > 1:
            return None
        limit: float = found.pop()
        if any(np.float32(high) <= limit for _, high in self.clip or ()):  # nothing exceeds it
            return None
        return -float(np.finfo(np.float32).max) if any(np.float32(low) > limit for low, _ in self.clip or ()) else limit

    def normalization(self) -> dict[str, Any]:
        """Fields of the `Normalization`."""
        said: dict[str, Any] = dict(self.measured or {"mode": "none"})
        if self.measured is None and (self.gain != (1.0,) or self.offset != (0.0,)):
            gain, offset = np.broadcast_arrays(self.gain, self.offset)
            said = {"mode": "fixed", "mean": tuple((-offset / gain).tolist()), "std": tuple((1 / gain).tolist())}
            said |= {"foreground": self.foreground} if self.foreground else {}
        if self.clip:
            said["clip"] = self.clip
        if self.clip_percentiles:
            said["clip_percentiles"] = self.clip_percentiles
        return said

    def affine(self, gain: Sequence[float], offset: Sequence[float]) -> None:
        """x * gain + offset, for all channels or each."""
        if self._brings_ends_to(gain, offset):
            return
        if self.measured is not None or self.steps or min(gain) <= 0 or self.foreground:
            self.steps.append(Affine(tuple(map(float, gain)), tuple(map(float, offset))))
            return
        a, b = np.asarray(gain, float), np.asarray(offset, float)
        self.gain = tuple(np.atleast_1d(np.asarray(self.gain) * a).tolist())
        self.offset = tuple(np.atleast_1d(np.asarray(self.offset) * a + b).tolist())

    def _brings_ends_to(self, gain: Sequence[float], offset: Sequence[float]) -> bool:
        """Whether ends that were measured, and are 0 and 1 so far, become other values: that is a field."""
        measured = self.measured or {}
        ends = measured.get("mode") in ("percentile", "minmax") and "to" not in measured and not self.clip_percentiles
        if not ends or self.steps or len(set(gain)) + len(set(offset)) > 2 or gain[0] == 0:
            return False
        if (gain[0], offset[0]) != (1, 0):
            measured["to"] = (float(offset[0]), float(gain[0] + offset[0]))
        return True

    def limit(self, low: float | None, high: float | None) -> None:
        """Values below `low` become it, those above `high` become that."""
        measured = self.measured or {}
        if self._is_raw and low is not None and high is not None:
            gain, offset = np.broadcast_arrays(self.gain, self.offset)
            self.clip = tuple(zip(((low - offset) / gain).tolist(), ((high - offset) / gain).tolist(), strict=True))
        elif self._is_to_the_ends(low, high):
            self.clip_percentiles = (measured.get("low", 0.0), measured.get("high", 100.0))
        else:
            self.steps.append(Clip(low, high))

    @property
    def _is_raw(self) -> bool:
        return not (self.measured or self.steps or self.clip or self.clip_percentiles or self.foreground)

    def _is_to_the_ends(self, low: float | None, high: float | None) -> bool:
        measured = self.measured or {}
        free = measured.get("mode") in ("percentile", "minmax") and not (
            self.steps or self.clip or self.clip_percentiles
        )
        return free and measured.get("to", (0.0, 1.0)) == (low, high)

    def limit_to_percentiles(self, low: float, high: float) -> None:
        """As `limit`, to percentiles of the volume."""
        if not self._is_raw:
            raise NotPossible("measures percentiles of what was normalised already")
        self.clip_percentiles = (low, high)

    def measure(self, fields: dict[str, Any], *, eps: float = 0.0, together: bool = False) -> None:
        """Statistics of the volume as `fields` of a `Normalization` say; `together`: of all channels at once."""
        if self.steps:
            raise NotPossible("measures what was normalised already")
        if fields.get("foreground") and not self.untouched:
            raise NotPossible("looks for zeros in what was changed already")
        before = self.measured or {}
        apart = bool(before or self.clip_percentiles) and not before.get("together")
        if together and (len(set(self.gain)) + len(set(self.offset)) > 2 or apart):
            raise NotPossible("measures channels together that were scaled apart")
        if before.get("foreground") or self.foreground:
            raise NotPossible("measures what was normalised already but for its zeros")
        if self.clip_percentiles and fields["mode"] == "percentile":
            raise NotPossible("measures percentiles of what was cut off at percentiles")
        if self.clip_percentiles and before.get("together") and not together:
            raise NotPossible("measures each channel behind a clip of all together")
        if before and eps > _SLIGHT:
            raise NotPossible(f"adds {eps:g} to what it measures of voxels that were measured before")
        # statistics of an affine form of the voxels are that form of theirs: what came before drops out
        extra = {"eps": eps / self.gain[0]} if eps else {}
        self.measured = fields | extra | ({"together": True} if together else {})
        self.gain, self.offset = (1.0,), (0.0,)
