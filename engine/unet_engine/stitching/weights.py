"""Blending weights of one axis, normalised so that stitching is plain addition.

Window k contributes ``g(x - start_k) / sum_j g(x - start_j)`` at voxel x, the sum running over the windows that cover
x. The outer product of the axes' weights then sums to one at every voxel, since the window grid is itself a product. No
count volume, no division.

`nnunet` is the same with that tool's profile. The weight of `monai` is the larger of the product and a floor, which is
no product: there, vectors are the bare profiles, and sums are divided by what the weights come to (`covers`) once all
windows of a block are added. That follows from where windows lie along each axis, so there is no count volume either.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from unet_engine.plan.grid import AxisGrid, Blend

SIGMA = 0.125
"""Standard deviation of the Gaussian as a fraction of the window, as in nnU-Net and MONAI."""
FLOOR = 1e-3
"""Least value of the profile per axis: corners keep a weight that float32 can divide by."""
MONAI_FLOOR = 1e-3
"""Least value of the product over the axes in MONAI's `compute_importance_map`."""
ABSENT = -1.0
"""In place of a profile's value: no window."""

Vector = npt.NDArray[np.float32]


def profile(window: int, blend: Blend) -> npt.NDArray[np.float64]:
    """The bare profile g of a window of `window` output voxels: shape (window,), at most 1.

    gaussian: largest in the middle, never below `FLOOR`. monai: the same without a floor, in float32, as MONAI 1.6
    computes it in `compute_importance_map`. nnunet: largest at voxel ``window // 2``, as nnU-Net 2.8 filters a single
    voxel in `compute_gaussian`; its rounding to float16 is left out.
    """
    if blend in ("constant", "crop"):
        return np.ones(window)
    if blend == "monai":
        at = np.arange(window, dtype=np.float32) - np.float32((window - 1) / 2)
        return np.asarray(np.exp(at**2 / np.float32(-2 * (SIGMA * window) ** 2)), np.float64)
    middle = window // 2 if blend == "nnunet" else (window - 1) / 2
    x = (np.arange(window) - middle) / (SIGMA * window)
    bell = np.exp(-0.5 * x * x)
    return bell if blend == "nnunet" else np.maximum(bell, FLOOR)


def floor_of(axis: AxisGrid) -> float:
    """What the product of the axes' weights is raised to at least."""
    return MONAI_FLOOR if axis.divides else 0.0


@lru_cache(maxsize=4096)  # windows of a block share their numbers along the axes
def axis_weights(axis: AxisGrid, k: int) -> Vector:
    """Weights of window k along `axis`, bare where sums are divided, else normalised: shape (axis.window,), float32,
    read-only, zero outside its support."""
    start = axis.start(k)
    lo, hi = axis.support(k)
    rivals = () if axis.divides else tuple(axis.start(j) - start for j in axis.meeting(lo, hi))
    return _normalised(axis.window, axis.blend, lo - start, hi - start, rivals)


@lru_cache(maxsize=4096)
def _normalised(window: int, blend: Blend, lo: int, hi: int, rivals: tuple[int, ...]) -> Vector:
    """All windows that lie alike among their neighbours share one read-only vector, so the cache stays small."""
    weights = np.zeros(window)
    if blend == "crop":
        weights[lo:hi] = 1
    else:
        g = profile(window, blend)
        total = np.zeros(window) if rivals else np.ones(window)
        for offset in rivals:
            shared = slice(max(0, offset), min(window, window + offset))
            total[shared] += g[shared.start - offset : shared.stop - offset]
        weights[lo:hi] = g[lo:hi] / total[lo:hi]
    result = weights.astype(np.float32)
    result.flags.writeable = False
    return result


def covers(axis: AxisGrid, lo: int, hi: int) -> Vector:
    """The bare weights of all windows at the voxels [lo, hi) of an axis: shape (axis.most, hi - lo), float32, `ABSENT`
    where fewer windows lie. Which window has which row follows from its number alone, so a voxel's column is the same
    whatever the interval. Beyond the ends of the axis, where nothing is added, it is that of the last voxel."""
    before, behind = max(0, min(-lo, hi - lo)), max(0, min(hi - axis.size, hi - lo))
    lo, hi = (lo, hi) if not (before or behind) else (min(max(lo, 0), axis.size - 1), max(min(hi, axis.size), 1))
    rows = np.full((axis.most, hi - lo), ABSENT, np.float32)
    g = profile(axis.window, axis.blend)
    for k in axis.meeting(lo, hi):
        first, stop = axis.support(k)
        first, stop = max(first, lo), min(stop, hi)
        rows[k % axis.most, first - lo : stop - lo] = g[first - axis.start(k) : stop - axis.start(k)]
    return np.pad(rows, ((0, 0), (before, behind)), "edge") if before or behind else rows
