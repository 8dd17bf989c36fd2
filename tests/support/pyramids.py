"""Levels of pyramids as the rule says, voxel by voxel, by no code of the engine."""

from itertools import product

import numpy as np


def coarser(values, factors, by):
    """Each voxel the most frequent, of several the least, or the mean of those that it covers, whole numbers rounded
    with halves up; NaN left out."""
    found = np.empty([-(-n // f) for n, f in zip(values.shape, factors, strict=True)], values.dtype)
    for at in product(*map(range, found.shape)):
        cell = values[tuple(slice(i * f, i * f + f) for i, f in zip(at, factors, strict=True))]
        if by == "majority":
            kinds, counts = np.unique(cell, return_counts=True)
            found[at] = kinds[counts.argmax()]
            continue
        cell = cell[~np.isnan(cell)] if values.dtype.kind == "f" else cell
        mean = cell.mean(dtype=np.float64) if cell.size else np.nan
        found[at] = np.floor(mean + 0.5) if values.dtype.kind in "iu" else mean
    return found
