"""A chain of operations on intensities, as sources list them, as one `Normalization` and what follows it in the
graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unet_export.importers.steps import Affine, Clip, Step

_ANY = 3.0e38
"""Beyond what voxels are: no bound."""
_SLIGHT = 1e-5
"""What is added to a deviation of voxels that were brought to about 0 to 1 and makes no difference."""


class NotPossible(Exception):
    """An operation that no normalisation of whole volumes does. Its text says why."""


@dataclass
class Intensity:
    """What was understood so far: clip, statistics or an affine form of raw voxels, steps in the graph."""

    clip: tuple[tuple[float, float], ...] | None = None
    clip_percentiles: tuple[float, float] | None = None
    clip_together: bool = False
    """Whether those are of all channels at once."""
    measured_raw: bool = False
    """Whether what is measured was measured before that clip."""
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
            said |= self._of_what(said)
        return said

    def _of_what(self, said: dict[str, Any]) -> dict[str, Any]:
        """What percentiles and measures are of, where it is not as it always is."""
        extra: dict[str, Any] = {}
        if self.clip_together != bool(said.get("together")):
            extra["clip_of"] = "all" if self.clip_together else "each"
        if self.measured and self.measured_raw != (said["mode"] == "percentile"):
            extra["measured_of"] = "raw" if self.measured_raw else "clipped"
        return extra

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
        if not (self.measured or self.steps or self.foreground) and (ends := self._raw_ends(low, high)):
            self.clip = ends
        elif self._is_to_the_ends(low, high):
            self.clip_percentiles = (measured.get("low", 0.0), measured.get("high", 100.0))
            self.clip_together, self.measured_raw = bool(measured.get("together")), measured["mode"] == "percentile"
        else:
            self.steps.append(Clip(low, high))

    def _raw_ends(self, low: float | None, high: float | None) -> tuple[tuple[float, float], ...] | None:
        """These bounds in raw values, within those of before; None where nothing lies between them."""
        gain, offset = np.broadcast_arrays(self.gain, self.offset)
        bounds = (-_ANY if low is None else low, _ANY if high is None else high)
        ends = np.clip(np.stack([(bound - offset) / gain for bound in bounds], -1), -_ANY, _ANY)
        if self.clip is not None:
            ends, before = np.broadcast_arrays(ends, np.asarray(self.clip, float))
            ends = np.clip(before, ends[:, :1], ends[:, 1:])
        return tuple((float(a), float(b)) for a, b in ends) if (ends[:, 0] < ends[:, 1]).all() else None

    def _is_to_the_ends(self, low: float | None, high: float | None) -> bool:
        measured = self.measured or {}
        free = measured.get("mode") in ("percentile", "minmax") and not (
            self.steps or self.clip or self.clip_percentiles
        )
        ends = measured.get("to", (0.0, 1.0))
        return free and low is not None and high is not None and np.allclose(ends, (low, high), rtol=1e-9, atol=0)

    def limit_to_percentiles(self, low: float, high: float, *, together: bool = False) -> None:
        """As `limit`, to percentiles of each channel or, `together`, of all at once; 0 and 100 are no limit."""
        measured = self.measured or {}
        if self.steps or self.foreground or measured.get("foreground"):
            raise NotPossible("measures percentiles of what was cut off or left out already")
        if self.measured and (self.clip or self.clip_percentiles):
            raise NotPossible("measures percentiles behind a clip and another measure")
        if together and (self._differ or (self.measured and not measured.get("together"))):
            raise NotPossible("measures percentiles of channels together that were scaled apart")
        if self.clip_percentiles:
            if self.clip_together != together:
                raise NotPossible("measures percentiles of all channels, and others of each")
            low, high = max(low, self.clip_percentiles[0]), min(high, self.clip_percentiles[1])
        if low >= high:
            raise NotPossible("leaves nothing between its ends")
        if together and len(self.clip or ()) > 1:
            raise NotPossible("measures percentiles of channels together that were cut off apart")
        self.clip_percentiles, self.clip_together, self.measured_raw = (low, high), together, self.measured is not None

    @property
    def _differ(self) -> bool:
        """Whether channels were shifted or scaled each in its own way."""
        return len(set(self.gain)) + len(set(self.offset)) > 2

    def measure(self, fields: dict[str, Any], *, eps: float = 0.0, together: bool = False) -> None:
        """Statistics of the volume as `fields` of a `Normalization` say; `together`: of all channels at once."""
        if self.steps:
            raise NotPossible("measures what was normalised already")
        if fields.get("foreground") and not self.untouched:
            raise NotPossible("looks for zeros in what was changed already")
        before = self.measured or {}
        apart = bool(before) and not before.get("together")
        if together and (self._differ or apart):
            raise NotPossible("measures channels together that were scaled apart")
        if before.get("foreground") or self.foreground:
            raise NotPossible("measures what was normalised already but for its zeros")
        middle = fields["mode"] == "percentile" and (fields["low"], fields["high"]) != (0, 100)
        if self.clip_percentiles and together and not self.clip_together and middle:
            raise NotPossible("measures percentiles of channels together that were cut off apart")
        if before and eps > _SLIGHT:
            raise NotPossible(f"adds {eps:g} to what it measures of voxels that were measured before")
        # statistics of an affine form of the voxels are that form of theirs: what came before drops out
        extra = {"eps": eps / self.gain[0]} if eps else {}
        self.measured = fields | extra | ({"together": True} if together else {})
        self.gain, self.offset, self.measured_raw = (1.0,), (0.0,), False
