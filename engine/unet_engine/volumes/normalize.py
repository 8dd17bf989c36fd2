"""Global normalisation: a shift, a scale and limits per channel, computed once from samples of the volume. Pure
arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unet_engine.errors import DataError
from unet_engine.model.normalization import FILLED, NONZERO, Normalization
from unet_engine.model.verdict import LEVELS, Quantiles
from unet_engine.volumes.holes import outside_of

Array = npt.NDArray[Any]
Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scaling:
    """``(clip(x) - shift) * scale`` per input channel; raw values of `void` become 0 instead."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    clip: tuple[Pair, ...] | None = None
    """Raw values below the first become the first, those above the second the second."""
    void: Pair | None = None
    """A closed interval of raw values: what lies outside the foreground."""
    voids: tuple[Pair | None, ...] | None = None
    """The same of each channel, where they differ."""
    filled: tuple[bool, ...] | None = None
    """Channels whose voxels become 0 outside of what is not 0 in any channel, with holes filled: which these are, is
    not told by a voxel's value, see `unet_engine.volumes.holes`. None: none."""

    @property
    def limits(self) -> npt.NDArray[np.float64] | None:
        """Clip and void per channel as `operations.gather` takes them; None where there are none."""
        if self.clip is None and self.void is None and self.voids is None:
            return None
        clip = self.clip or ((-inf, inf),) * len(self.shift)
        return np.array([(*pair, *(self._void_of(c) or (inf, -inf))) for c, pair in enumerate(clip)], np.float64)

    def _void_of(self, channel: int) -> Pair | None:
        return self.voids[channel] if self.voids else self.void

    def normalised(self, raw: Array, channel: int) -> Array:
        """Voxels of one channel, of any shape, in the type they come in if that is a float, else float64."""
        x = raw if raw.dtype.kind == "f" else raw.astype(np.float64)
        y = np.clip(x, *self.clip[channel]) if self.clip else x
        y = (y - x.dtype.type(self.shift[channel])) * x.dtype.type(self.scale[channel])
        void = self._void_of(channel)
        return np.where((x >= void[0]) & (x <= void[1]), x.dtype.type(0), y) if void else y

    def facts(self) -> dict[str, Any]:
        """As JSON values, what is not used left out."""
        facts: dict[str, Any] = {"shift": list(self.shift), "scale": list(self.scale)}
        if self.clip:
            facts["clip"] = [list(pair) for pair in self.clip]
        if self.void:
            facts["zeroed"] = _zeroed(self.void)
        if self.voids:
            facts["zeroed"] = [void and _zeroed(void) for void in self.voids]
        if self.filled:
            facts["zeroed_outside"] = list(self.filled)
        return facts


def _zeroed(void: Pair) -> str:
    return "0" if void == (0.0, 0.0) else f"up to {void[1]!r}"


def scaling(normalization: Normalization, samples: Sequence[Array]) -> Scaling:
    """Statistics of `samples`, one array of any shape per channel, as a `Scaling`; NaN and Inf are left out. What is
    not measured needs no voxels: the samples may then be empty. Where holes are filled, they are a whole image, (*space)
    each.

    Raises `DataError` where the statistic does not exist: no finite voxel, no foreground, or all voxels alike.
    """
    flat = [np.asarray(values).ravel() for values in samples]
    if normalization.fills and normalization.looks and flat:
        inside = ~outside_of(np.stack(samples)).ravel()
        ways = normalization.each or (normalization,) * len(flat)
        flat = [v[inside] if way.fills else v for v, way in zip(flat, ways, strict=True)]
    apart = [_Held(values) for values in flat]
    joined = [_Held(np.concatenate(flat))] * len(flat) if flat and needs_all(normalization) else apart
    return scaling_by(
        normalization,
        joined if normalization.together else apart,
        joined if normalization.clips_together else apart,
    )


def needs_all(normalization: Normalization) -> bool:
    """Whether something is measured of all channels together."""
    return normalization.together or normalization.clips_together


