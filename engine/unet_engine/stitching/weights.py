"""Blending weights of one axis, normalised so that stitching is plain addition.

Window k contributes ``g(x - start_k) / sum_j g(x - start_j)`` at voxel x, the sum running over the windows that cover
x. The outer product of the axes' weights then sums to one at every voxel, since the window grid is itself a product. No
count volume, no division.
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

Vector = npt.NDArray[np.float32]


def profile(window: int, blend: Blend) -> npt.NDArray[np.float64]:
    """The bare profile g of a window of `window` output voxels: shape (window,), largest in the middle, never below
    `FLOOR`."""
    if blend != "gaussian":
        return np.ones(window)
    x = (np.arange(window) - (window - 1) / 2) / (SIGMA * window)
    return np.maximum(np.exp(-0.5 * x * x), FLOOR)


def axis_weights(axis: AxisGrid, k: int) -> Vector:
    """Normalised weights of window k along `axis`: shape (axis.window,), float32, zero outside its support."""
    start = axis.start(k)
    lo, hi = axis.support(k)
    rivals = tuple(axis.start(j) - start for j in axis.meeting(lo, hi))
    return _normalised(axis.window, axis.blend, lo - start, hi - start, rivals)


@lru_cache(maxsize=4096)
def _normalised(window: int, blend: Blend, lo: int, hi: int, rivals: tuple[int, ...]) -> Vector:
    """All windows that lie alike among their neighbours share one read-only vector, so the cache stays small."""
    weights = np.zeros(window)
    if blend == "crop":
        weights[lo:hi] = 1
    else:
        g = profile(window, blend)
        total = np.zeros(window)
        for offset in rivals:
            shared = slice(max(0, offset), min(window, window + offset))
            total[shared] += g[shared.start - offset : shared.stop - offset]
        weights[lo:hi] = g[lo:hi] / total[lo:hi]
    result = weights.astype(np.float32)
    result.flags.writeable = False
    return result
