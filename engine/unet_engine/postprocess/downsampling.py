"""Voxels of a coarser grid, each made of the voxels that it covers: the label that most of them have, or their mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from math import nan

import numpy as np

from unet_engine.postprocess.base import Array
from unet_engine.volumes.nodata import where

Reduce = Callable[[Sequence[Array]], Array]
"""What equal arrays, one for each voxel that is covered, come to."""


def downsampled(values: Array, factors: Sequence[int], reduce: Reduce) -> Array:
    """`values`, of which `factors` voxels along each axis become one; fewer at the far end, where they do not
    divide."""
    shape = tuple(-(-n // f) for n, f in zip(values.shape, factors, strict=True))
    found = np.empty(shape, values.dtype)
    for spans in product(*map(_spans, values.shape, factors)):
        cells = values[tuple(source for source, _, _ in spans)]
        steps = [step for _, _, step in spans]
        each = [cells[tuple(slice(o, None, s) for o, s in zip(at, steps, strict=True))] for at in np.ndindex(*steps)]
        found[tuple(target for _, target, _ in spans)] = reduce(each)
    return found


def _spans(n: int, factor: int) -> Iterator[tuple[slice, slice, int]]:
    """Of an axis what is whole cells, and the rest: where it lies, where it goes, and how many voxels a cell has."""
    whole = n // factor
    if whole:
        yield slice(0, whole * factor), slice(0, whole), factor
    if n % factor:
        yield slice(whole * factor, n), slice(whole, whole + 1), n % factor


def majority(each: Sequence[Array]) -> Array:
    """The value that most have; of several the least."""
    found = each[0].copy()
    mixed = np.zeros(found.shape, bool)
    for other in each[1:]:
        mixed |= other != found
    if mixed.any():
        found[mixed] = _most_frequent(np.stack([one[mixed] for one in each]))
    return found


def _most_frequent(columns: Array) -> Array:
    """Of each column."""
    columns.sort(axis=0)
    best = columns[0].copy()
    most = np.ones(best.shape, np.uint32)
    run = most.copy()
    for before, now in pairwise(columns):
        run = np.where(now == before, run + 1, 1)
        larger = run > most
        best[larger], most[larger] = now[larger], run[larger]
    return np.asarray(best)


def mean_of(nodata: Sequence[float] = ()) -> Reduce:
    """A mean that leaves out NaN and `nodata`, where anything else is there. It is exact for whole numbers, which are
    rounded, halves up; sums of floats are of float64."""

    def mean(each: Sequence[Array]) -> Array:
        return _mean_of_whole(each, nodata) if each[0].dtype.kind in "iu" else _mean_of_floats(each, (nan, *nodata))

    return mean


def _mean_of_whole(each: Sequence[Array], nodata: Sequence[float]) -> Array:
    dtype = each[0].dtype
    wide = np.dtype(np.uint64 if dtype.kind == "u" else np.int64)
    if not nodata and dtype.itemsize <= 4:
        total = sum((one.astype(wide) for one in each), wide.type(0))
        return np.asarray((2 * total + len(each)) // (2 * len(each))).astype(dtype)
    there = [~where(one, nodata) for one in each]
    count = np.asarray(sum(found.astype(wide) for found in there))
    parts = np.maximum(count, 1)
    whole, rest = np.zeros_like(count), np.zeros_like(count)
    for found, one in zip(there, each, strict=True):  # of 64 bits the sum itself may not fit
        share, left = np.divmod(np.where(found, one, 0).astype(wide), parts)
        whole, rest = whole + share, rest + left
    return np.where(count > 0, whole + (2 * rest + parts) // (2 * parts), each[0]).astype(dtype)


def _mean_of_floats(each: Sequence[Array], nodata: Sequence[float]) -> Array:
    there = [~where(one, nodata) for one in each]
    count = sum(found.astype(np.uint32) for found in there)
    parts = [np.where(found, one, 0).astype(np.float64) for found, one in zip(there, each, strict=True)]
    with np.errstate(invalid="ignore"):  # of infinities of both signs it is NaN
        found = np.asarray(sum(parts) / np.maximum(count, 1))
    return np.where(count > 0, found, each[0]).astype(each[0].dtype)