class Values(Protocol):
    """The voxels of one channel that statistics may be of."""

    def looked_at(self, normalization: Normalization, channel: int) -> Values:
        """Those that are finite and in the foreground, if any. Raises `DataError` where there are none."""

    def lack_foreground(self, normalization: Normalization, channel: int) -> bool:
        """Whether `looked_at` would raise."""

    def clipped(self, clip: Pair) -> Values:
        """The same, those below the first as it, those above the second likewise."""

    def percentiles(self, low: float, high: float) -> Pair:
        """Two of them, 0 to 100."""

    def moments(self) -> Pair:
        """Mean and standard deviation."""

    def count(self) -> int:
        """How many there are."""


@dataclass(frozen=True)
class _Held:
    """Of an array, flat."""

    values: Array

    def looked_at(self, normalization: Normalization, channel: int) -> _Held:
        return _Held(_looked_at(normalization, self.values, channel))

    def lack_foreground(self, normalization: Normalization, channel: int) -> bool:
        values = self.values[np.isfinite(self.values)] if self.values.dtype.kind == "f" else self.values
        return not foreground(normalization, values).size

    def clipped(self, clip: Pair) -> _Held:
        return _Held(np.clip(self.values, *clip))

    def percentiles(self, low: float, high: float) -> Pair:
        bounds = np.percentile(self.values, [low, high])
        return float(bounds[0]), float(bounds[1])

    def moments(self) -> Pair:
        return float(self.values.mean(dtype=np.float64)), float(self.values.std(dtype=np.float64))

    def count(self) -> int:
        return self.values.size


@dataclass(frozen=True)
class _Parts:
    """Several together, each cut off at its own bounds."""

    values: tuple[Values, ...]

    def looked_at(self, normalization: Normalization, channel: int) -> _Parts:
        return self

    def lack_foreground(self, normalization: Normalization, channel: int) -> bool:
        return False

    def clipped(self, clip: Pair) -> _Parts:
        return _Parts(tuple(values.clipped(clip) for values in self.values))

    def percentiles(self, low: float, high: float) -> Pair:
        """The least and the largest alone: no others are asked for, see `Normalization`."""
        ends = [values.percentiles(low, high) for values in self.values]
        return min(a for a, _ in ends), max(b for _, b in ends)

    def moments(self) -> Pair:
        counts = [values.count() for values in self.values]
        found = [values.moments() for values in self.values]
        mean = float(np.average([m for m, _ in found], weights=counts))
        return mean, float(np.average([d**2 + (m - mean) ** 2 for m, d in found], weights=counts) ** 0.5)

    def count(self) -> int:
        return sum(values.count() for values in self.values)


def scaling_by(normalization: Normalization, channels: Sequence[Values], bounds: Sequence[Values]) -> Scaling:
    """The same of what can be asked of each channel. bounds: what percentiles of a clip are of, which may be others."""
    ways = normalization.each or (normalization,) * len(channels)
    found = [_channel(way, values, bounds, c) for c, (way, values) in enumerate(zip(ways, channels, strict=True))]
    clipped = any(one[2] for one in found)
    voids = [_void(way) for way in ways] if normalization.each else []
    return Scaling(
        tuple(one[0] for one in found),
        tuple(one[1] for one in found),
        tuple(one[2] or _ANY for one in found) if clipped else None,
        None if normalization.each else _void(normalization),
        tuple(voids) if any(voids) else None,
        filled if any(filled := tuple(way.foreground == FILLED and not way.everywhere for way in ways)) else None,
    )


_ANY = (-3.0e38, 3.0e38)
"""Of a channel that is not clipped, beside one that is."""


def quantiles(samples: Sequence[Array], scale: Scaling) -> Quantiles:
    """The quantiles `LEVELS` of normalised `samples` (one array of any shape per channel), finite values alone."""
    found = []
    for c, values in enumerate(samples):
        x = np.asarray(values, np.float64).ravel()
        x = scale.normalised(x[np.isfinite(x)], c)
        levels = np.percentile(x, LEVELS) if x.size else np.zeros(len(LEVELS))
        found.append(tuple(map(float, levels)))
    return tuple(found)


def _void(normalization: Normalization) -> Pair | None:
    """Raw values that become 0."""
    if normalization.foreground in (None, FILLED) or normalization.everywhere:
        return None
    return (0.0, 0.0) if normalization.foreground == NONZERO else (-inf, float(normalization.foreground))


