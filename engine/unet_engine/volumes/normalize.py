"""Global normalisation: a shift and a scale per channel, computed once from samples of the volume. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.errors import DataError
from unet_engine.model.spec import Normalization
from unet_engine.model.verdict import LEVELS, Quantiles


@dataclass(frozen=True, slots=True)
class Scaling:
    """``(x - shift) * scale`` per input channel."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]


def scaling(normalization: Normalization, samples: Sequence[npt.NDArray[Any]]) -> Scaling:
    """Statistics of `samples`, one array of any shape per channel, as a `Scaling`; NaN and Inf are left out.

    Raises `DataError` where the statistic does not exist: no finite voxel, or all voxels alike.
    """
    pairs = [_channel(normalization, np.asarray(values).ravel(), c) for c, values in enumerate(samples)]
    return Scaling(tuple(p[0] for p in pairs), tuple(p[1] for p in pairs))


def quantiles(samples: Sequence[npt.NDArray[Any]], scale: Scaling) -> Quantiles:
    """The quantiles `LEVELS` of normalised `samples` (one array of any shape per channel), finite values alone."""
    found = []
    for c, values in enumerate(samples):
        x = np.asarray(values, np.float64).ravel()
        x = x[np.isfinite(x)]
        levels = np.percentile(x, LEVELS) if x.size else np.zeros(len(LEVELS))
        found.append(tuple(float((v - scale.shift[c]) * scale.scale[c]) for v in levels))
    return tuple(found)


def _channel(normalization: Normalization, values: npt.NDArray[Any], channel: int) -> tuple[float, float]:
    mode, low, high = normalization.mode, normalization.low, normalization.high
    if normalization.fixed:
        return normalization.fixed
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size:
        raise DataError(f"--normalize {mode}: no finite voxel in the samples of channel {channel}; use range:LOW,HIGH")
    if mode == "zscore":
        shift, spread = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    else:
        low, high = (0.0, 100.0) if mode == "minmax" else (low, high)
        bounds = np.percentile(values, [low, high])
        shift, spread = float(bounds[0]), float(bounds[1] - bounds[0])
    if spread == 0:
        raise DataError(
            f"--normalize {normalization}: all sampled voxels of channel {channel} are {shift:g}; "
            "use none or range:LOW,HIGH"
        )
    return shift, 1 / spread
