"""Statistics of all voxels of a volume, as frameworks measure the image that they are given. It is read in pieces, once
or a few times, and never held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import floor
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.errors import DataError
from unet_engine.model.normalization import FILLED, Normalization
from unet_engine.plan.box import Box
from unet_engine.volumes.base import Volume
from unet_engine.volumes.holes import holes_of, outside
from unet_engine.volumes.keys import DIGIT, Keys
from unet_engine.volumes.normalize import Pair, Scaling, foreground, scaling_by
from unet_engine.volumes.pieces import pieces
from unet_engine.volumes.validity import marked, void

Array = npt.NDArray[Any]
Rank = int


def scaling_of_whole(normalization: Normalization, volume: Volume, box: Box) -> Scaling:
    """Shift, scale and clip of all voxels of `volume` in `box`; those that are not stored are what reading gives, NaN,
    Inf and those that were not measured are left out. Raises `DataError` as reading and `normalize.scaling` do."""
    whole = bounds = Whole(volume, box, normalization)
    if normalization.clips_together != normalization.together:
        bounds = Whole(volume, box, normalization.model_copy(update={"together": normalization.clips_together}))
    channels = range(volume.channels)
    return scaling_by(normalization, [_Channel(whole, c) for c in channels], [_Channel(bounds, c) for c in channels])


@dataclass(frozen=True)
class _Channel:
    """One channel of `whole`; see `normalize.Values`."""

    whole: Whole
    channel: int
    clip: Pair | None = None

    def looked_at(self, normalization: Normalization, channel: int) -> _Channel:
        """All readings leave out what is not looked at."""
        self.whole.check(channel, normalization)
        return self

    def lack_foreground(self, normalization: Normalization, channel: int) -> bool:
        return not self.whole.count(channel)

    def clipped(self, clip: Pair) -> _Channel:
        return _Channel(self.whole, self.channel, clip)

    def percentiles(self, low: float, high: float) -> Pair:
        return self.whole.percentile(self.channel, low, self.clip), self.whole.percentile(self.channel, high, self.clip)

    def moments(self) -> Pair:
        return self.whole.moments(self.channel, self.clip)

    def count(self) -> int:
        return self.whole.count(self.channel)


@dataclass(eq=False)
class Whole:
    """What is known of the voxels of `box` of `volume` so far. What one channel asks for is found for all, as they are
    read together."""

    volume: Volume
    box: Box
    normalization: Normalization
    _counted: list[Array] = field(default_factory=list)
    """How many values begin with each digit, by group of channels."""
    _values: dict[tuple[int, Rank], float] = field(default_factory=dict)
    _sums: dict[tuple[int, Pair | None], Pair] = field(default_factory=dict)

    def count(self, channel: int) -> int:
        """Values of the channel that are measured."""
        return self._counts()[self._group(channel)]

    def check(self, channel: int, way: Normalization) -> None:
        """Raise `DataError` where nothing of the channel, which is normalised in this way, is measured."""
        if self.count(channel):
            return
        what = "finite voxel" if way.foreground is None else "voxel of the foreground"
        raise DataError(
            f"--normalize {way}: channel {channel} of {self.volume.path} has no {what}; use range:LOW,HIGH"
            + ("" if way.foreground is None else ", or foreground=VALUE with a lower value")
        )

    def percentile(self, channel: int, level: float, clip: Pair | None) -> float:
        """Of the channel's values, clipped; linear between the two values around it, as NumPy has it."""
        group = self._group(channel)
        counts = self._counts()
        wanted = [_around(level, n) for n in counts]
        if (group, wanted[group][0]) not in self._values or (group, wanted[group][1]) not in self._values:
            self._find([(k, rank) for k, n in enumerate(counts) if n for rank in wanted[k][:2]])
        low, high, part = wanted[group]
        below, above = (float(np.clip(self._values[group, rank], *(clip or (-np.inf, np.inf)))) for rank in (low, high))
        return below + (above - below) * part

    def moments(self, channel: int, clip: Pair | None) -> Pair:
        """Mean and standard deviation of the channel's values, clipped."""
        group = self._group(channel)
        if (group, clip) not in self._sums:
            for k, found in enumerate(self._summed(clip)):
                self._sums[k, clip] = found
        return self._sums[group, clip]

    # --- reading ---

    def _group(self, channel: int) -> int:
        return 0 if self.normalization.together else channel

    def _pieces(self) -> Iterator[tuple[int, Array]]:
        """Group and values, flat, of every channel of every piece."""
        ways = self.normalization.each or (self.normalization,) * self.volume.channels
        for box in pieces(self.volume, self.box):
            stored = self.volume.read(box)
            voxels = stored.reshape(self.volume.channels, -1)
            nowhere = void(self.volume, box)
            absent = marked(voxels, self.volume.missing, None if nowhere is None else nowhere.reshape(len(nowhere), -1))
            inside = ~outside(stored, holes_of(self.volume), box).ravel() if self.normalization.fills else None
            for channel, (values, way) in enumerate(zip(voxels, ways, strict=True)):
                left_out = None if absent is None else absent[channel]
                measured = _measured(values, left_out, inside if way.foreground == FILLED else None)
                yield self._group(channel), foreground(way, measured)

    def _groups(self) -> int:
        return 1 if self.normalization.together else self.volume.channels

    def _counts(self) -> list[int]:
        """Values of each group."""
        if not self._counted:
            found = self._histograms({(k, 0) for k in range(self._groups())}, 0)
            self._counted = [found[k, 0] for k in range(self._groups())]
        return [int(counted.sum()) for counted in self._counted]

    def _find(self, wanted: Iterable[tuple[int, Rank]]) -> None:
        """The values of these ranks: digit by digit of their keys, each of which is one reading."""
        known = {(k, rank): _descended(self._counted[k], 0, rank) for k, rank in wanted}
        for digit in range(1, self._keys.digits):
            counted = self._histograms({(k, begin) for (k, _), (begin, _) in known.items()}, digit)
            known = {
                (k, rank): _descended(counted[k, begin], begin, left) for (k, rank), (begin, left) in known.items()
            }
        self._values.update({one: self._keys.value(key) for one, (key, _) in known.items()})

    def _histograms(self, begins: set[tuple[int, int]], digit: int) -> dict[tuple[int, int], Array]:
        """Of groups and what keys begin with, before `digit`: how many have each digit there."""
        counted = {one: np.zeros(2**DIGIT, np.int64) for one in begins}
        for group, values in self._pieces():
            keys = self._keys.of(values)
            for k, begin in begins:
                if k == group:
                    counted[k, begin] += self._keys.histogram(keys, begin, digit)
        return counted

    @cached_property
    def _keys(self) -> Keys:
        return Keys(self.volume.dtype)

    def _summed(self, clip: Pair | None) -> list[Pair]:
        """Mean and deviation of each group, NaN where nothing is measured. Pieces are put together as Chan, Golub and
        LeVeque do (1983), which loses nothing where the mean is large."""
        found = [(0, 0.0, 0.0)] * self._groups()
        for group, piece in self._pieces():
            if piece.size:
                values = piece.astype(np.float64)
                if clip is not None:
                    np.clip(values, *clip, out=values)
                mean = float(values.mean())
                values -= mean
                found[group] = _joined(found[group], (values.size, mean, float(np.dot(values, values))))
        return [(mean, (squares / n) ** 0.5) if n else (np.nan, np.nan) for n, mean, squares in found]