def _channel(
    normalization: Normalization, values: Values, bounds: Sequence[Values], channel: int
) -> tuple[float, float, Pair | None]:
    """Shift, scale and clip of one channel."""
    if normalization.eps and _void(normalization) and values.lack_foreground(normalization, channel):
        return 0.0, 1.0, None  # all of them become 0
    if normalization.looks:
        values = values.looked_at(normalization, channel)
    clip = _clip(normalization, bounds, channel)
    if clip is not None and normalization.measures_clipped:
        values = _all_clipped(normalization, bounds) or values.clipped(clip)
    shift, spread = _spread(normalization, values, channel)
    spread += normalization.eps
    if spread == 0:
        raise DataError(
            f"--normalize {normalization}: all voxels of channel {channel} that were measured are {shift:g}; "
            "use none or range:LOW,HIGH"
        )
    return *_to(normalization, shift, spread), clip


def _looked_at(normalization: Normalization, values: Array, channel: int) -> Array:
    """The values that statistics are of."""
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size:
        raise DataError(
            f"--normalize {normalization.mode}: no finite voxel in the samples of channel {channel}; use range:LOW,HIGH"
        )
    inside = foreground(normalization, values)
    if not inside.size:
        raise DataError(
            f"--normalize {normalization}: no voxel in the samples of channel {channel} is foreground; "
            "use foreground=VALUE with a lower value, or range:LOW,HIGH"
        )
    return inside


def foreground(normalization: Normalization, values: Array) -> Array:
    """Those of finite `values`, flat, that statistics are of."""
    if normalization.foreground in (None, FILLED):  # what lies outside was left out by its place
        return values
    if values.dtype == np.float16:
        values = values.astype(np.float32)  # as windows are compared
    return values[values != 0 if normalization.foreground == NONZERO else values > normalization.foreground]


def _clip(normalization: Normalization, bounds: Sequence[Values], channel: int) -> Pair | None:
    clip = None if normalization.clip is None else normalization.clip[channel % len(normalization.clip)]
    if normalization.clip_percentiles is None:
        return clip
    low, high = bounds[channel].looked_at(normalization, channel).percentiles(*normalization.clip_percentiles)
    return (low, high) if clip is None else (min(max(low, clip[0]), clip[1]), min(max(high, clip[0]), clip[1]))


def _all_clipped(normalization: Normalization, bounds: Sequence[Values]) -> Values | None:
    """All channels together, each cut off at percentiles of its own; None where that is not what is measured."""
    if not normalization.together or normalization.clip_of != "each":
        return None
    parts = []
    for c, values in enumerate(bounds):
        clip = _clip(normalization, bounds, c)
        assert clip is not None  # percentiles of each are said
        parts.append(values.looked_at(normalization, c).clipped(clip))
    return _Parts(tuple(parts))


def _spread(normalization: Normalization, values: Values, channel: int) -> Pair:
    """What becomes 0, and how far from it becomes 1."""
    mode, low, high = normalization.mode, normalization.low, normalization.high
    if mode == "none":
        return 0.0, 1.0
    if mode == "range":
        assert low is not None  # both were checked
        assert high is not None
        return low, high - low
    if mode == "fixed":
        assert normalization.mean  # both were checked
        assert normalization.std
        mean, std = (v[channel % len(v)] for v in (normalization.mean, normalization.std))
        return mean * normalization.divide, std * normalization.divide
    if mode == "zscore":
        mean, deviation = values.moments()
        return mean, deviation
    assert low is not None or mode == "minmax"  # both were checked
    ends = values.percentiles(*((0.0, 100.0) if mode == "minmax" else (low or 0.0, high or 0.0)))
    return ends[0], ends[1] - ends[0]


def _to(normalization: Normalization, shift: float, spread: float) -> Pair:
    """Shift and scale that take `shift` to 0 and `shift + spread` to 1, or to the ends that were asked for."""
    if normalization.to is None:
        return shift, 1 / spread
    low, high = normalization.to
    scale = (high - low) / spread
    return shift - low / scale, scale
