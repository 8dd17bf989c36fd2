"""Windows that fit a volume's shape: of the sizes a network takes, per axis, those that compute the fewest voxels and
still share what they must. Pure arithmetic.

A grid of a fixed stride ends with a window that is moved back over work already done: 256×520×520 in windows of 128³
that share 16 computes 2.3 voxels for one. Windows of 136×144×144 spread evenly compute 1.3, and share as much.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from unet_engine.plan.grid import AxisGrid

DEEPEST = 32
"""Lattice of a network of five poolings: none is taken to be coarser where a spec does not say it."""


@dataclass(frozen=True)
class AxisNeeds:
    """What windows along one axis of the model have to keep. All sizes in voxels; of the network's output, unless they
    are said to be of its input."""

    size: int
    """Of the volume."""
    context: int
    """Least length of a window, unless the axis is shorter."""
    shared: int
    """Least that neighbours share."""
    least: int
    """Smallest input that the network takes."""
    step: int
    """From one input that it takes to the next; 0 where it takes the smallest alone."""
    margin: int = 0
    """Voxels of the input that are lost at each side."""


@dataclass(frozen=True)
class Fitted:
    """Windows for a volume. Tuples per axis of the model."""

    window: tuple[int, ...]
    """Sizes of the network's input."""
    counts: tuple[int, ...]
    work: float
    """Voxels of input computed for one of the volume."""


def lattice_of(step: int, window: int) -> int:
    """Where windows of `window` input voxels should begin: at multiples of the step between sizes that the network
    takes; of one of fixed sizes, of the largest power of two in them that poolings may come to."""
    return step or min(DEEPEST, window & -window)


def fitted(
    needs: Sequence[AxisNeeds],
    most: int,
    admits: Callable[[tuple[int, ...]], bool] = lambda _: True,
    at_once: int = 1,
) -> Fitted | None:
    """The windows of at most `most` input voxels that are done first where so many are inferred `at_once`, and of these
    the smallest, of those that `admits`; None where there are none."""
    best: tuple[int, int] | None = None
    found: Fitted | None = None
    per_axis = [_along(axis, most) for axis in needs]
    volume = prod(axis.size for axis in needs)
    for chosen in itertools.product(*per_axis):
        window, counts = tuple(w for w, _ in chosen), tuple(n for _, n in chosen)
        voxels = prod(window)
        rank = (voxels * filled(prod(counts), at_once), voxels)
        if voxels <= most and (best is None or rank < best) and admits(window):
            best, found = rank, Fitted(window, counts, voxels * prod(counts) / volume)
    return found


def filled(windows: int, at_once: int) -> int:
    """Windows that could be done in the time that so many take: the last round may leave threads idle."""
    return -(-windows // at_once) * at_once


def _along(axis: AxisNeeds, most: int) -> list[tuple[int, int]]:
    """Sizes of windows along an axis and how many it takes of each, those alone that compute no more than any smaller
    one."""
    found: list[tuple[int, int]] = []
    for window in _sizes(axis, most):
        inner = window - 2 * axis.margin
        shared = min(axis.shared, inner - 1)
        count = AxisGrid.evenly(axis.size, inner, shared, 0, "crop", lattice_of(axis.step, window)).count
        if not found or window * count <= found[-1][0] * found[-1][1]:
            found.append((window, count))
    return found


def _sizes(axis: AxisNeeds, most: int) -> Iterator[int]:
    """Input sizes that the network takes and that keep the context, up to the first that spans the axis."""
    least, step, margin = axis.least, axis.step, axis.margin
    enough = min(axis.context, axis.size) + 2 * margin
    window = least if least >= enough or not step else least + -(-(enough - least) // step) * step
    while window <= most and window > 2 * margin:
        if window - 2 * margin > min(axis.shared, axis.size - 1):  # a window that spans the axis has no neighbour
            yield window
        if not step or window - 2 * margin >= axis.size:
            return
        window += step
