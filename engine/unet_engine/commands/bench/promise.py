"""Which configurations should be worth more than the best that was measured, by what was measured. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log, prod

from unet_engine.commands.bench.space import Configuration, Field, Window

MOST_WEIGHT = 2.0
"""How much more a batch's gain may weigh with a smaller window than with the nearest one measured.

So would the noise of its measurement.
"""

Point = tuple[float, float]
"""Logarithm of a window's voxels, seconds per voxel."""


def promising(
    field: Field, measured: Mapping[Configuration, float], windows: Iterable[Window], batches: Iterable[int], bar: float
) -> list[Configuration]:
    """Those not measured that may be worth more than `bar`, the likeliest first.

    measured: windows per second, of one way to compute
    windows: sizes beside those measured
    bar: voxels of the volume per second

    The number of windows on the volume is exact, and what makes neighbours differ most on small volumes. Their time
    per voxel is only bounded, by `_bounds`: by its least a size is let in, by the middle it is ranked.
    """
    [group] = {c.group for c in measured}
    found = []
    for batch in batches:
        rates = _rates(measured, batch)
        points = sorted({log(prod(w)): 1 / (prod(w) * rate) for w, rate in rates.items()}.items())
        for window in dict.fromkeys([*windows, *rates]):
            configuration, voxels = Configuration(group, window, batch), prod(window)
            if configuration in measured:
                continue
            if window in rates:
                least = most = 1 / (voxels * rates[window])
            elif points and points[0][0] < log(voxels) < points[-1][0]:
                least, most = _bounds(points, log(voxels))
            else:
                continue
            if field.rate(window, 1 / (voxels * least)) > bar:
                found.append((field.rate(window, 2 / (voxels * (least + most))), configuration))
    return [configuration for _, configuration in sorted(found, reverse=True)]


def _rates(measured: Mapping[Configuration, float], batch: int) -> dict[Window, float]:
    """Windows per second by size in this batch, measured or, where another batch of the size was, estimated.

    A batch saves part of what every call costs, and that weighs more the smaller the window: the gain of the nearest
    size that was measured in both batches is taken to the power of the ratio of their voxels.
    """
    rates = {c.window: rate for c, rate in measured.items() if c.batch == batch}
    known = dict(rates)
    for c, rate in measured.items():
        gains = {w: known[w] / measured[o] for w in known if (o := Configuration(c.group, w, c.batch)) in measured}
        if c.window not in rates and gains:
            voxels = prod(c.window)
            near = min(gains, key=lambda w: abs(log(prod(w) / voxels)))
            rates[c.window] = rate * gains[near] ** min(MOST_WEIGHT, prod(near) / voxels)
    return rates


def _bounds(points: Sequence[Point], x: float) -> Point:
    """Least and most seconds per voxel at `x`, which lies between two of the points.

    Over the logarithm of the voxels the time per voxel falls ever more slowly, as calls cost less and less, and rises
    ever faster, as caches overflow. So it lies below the straight line between the two points, and above the lines
    through the next two on either side:

        \\            .
         o  - - - - o       most
           \\     /
             \\ /           least
    """
    i = next(i for i, (right, _) in enumerate(points) if right > x)
    most = _line(points[i - 1], points[i], x)
    sides = [_line(points[j], points[j + 1], x) for j in (i - 2, i) if 0 <= j < len(points) - 1]
    return min(most, max([min(time for _, time in points) / 2, *sides])), most


def _line(a: Point, b: Point, x: float) -> float:
    return a[1] + (b[1] - a[1]) * (x - a[0]) / (b[0] - a[0])