def _measured(values: Array, absent: Array | None, inside: Array | None) -> Array:
    """Those that are finite and not `absent`; inside: of these alone."""
    if inside is not None:
        values, absent = values[inside], None if absent is None else absent[inside]
    if absent is not None:
        values = values[~absent]
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values


def _joined(a: tuple[int, float, float], b: tuple[int, float, float]) -> tuple[int, float, float]:
    """Number, mean and sum of squared distances from it of both together."""
    n, apart = a[0] + b[0], b[1] - a[1]
    return n, a[1] + apart * b[0] / n, a[2] + b[2] + apart * apart * a[0] * b[0] / n


def _descended(counted: Array, begin: int, rank: Rank) -> tuple[int, Rank]:
    """The digit in which the value of this rank lies, behind the others, and its rank in there."""
    ends = np.cumsum(counted)
    digit = int(np.searchsorted(ends, rank, side="right"))
    return begin << DIGIT | digit, rank - (int(ends[digit - 1]) if digit else 0)


def _around(level: float, count: int) -> tuple[Rank, Rank, float]:
    """The ranks around a percentile of so many values, and where it lies between them."""
    if not count:
        return 0, 0, 0.0
    at = level / 100 * (count - 1)
    low = min(floor(at), count - 1)
    return low, min(low + 1, count - 1), at - low
