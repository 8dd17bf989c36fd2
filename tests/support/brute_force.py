"""What a run must give, computed the slow and plain way from the definitions in `docs/design.md`.

It imports nothing of the engine: the whole volume is padded at once, every window is cut out of it, and two float64
arrays are kept, of weighted outputs and of weights. Arrays are (channels, *spatial), spatial axes ordered z, y, x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, exp
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Network = Callable[[Array], Array]
"""(channels in, *window) to (channels out, *window less the margins)."""


@dataclass(frozen=True)
class Tiling:
    """Sizes are of the network's input, per axis of the volume; planes of a 2D network have size 1."""

    window: tuple[int, ...]
    margin: tuple[int, ...]
    overlap: float
    blend: str
    padding: str
    shared: tuple[int, ...] | None = None
    """Least voxels that neighbours share, where windows are spread evenly."""

    def positions(self, axis: int, size: int) -> list[int]:
        """Where the outputs of the windows begin along an axis of `size` voxels."""
        width = self.window[axis] - 2 * self.margin[axis]
        if size <= width:
            return [-((width - size) // 2)]
        if self.shared is not None and width > 1:
            # as few as needed, where the poolings of a network of one size may begin, the last one at the end
            cell = next(n for n in (32, 16, 8, 4, 2, 1) if self.window[axis] % n == 0)
            lattice = cell if width - self.shared[axis] >= cell else 1
            cells = ceil((size - width) / lattice)
            count = ceil(cells / ((width - self.shared[axis]) // lattice))
            return [*(round(i * (cells / count)) * lattice for i in range(count)), size - width]
        if self.blend == "nnunet":  # as few as needed, as far apart as possible
            wanted = max(1.0, width * (1 - self.overlap))
            count = ceil((size - width) / wanted)
            return [round(i * ((size - width) / count)) for i in range(count + 1)]
        step = max(1, int(width * (1 - self.overlap))) if width > 1 else 1
        found = list(range(0, size - width + 1, step))
        return found if found[-1] == size - width else [*found, size - width]

    def weights(self, axis: int, starts: Sequence[int], k: int) -> Array:
        """Of the k-th window along an axis, before they are divided by their sum."""
        width = self.window[axis] - 2 * self.margin[axis]
        if self.blend == "gaussian":
            middle, deviation = (width - 1) / 2, width / 8
            return np.array([max(exp(-(((i - middle) / deviation) ** 2) / 2), 1e-3) for i in range(width)])
        if self.blend in ("monai", "nnunet"):
            middle = width // 2 if self.blend == "nnunet" else (width - 1) / 2
            return np.array([exp(-(((i - middle) / (width / 8)) ** 2) / 2) for i in range(width)])
        if self.blend == "constant":
            return np.ones(width)
        # cut in the middle of what neighbours share
        first = 0 if k == 0 else (starts[k - 1] + width + starts[k]) // 2 - starts[k]
        last = width if k == len(starts) - 1 else (starts[k] + width + starts[k + 1]) // 2 - starts[k]
        return np.array([1.0 if first <= i < last else 0.0 for i in range(width)])


def stitched(image: Array, network: Network, tiling: Tiling, channels: int) -> Array:
    """The network's blended outputs for a normalised `image`: (channels, *spatial) float64."""
    spatial = image.shape[1:]
    # as wide as any window sticks out
    room = [w + max(0, w - n) for w, n in zip(tiling.window, spatial, strict=True)]
    padded = _padded(image, room, tiling.padding)
    total = np.zeros((channels, *(n + 2 * r for n, r in zip(spatial, room, strict=True))))
    weight = np.zeros(total.shape[1:])
    for corner, weights in _windows(spatial, tiling):
        cut = tuple(
            slice(r + s - m, r + s - m + w)
            for r, s, m, w in zip(room, corner, tiling.margin, tiling.window, strict=True)
        )
        placed = tuple(slice(r + s, r + s + n) for r, s, n in zip(room, corner, weights.shape, strict=True))
        total[(slice(None), *placed)] += network(padded[(slice(None), *cut)]) * weights
        weight[placed] += weights
    inside = tuple(slice(r, r + n) for r, n in zip(room, spatial, strict=True))
    return total[(slice(None), *inside)] / weight[inside]


def _windows(spatial: Sequence[int], tiling: Tiling) -> Iterator[tuple[tuple[int, ...], Array]]:
    starts = [tiling.positions(a, n) for a, n in enumerate(spatial)]
    for index in product(*(range(len(s)) for s in starts)):
        weights = np.ones(())
        for a, k in enumerate(index):
            weights = np.multiply.outer(weights, tiling.weights(a, starts[a], k))
        if tiling.blend == "monai":
            weights = np.maximum(weights, 1e-3)
        yield tuple(s[k] for s, k in zip(starts, index, strict=True)), weights


def _padded(image: Array, room: Sequence[int], padding: str) -> Array:
    """Padded axis by axis, voxel by voxel, after normalisation; `constant` is 0 there."""
    for axis, r in enumerate(room, start=1):
        n = image.shape[axis]
        if padding == "constant":
            image = np.concatenate(
                [np.zeros_like(image.take([0] * r, axis)), image, np.zeros_like(image.take([0] * r, axis))], axis
            )
            continue
        walk = [_edge(x, n) if padding == "edge" else _mirrored(x, n) for x in range(-r, n + r)]
        image = image.take(walk, axis)
    return image


def _edge(x: int, n: int) -> int:
    return min(max(x, 0), n - 1)


def _mirrored(x: int, n: int) -> int:
    """Bounces between the first and the last voxel."""
    while n > 1 and not 0 <= x < n:
        x = -x if x < 0 else 2 * (n - 1) - x
    return x if n > 1 else 0


def probabilities(sums: Array, activation: str) -> Array:
    if activation == "softmax":
        e = np.exp(sums - sums.max(axis=0))
        return e / e.sum(axis=0)
    return 1 / (1 + np.exp(-sums)) if activation == "sigmoid" else np.clip(sums, 0, 1)


def labels(sums: Array, activation: str) -> tuple[Array, Array]:
    """Labels, and where they hang on a difference that rounding may turn."""
    each = activation in ("sigmoid", "probabilities_each") or len(sums) == 1
    near = np.zeros(sums.shape[1:], bool)
    ranked = np.sort(sums, axis=0)
    if len(sums) > 1:
        near |= ranked[-1] - ranked[-2] < 1e-4
    best = sums.argmax(axis=0)
    if each:
        least = 0.5 if activation.startswith("probabilities") else 0.0
        near |= np.abs(ranked[-1] - least) < 1e-4
        best = np.where(ranked[-1] > least, best + 1, 0)
    return best, near
