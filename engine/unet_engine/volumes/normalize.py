"""Global normalisation: a shift, a scale and limits per channel, computed once from samples of the volume. Pure
arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.errors import DataError
from unet_engine.model.normalization import NONZERO, Normalization
from unet_engine.model.verdict import LEVELS, Quantiles

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
        return facts


def _zeroed(void: Pair) -> str:
    return "0" if void == (0.0, 0.0) else f"up to {void[1]!r}"


def scaling(normalization: Normalization, samples: Sequence[Array]) -> Scaling:
    """Statistics of `samples`, one array of any shape per channel, as a `Scaling`; NaN and Inf are left out. What is
    not measured needs no voxels: the samples may then be empty.

    Raises `DataError` where the statistic does not exist: no finite voxel, no foreground, or all voxels alike.
    """
    if normalization.each:
        return _of_each(normalization.each, samples)
    flat = [np.asarray(values).ravel() for values in samples]
    if normalization.together and flat:
        flat = [np.concatenate(flat)] * len(flat)
    found = [_channel(normalization, values, c) for c, values in enumerate(flat)]
    clip = tuple(c[2] for c in found if c[2] is not None)
    return Scaling(tuple(c[0] for c in found), tuple(c[1] for c in found), clip or None, _void(normalization))


_ANY = (-3.0e38, 3.0e38)
"""Of a channel that is not clipped, beside one that is."""


def _of_each(ways: Sequence[Normalization], samples: Sequence[Array]) -> Scaling:
    found = [scaling(way, [values]) for way, values in zip(ways, samples, strict=True)]
    voids = tuple(one.void for one in found)
    return Scaling(
        tuple(one.shift[0] for one in found),
        tuple(one.scale[0] for one in found),
        tuple(one.clip[0] if one.clip else _ANY for one in found) if any(one.clip for one in found) else None,
        voids=voids if any(voids) else None,
    )


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
    if normalization.foreground is None or normalization.everywhere:
        return None
    return (0.0, 0.0) if normalization.foreground == NONZERO else (-inf, float(normalization.foreground))


def _channel(normalization: Normalization, values: Array, channel: int) -> tuple[float, float, Pair | None]:
    """Shift, scale and clip of one channel."""
    if normalization.looks:
        values = _looked_at(normalization, values, channel)
    clip = _clip(normalization, values, channel)
    if clip is not None and not (normalization.mode == "percentile" and normalization.clip_percentiles):
        values = np.clip(values, *clip)  # percentiles are all of the same voxels
    shift, spread = _spread(normalization, values, channel)
    spread += normalization.eps
    if spread == 0:
        raise DataError(
            f"--normalize {normalization}: all sampled voxels of channel {channel} are {shift:g}; "
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
    if normalization.foreground is None:
        return values
    if values.dtype == np.float16:
        values = values.astype(np.float32)  # as windows are compared
    inside = values[values != 0 if normalization.foreground == NONZERO else values > normalization.foreground]
    if not inside.size:
        raise DataError(
            f"--normalize {normalization}: no voxel in the samples of channel {channel} is foreground; "
            "use foreground=VALUE with a lower value, or range:LOW,HIGH"
        )
    return inside


def _clip(normalization: Normalization, values: Array, channel: int) -> Pair | None:
    if normalization.clip is not None:
        return normalization.clip[channel % len(normalization.clip)]
    if normalization.clip_percentiles is not None:
        low, high = np.percentile(values, normalization.clip_percentiles)
        return float(low), float(high)
    return None


def _spread(normalization: Normalization, values: Array, channel: int) -> Pair:
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
        return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    low, high = (0.0, 100.0) if mode == "minmax" else (low, high)
    bounds = np.percentile(values, [low, high])
    return float(bounds[0]), float(bounds[1] - bounds[0])


def _to(normalization: Normalization, shift: float, spread: float) -> Pair:
    """Shift and scale that take `shift` to 0 and `shift + spread` to 1, or to the ends that were asked for."""
    if normalization.to is None:
        return shift, 1 / spread
    low, high = normalization.to
    scale = (high - low) / spread
    return shift - low / scale, scale
