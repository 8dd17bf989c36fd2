"""Arrays of all types with special values, and comparing bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

BLOCK_TYPES = ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


WINDOW_TYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


SPECIAL = np.array(
    [0, -0.0, 1, -1, 0.5, np.nan, np.inf, -np.inf, 1e-40, -3e38, 3e38, 88, -87, -87.5, 65519, 65520, 6e-8], np.float32
)


seeds = st.integers(0, 2**32 - 1)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit, -0 differing from 0; any NaN is the same NaN."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    nan = np.isnan(actual.astype(np.float32)) & np.isnan(expected.astype(np.float32))
    bits = f"u{actual.itemsize}"
    np.testing.assert_array_equal(
        np.where(nan, 0, actual.copy().view(bits)), np.where(nan, 0, expected.copy().view(bits))
    )


def values(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: object = np.float32, special: float = 0.1
) -> np.ndarray:
    array = rng.normal(scale=3, size=shape).astype(np.float32)
    array = np.where(rng.random(shape) < special, rng.choice(SPECIAL, shape), array)
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def limits_of(rng: np.random.Generator, channels: int) -> np.ndarray:
    """Limits as `gather` takes them: clip and void, each there or not, among values that arrays here hold."""
    limits = np.sort(rng.integers(-90, 130, (channels, 4)).astype(np.float64) / rng.choice([1, 3]), axis=1)[
        :, [0, 3, 1, 2]
    ]
    limits = np.ascontiguousarray(limits)
    limits[rng.random(channels) < 0.3, :2] = -np.inf, np.inf
    limits[rng.random(channels) < 0.3, 2:] = np.inf, -np.inf
    limits[rng.random(channels) < 0.2, 2] = -np.inf
    return limits
