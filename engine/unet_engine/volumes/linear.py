"""Voxels that are stored as other numbers: ``slope * stored + intercept``, of a type that holds the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np

from unet_engine.volumes.base import Array


@dataclass(frozen=True)
class Linear:
    """Computed in float64 and rounded once, to `dtype`; whole numbers stay whole."""

    slope: float
    intercept: float
    dtype: np.dtype[Any]
    """Of the results."""
    unsigned: np.dtype[Any] | None = None
    """What signed integers are taken for before anything is computed, bit by bit; None where they are what they are."""

    @classmethod
    def said(cls, stored: np.dtype[Any], attributes: Mapping[str, Any]) -> Linear:
        """What the attributes of an array of the type `stored` say, as CF and xarray pack numbers: ``scale_factor``,
        ``add_offset``, and ``_Unsigned`` of signed integers. What is no number, or a factor of 0, says nothing."""
        unsigned = None
        if stored.kind == "i" and str(attributes.get("_Unsigned")).lower() == "true":
            unsigned = np.dtype(f"u{stored.itemsize}")
        slope, intercept = _one(attributes, "scale_factor") or 1.0, _one(attributes, "add_offset") or 0.0
        return replace(cls.of(unsigned or stored, slope, intercept), unsigned=unsigned)

    @classmethod
    def of(cls, stored: np.dtype[Any], slope: float, intercept: float) -> Linear:
        """For numbers of the type `stored`. Integers with whole slope and intercept give the smallest type of signed
        integers that holds all results, types of 16 bits float32, which has all their digits, and others float64."""
        if (slope, intercept) == (1.0, 0.0):
            return cls(slope, intercept, stored)
        if stored.kind in "iu" and slope == int(slope) and intercept == int(intercept):
            ends = np.iinfo(stored)
            results = [int(slope) * end + int(intercept) for end in (int(ends.min), int(ends.max))]
            for kind in (np.int16, np.int32, np.int64):
                if np.iinfo(kind).min <= min(results) and max(results) <= np.iinfo(kind).max:
                    return cls(slope, intercept, np.dtype(kind))
        narrow = stored.kind == "b" or stored.itemsize <= 2 or stored == np.float32
        return cls(slope, intercept, np.dtype(np.float32 if narrow else np.float64))

    @property
    def is_identity(self) -> bool:
        return (self.slope, self.intercept, self.unsigned) == (1.0, 0.0, None)

    def __call__(self, stored: Array) -> Array:
        if self.unsigned is not None:
            stored = stored.astype(self.unsigned)
        if (self.slope, self.intercept) == (1.0, 0.0):
            return stored
        if self.dtype.kind == "i":
            whole: Array = stored.astype(self.dtype) * self.dtype.type(self.slope) + self.dtype.type(self.intercept)
            return whole
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is found like all that is stored so
            return np.asarray(stored.astype(np.float64) * self.slope + self.intercept, self.dtype)

    def values(self, stored: Sequence[float]) -> tuple[float, ...]:
        """What single numbers stand for, as voxels of `dtype`."""
        if self.is_identity:
            return tuple(stored)
        return tuple(float(self(np.asarray(v if self.unsigned is None else int(v))).item()) for v in stored)


def _one(attributes: Mapping[str, Any], key: str) -> float | None:
    value = attributes.get(key)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return float(value) if isinstance(value, int | float) and isfinite(value) else None
