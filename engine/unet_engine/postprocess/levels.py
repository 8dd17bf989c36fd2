"""Which levels a pyramid has: how many voxels of the level before become one along each axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from unet_engine.errors import SettingsError
from unet_engine.units import times

SMALL = 64
"""Voxels along the longest axis of a level that needs no coarser one."""
MOST = 32
"""Levels."""


@dataclass(frozen=True)
class Level:
    """Tuples follow the stored axes."""

    shape: tuple[int, ...]
    factors: tuple[int, ...]
    """Voxels of the level before that one of these covers; fewer at the far end."""


def levels_of(axes: str, shape: Sequence[int], spacing: Mapping[str, float], wanted: int | None = None) -> list[Level]:
    """The levels behind the full resolution of `shape`, whose axes are `axes`.

    Each halves the axes along which voxels are finest, up to twice that, so that voxels become cubes; all of them once
    they are. wanted: how many there are with the full resolution; None: until the longest axis has `SMALL` voxels or
    fewer, one at the least. spacing: of spatial axes, as far as known.

    Raises `SettingsError` where there are not so many.
    """
    found: list[Level] = []
    for level in _halved(axes, tuple(shape), {a: abs(spacing.get(a, 1.0)) for a in axes}):
        if (
            wanted is None
            and found
            and max(n for a, n in zip(axes, found[-1].shape, strict=True) if a in "zyx") <= SMALL
        ):
            break
        if wanted is not None and len(found) + 1 >= wanted:
            break
        found.append(level)
    if wanted is not None and len(found) + 1 < wanted:
        raise SettingsError(
            f"--levels {wanted}: {times(tuple(shape))} voxels have {len(found) + 1} at most; ask for fewer"
        )
    return found


def _halved(axes: str, shape: tuple[int, ...], sizes: dict[str, float]) -> Iterator[Level]:
    while halved := [a for a, n in zip(axes, shape, strict=True) if a in "zyx" and n > 1]:
        finest = min(sizes[a] for a in halved)
        factors = tuple(2 if a in halved and sizes[a] < 2 * finest else 1 for a in axes)
        sizes = {a: sizes[a] * f for a, f in zip(axes, factors, strict=True)}
        shape = tuple(-(-n // f) for n, f in zip(shape, factors, strict=True))
        yield Level(shape, factors)


def levels_like(
    axes: str, shape: Sequence[int], image: Sequence[Mapping[str, tuple[int, float]]]
) -> list[Level] | None:
    """Levels with the factors of another pyramid, for each of whose levels `image` has voxels and spacing along each
    axis; shapes as there, where the full resolution is of the same one. None where its factors are no whole numbers.
    """
    found: list[Level] = []
    before = tuple(shape)
    for finer, coarser in pairwise(image):
        factors = tuple(_factor(finer.get(a), coarser.get(a)) for a in axes)
        if 0 in factors:
            return None
        now = []
        for axis, n, f in zip(axes, before, factors, strict=True):
            alike = axis in finer and finer[axis][0] == n and coarser[axis][0] in (n // f, -(-n // f))
            now.append(coarser[axis][0] if alike else -(-n // f))
        found.append(Level(tuple(now), factors))
        before = found[-1].shape
    return found


def _factor(finer: tuple[int, float] | None, coarser: tuple[int, float] | None) -> int:
    """How many voxels become one; 0 for no whole number. Voxels decide where spacings contradict them."""
    if finer is None or coarser is None:
        return 1
    (n, size), (fewer, larger) = finer, coarser
    for ratio in (larger / size if size else 0.0, n / fewer):
        whole = round(ratio)
        if whole >= 1 and abs(ratio - whole) < 0.01 and fewer in (max(1, n // whole), -(-n // whole)):
            return whole
    return 0
