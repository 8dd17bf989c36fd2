"""Values as whole numbers that lie in the same order, so that percentiles are found by counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
DIGIT = 16
"""Bits that are counted at once, the highest first."""


class Keys:
    """Of values of one type: bool, integers, or floats without NaN. Integers are theirs less the least of them; of
    floats the bits, all turned around where the sign is set, else the sign alone: so they lie as the values do."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype.newbyteorder("=")
        self._bits = 8 * dtype.itemsize
        self.digits = max(1, self._bits // DIGIT)
        """16 bits each, but of types of 8 bits."""

    def of(self, values: Array) -> Array:
        """values: of any shape. As uint64."""
        if self.dtype.kind == "b":
            return values.astype(np.uint64)
        if self.dtype.kind == "f":
            values = values + self.dtype.type(0)  # -0 becomes 0
        raw = np.ascontiguousarray(values, self.dtype).view(f"u{self.dtype.itemsize}").astype(np.uint64)
        if self.dtype.kind == "u":
            return raw
        sign = np.uint64(1 << (self._bits - 1))
        if self.dtype.kind == "i":
            return raw ^ sign
        every = np.uint64((1 << self._bits) - 1)
        return np.where(raw & sign, raw ^ every, raw | sign)

    def value(self, key: int) -> float:
        """What has this key."""
        if self.dtype.kind in "bu":
            return float(key)
        sign, every = 1 << (self._bits - 1), (1 << self._bits) - 1
        if self.dtype.kind == "i":
            return float(key - sign)
        raw = key ^ sign if key & sign else key ^ every
        return float(np.array([raw], f"u{self.dtype.itemsize}").view(self.dtype)[0])

    def histogram(self, keys: Array, begin: int, digit: int) -> Array:
        """How many of `keys` have each value of a digit, counted from 0, of those whose digits before are `begin`:
        (2**16) int64."""
        if digit:
            keys = keys[keys >> np.uint64(DIGIT * (self.digits - digit)) == np.uint64(begin)]
        at = keys >> np.uint64(DIGIT * (self.digits - 1 - digit)) & np.uint64(2**DIGIT - 1)
        return np.bincount(at.astype(np.int64), minlength=2**DIGIT)
