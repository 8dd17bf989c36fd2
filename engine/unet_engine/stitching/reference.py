"""NumPy versions of the functions of `unet_engine.stitching.operations`: the reference of the tests, the fallback
without a compiler.

They take the arguments that `unet_engine.stitching.operations` has already checked, so they check nothing themselves.
Every float32 operation is written out in the order in which `cpp_ext/arithmetic.hpp` does it: both give the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_engine.stitching.interpolation import Taps

F32 = NDArray[np.float32]
Array = NDArray[Any]

_WIDE_TYPES = ("uint32", "int32", "uint64", "int64", "float64")
_LOG2E = np.float32(1.44269504)
_ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds a small float32 to an integer
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP_FLOOR = np.float32(-87.0)
_EXP_POLYNOMIAL = [
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
]


def gather(
    out: F32,
    block: Array,
    index: Sequence[NDArray[np.int64]],
    scale: NDArray[np.floating],
    shift: NDArray[np.floating],
    fill: float,
    *,
    limits: NDArray[np.float64] | None = None,
) -> None:
    out[...] = fill
    inside = [np.flatnonzero(i >= 0) for i in index]
    source: tuple[Any, ...] = (slice(None), *np.ix_(*(i[p] for i, p in zip(index, inside, strict=True))))
    target: tuple[Any, ...] = (slice(None), *np.ix_(*inside))
    # 32- and 64-bit types do not fit into float32: subtract first, in float64, and round once at the end.
    kind = np.float64 if block.dtype.name in _WIDE_TYPES else np.float32
    per_channel = (-1, *(1,) * len(index))
    with np.errstate(all="ignore"):
        value = block[source].astype(kind)
        if limits is not None:
            low, high, void_low, void_high = (b.astype(kind).reshape(per_channel) for b in limits.T)
            void = (value >= void_low) & (value <= void_high)
            value = np.where(value < low, low, np.where(value > high, high, value))
        value -= shift.astype(kind).reshape(per_channel)
        value *= scale.astype(kind).reshape(per_channel)
        normal = value.astype(np.float32)
        out[target] = normal if limits is None else np.where(void, np.float32(0), normal)


def add(
    sums: F32,
    window: Array,
    weights: Sequence[F32],
    at: Sequence[int],
    lo: Sequence[int],
    hi: Sequence[int],
    floor: float = 0.0,
) -> None:
    part = as_float32(window[(slice(None), *(slice(a, b) for a, b in zip(lo, hi, strict=True)))])
    with np.errstate(all="ignore"):
        _target(sums, at, lo, hi)[...] += part * _product(weights, lo, hi, floor)


def add_constant(
    sums: F32,
    values: F32,
    weights: Sequence[F32],
    at: Sequence[int],
    lo: Sequence[int],
    hi: Sequence[int],
    floor: float = 0.0,
) -> None:
    with np.errstate(all="ignore"):
        _target(sums, at, lo, hi)[...] += values.reshape(-1, *(1,) * len(at)) * _product(weights, lo, hi, floor)


def divide(sums: F32, covers: Sequence[F32], floor: float) -> None:
    total = np.zeros(sums.shape[1:], np.float32)
    for rows in itertools.product(*covers):
        there = _outer([row >= 0 for row in rows])
        total += np.where(there, np.maximum(_outer(rows), np.float32(floor)), np.float32(0))
    with np.errstate(all="ignore"):
        sums /= total


def merge(sums: F32, halo: F32, at: Sequence[int]) -> None:
    with np.errstate(all="ignore"):
        sums[(slice(None), *(slice(a, a + n) for a, n in zip(at, halo.shape[1:], strict=True)))] += halo


def labels(sums: F32, out: NDArray[np.unsignedinteger], *, above: float | None) -> None:
    """0 where no value is above `above`, else 1 + the channel of the largest; the channel where `above` is None."""
    known = np.where(np.isnan(sums), np.float32(-np.inf), sums)
    best = known.argmax(axis=0)
    if above is not None:
        best = np.where(known.max(axis=0) > np.float32(above), best + 1, 0)
    out[...] = best.astype(out.dtype)


def probabilities(sums: F32, out: Array, activation: str) -> None:
    with np.errstate(all="ignore"):
        value = _PROBABILITY[activation](sums)
        if out.dtype == np.uint8:
            scaled = value * np.float32(255) + np.float32(0.5)
            value = np.where(scaled > 0, scaled, np.float32(0))  # NaN becomes 0
    out[...] = value.astype(out.dtype)


def logits(sums: F32, out: NDArray[np.floating]) -> None:
    with np.errstate(all="ignore"):
        out[...] = sums.astype(out.dtype)


def linear(out: F32, features: F32, weights: F32, bias: F32) -> None:
    with np.errstate(all="ignore"):
        for k, row in enumerate(weights):
            out[k] = features[0] * row[0]
            for channel, weight in zip(features[1:], row[1:], strict=True):
                out[k] += channel * weight
            out[k] += bias[k]


def interpolate(out: F32, block: F32, taps: Sequence[Taps]) -> None:
    value = block
    with np.errstate(all="ignore"):
        for a, axis in enumerate(taps, start=1):
            found = _tap(value, axis, a, 0)
            for t in range(1, axis.weights.shape[1]):
                found = found + _tap(value, axis, a, t)
            value = found
    out[...] = value


def _tap(value: F32, axis: Taps, a: int, t: int) -> F32:
    taken = np.take(value, axis.first + t, axis=a)
    if axis.weights.shape[1] == 1:
        return taken
    weighted: F32 = taken * axis.weights[:, t].reshape(-1, *(1,) * (value.ndim - 1 - a))
    return weighted


def is_constant(block: Array, lo: Sequence[int], hi: Sequence[int], value: np.generic) -> bool:
    part = block[(slice(None), *(slice(a, b) for a, b in zip(lo, hi, strict=True)))]
    return bool((part == value).all())


def as_float32(array: Array) -> F32:
    """float32, float16 or bfloat16 as float32: exact in all three."""
    if array.dtype.name == "bfloat16":
        return (array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32, copy=False)


def exp_of_nonpositive(x: F32) -> F32:
    """exp(x) for x <= 0 to 2 ulp, 0 below -87, from additions and products only: the same bits on every machine.

    Source: range reduction and polynomial of `expf` in Moshier's Cephes library.
    """
    shifted = x * _LOG2E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = np.full_like(x, _EXP_POLYNOMIAL[0])
    for coefficient in _EXP_POLYNOMIAL[1:]:
        p = p * r + coefficient
    y: F32 = (p * (r * r) + r) + np.float32(1)
    power = ((shifted.view(np.uint32) + np.uint32((127 - 0x4B400000) % 2**32)) << np.uint32(23)).view(np.float32)
    return np.where(x < _EXP_FLOOR, np.float32(0), y * power)


def _softmax(sums: F32) -> F32:
    known = np.where(np.isnan(sums), np.float32(-np.inf), sums)
    e = exp_of_nonpositive(sums - known.max(axis=0))
    total = e[0].copy()
    for channel in e[1:]:
        total += channel
    probability: F32 = e / total
    return probability


def _sigmoid(sums: F32) -> F32:
    e = exp_of_nonpositive(-np.abs(sums))
    probability: F32 = np.where(sums < 0, e, np.float32(1)) / (np.float32(1) + e)
    return probability


def _clip(sums: F32) -> F32:
    return np.where(sums < 0, np.float32(0), np.where(sums > 1, np.float32(1), sums))


_PROBABILITY = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "none": _clip,
    "probabilities": _clip,
    "probabilities_each": _clip,
}


def _target(sums: F32, at: Sequence[int], lo: Sequence[int], hi: Sequence[int]) -> F32:
    return sums[(slice(None), *(slice(o + a, o + b) for o, a, b in zip(at, lo, hi, strict=True)))]


def _product(weights: Sequence[F32], lo: Sequence[int], hi: Sequence[int], floor: float) -> F32:
    """max((wz*wy)*wx, floor) on the range."""
    product = _outer([weight[a:b] for weight, a, b in zip(weights, lo, hi, strict=True)])
    return np.maximum(product, np.float32(floor))


def _outer(vectors: Sequence[Array]) -> Array:
    """(vz*vy)*vx, in this order."""
    product = np.ones((), vectors[0].dtype)
    for axis, vector in enumerate(vectors):
        product = product * vector.reshape(-1, *(1,) * (len(vectors) - 1 - axis))
    return product
