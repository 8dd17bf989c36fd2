"""Cut windows out of a block, add weighted windows into its sums, and reduce finished sums to what is written.

    block (C, *S) --gather--> network --window (K, *W)--> add --> sums (K, *S) --labels, probabilities, logits--> out
                               halos of the lower neighbours --merge--^

Arrays are channels first with two or three spatial axes, C order, the last axis contiguous (only `block` and `window`
may have any strides); `sums`, `halo` and `out` may be views into larger arrays. Every function has a native
implementation (`unet_engine.stitching._halo`) and a NumPy one (`unet_engine.stitching.reference`); both give the same
bits, for any number of threads (any NaN counts as the same NaN). `IMPLEMENTATION` says which one runs. Wrong shapes and
ranges raise ValueError and wrong types TypeError before anything is written.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import log
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unet_engine.stitching import reference
from unet_engine.stitching.interpolation import Taps

_native: ModuleType | None
try:
    from unet_engine.stitching import _halo as _native
except ImportError:
    _native = None

IMPLEMENTATION = "numpy" if _native is None else "native"

F32 = NDArray[np.float32]
Array = NDArray[Any]
T = TypeVar("T")

ACTIVATIONS = ("softmax", "sigmoid", "none", "probabilities", "probabilities_each")
"""What becomes of blended outputs: see `labels` and `probabilities`. The last two are of networks that give
probabilities themselves."""
ABOVE_HALF = 0.5 + 2.0**-20
"""Above a half by more than blending rounds: a voxel of exactly 0.5 is label 0 however the windows lie. `kAboveHalf` of
arithmetic.hpp."""


def label_threshold(activation: str, channels: int, threshold: float | None = None) -> float | None:
    """The value that the largest channel has to exceed, to be labelled 1 + its number, else 0; None: the label is the
    channel. threshold: as `labels` takes it."""
    if channels > 1 and activation not in ("sigmoid", "probabilities_each"):
        return None
    if activation in ("probabilities", "probabilities_each"):
        return ABOVE_HALF if threshold is None else threshold + (ABOVE_HALF - 0.5)
    if threshold is None or activation == "none":
        return threshold or 0.0
    return log(threshold / (1 - threshold))


_BLOCK_TYPES = ("bool", *(f"{u}int{n}" for u in ("u", "") for n in (8, 16, 32, 64)), "float16", "float32", "float64")


def gather(
    out: F32,
    block: Array,
    index: Sequence[NDArray[np.int64]],
    scale: NDArray[np.floating],
    shift: NDArray[np.floating],
    fill: float,
    *,
    limits: NDArray[np.float64] | None = None,
    threads: int = 1,
) -> None:
    """Cut one window out of a block and normalise it: ``out = (clip(block) - shift) * scale``.

    out: (C, *W) float32, C contiguous, written.
    block: (C, *S) bool, (u)int8 to (u)int64 or float16 to float64, any strides.
    index: per spatial axis an int64 vector of length W[axis], the position inside `block` of each voxel of the
        window; -1 is outside and takes `fill`. Positions may repeat or run backwards (reflection).
    scale, shift: (C,) float32 or float64. The result is computed in float32; for 32- and 64-bit integers and float64
        it is computed in float64 and rounded once.
    fill: a value already normalised.
    limits: (C, 4) float64, C contiguous, in units of the block, taken in the type that is computed in: values are
        clipped to [low, high] first; those within [void low, void high] become 0. NaN stays NaN. Infinite bounds ask
        for nothing (void from inf to -inf). None: neither.
    Raises IndexError, naming the axis, where a position is below -1 or not below S[axis]; `out` is then untouched.
    """
    axes = _check_axes("block", block)
    _check_type("out", out, "float32")
    _check_type("block", block, *_BLOCK_TYPES)
    if len(index) != axes:
        raise ValueError(f"index has {len(index)} vectors for a block of {axes} axes: give one per axis")
    index = [np.ascontiguousarray(i) for i in index]
    for i in index:
        _check_type("index", i, "int64")
    channels = block.shape[0]
    expected = (channels, *(i.size for i in index))
    if out.shape != expected or not out.flags.c_contiguous:
        raise ValueError(f"out of shape {out.shape} must be C contiguous of shape {expected}, as block and index say")
    for name, vector in (("scale", scale), ("shift", shift)):
        _check_type(name, vector, "float32", "float64")
        if vector.shape != (channels,):
            raise ValueError(f"{name} of shape {vector.shape} must have one value for each of {channels} channels")
    if limits is not None:
        _check_type("limits", limits, "float64")
        if limits.shape != (channels, 4) or not limits.flags.c_contiguous:
            raise ValueError(f"limits of shape {limits.shape} must be C contiguous of shape {(channels, 4)}")
    for name, i, size in zip(_names(index), index, block.shape[1:], strict=True):
        # The native function looks for itself, ten times faster than NumPy on short vectors.
        if _native is None and i.size and (i.min() < -1 or i.max() >= size):
            raise IndexError(f"axis {name}: index {i.min()}..{i.max()} leaves -1..{size - 1}: clip or pad it first")
    _check_writable("out", out)
    if _native is None:
        reference.gather(out, block, index, scale, shift, fill, limits=limits)
        return
    scale, shift = (np.ascontiguousarray(v, np.float64) for v in (scale, shift))
    _native.gather(_3d(out), *_coded(block), _3(index, _ORIGIN), scale, shift, limits, float(fill), threads)


def add(
    sums: F32,
    window: Array,
    weights: Sequence[F32],
    at: Sequence[int],
    lo: Sequence[int],
    hi: Sequence[int],
    *,
    floor: float = 0.0,
    threads: int = 1,
) -> None:
    """Add the range [lo, hi) of a window, weighted: ``sums[:, at + i] += window[:, i] * max((wz * wy) * wx, floor)`` in
    float32.

    sums: (K, *S) float32, changed in place.
    window: (K, *W) float32, float16 or bfloat16 (`ml_dtypes`), the network's output, any strides: one that was
        mirrored is a view.
    weights: per axis a float32 vector of length W[axis].
    at: where the window's origin lies in `sums`, may be negative.
    lo, hi: the range in window coordinates; nothing is added where it is empty.
    floor: at least 0, in float32. Where it is above 0, see `divide`.
    """
    axes = _check_axes("window", window)
    _check_sums(sums, axes)
    _check_type("window", window, "float32", "float16", "bfloat16")
    if window.shape[0] != sums.shape[0]:
        raise ValueError(f"window has {window.shape[0]} channels and sums {sums.shape[0]}: they must agree")
    weights = _check_weights(weights, window.shape[1:])
    if not _check_span(sums.shape[1:], window.shape[1:], at, lo, hi):
        return
    _check_writable("sums", sums)
    if _native is None:
        reference.add(sums, window, weights, at, lo, hi, floor)
        return
    where = _corner(at), _corner(lo), _corner(hi, 1)
    _native.add(_3d(sums), *_coded(window), _3(weights, _ONE), *where, threads, float(floor))


def add_constant(
    sums: F32,
    values: F32,
    weights: Sequence[F32],
    at: Sequence[int],
    lo: Sequence[int],
    hi: Sequence[int],
    *,
    floor: float = 0.0,
    threads: int = 1,
) -> None:
    """`add` of a window that holds one value per channel, as of a window that was skipped.

    values: (K,) float32. The window's shape is the length of the vectors of `weights`. Other arguments as in `add`.
    """
    axes = len(weights)
    _check_sums(sums, axes)
    _check_type("values", values, "float32")
    if values.shape != sums.shape[:1]:
        raise ValueError(f"values of shape {values.shape} must have one value for each of {sums.shape[0]} channels")
    shape = tuple(np.size(w) for w in weights)
    weights = _check_weights(weights, shape)
    if not _check_span(sums.shape[1:], shape, at, lo, hi):
        return
    _check_writable("sums", sums)
    if _native is None:
        reference.add_constant(sums, values, weights, at, lo, hi, floor)
        return
    values = np.ascontiguousarray(values)
    where = _corner(at), _corner(lo), _corner(hi, 1)
    _native.add_constant(_3d(sums), values, _3(weights, _ONE), *where, threads, float(floor))


def divide(sums: F32, covers: Sequence[F32], floor: float, *, threads: int = 1) -> None:
    """Divide sums (K, *S) of windows that were added with `floor` by what the weights of all windows come to at each
    voxel: ``sum over a, b, c of max((covers_z[a] * covers_y[b]) * covers_x[c], floor)``, in this order, in float32.

    covers: per axis (n, S[axis]) float32, the weights of up to n windows at each voxel; negative: there is none.
    """
    axes = len(covers)
    _check_sums(sums, axes)
    for name, cover, size in zip(_names(sums.shape[1:]), covers, sums.shape[1:], strict=True):
        _check_type("covers", cover, "float32")
        if cover.ndim != 2 or cover.shape[1] != size:
            raise ValueError(f"axis {name}: covers of shape {cover.shape} for sums of {size}: give (windows, {size})")
    _check_writable("sums", sums)
    if _native is None:
        reference.divide(sums, covers, floor)
        return
    _native.divide(_3d(sums), _3([np.ascontiguousarray(c) for c in covers], _ONE[None]), float(floor), threads)


def merge(sums: F32, halo: F32, at: Sequence[int], *, threads: int = 1) -> None:
    """Add a neighbour's halo: ``sums[:, at : at + halo.shape] += halo``, both (K, *) float32."""
    axes = _check_axes("halo", halo)
    _check_sums(sums, axes)
    _check_type("halo", halo, "float32")
    _check_rows("halo", halo)
    if halo.shape[0] != sums.shape[0]:
        raise ValueError(f"halo has {halo.shape[0]} channels and sums {sums.shape[0]}: they must agree")
    if not _check_span(sums.shape[1:], halo.shape[1:], at, (0,) * axes, halo.shape[1:]):
        return
    _check_writable("sums", sums)
    if _native is None:
        reference.merge(sums, halo, at)
        return
    _native.merge(_3d(sums), _3d(halo), _corner(at), threads)


def labels(
    sums: F32, out: NDArray[np.unsignedinteger], activation: str, *, threshold: float | None = None, threads: int = 1
) -> None:
    """Reduce sums (K, *S) to labels, out (*S) uint8 or uint16.

    "softmax", "none" and "probabilities" with K > 1: the channel of the largest value. "sigmoid", "probabilities_each",
    and K == 1 whatever the activation: 0 where no logit is above 0 or no probability above a half (`ABOVE_HALF`), else
    1 + the channel of the largest. threshold: another number than a half, of probabilities (also where logits are
    given), or of the numbers themselves with "none". Of equal values the lowest channel wins. A NaN counts as minus
    infinity, so it never wins: a voxel of NaN alone becomes 0.
    """
    _check_activation(activation)
    _check_sums(sums, out.ndim)
    _check_type("out", out, "uint8", "uint16")
    _check_out(out, sums.shape[1:])
    above = label_threshold(activation, sums.shape[0], threshold)
    highest = sums.shape[0] - (1 if above is None else 0)
    if highest > np.iinfo(out.dtype).max:
        raise ValueError(f"labels up to {highest} do not fit into {out.dtype}: take uint16, of at most 65535")
    if _native is None:
        reference.labels(sums, out, above=above)
        return
    run = _native.labels_uint8 if out.dtype == np.uint8 else _native.labels_uint16
    run(_3d(sums), _3d(out[None]), above, threads)


def regions(
    sums: F32,
    out: NDArray[np.unsignedinteger],
    order: Sequence[int],
    activation: str,
    *,
    threshold: float | None = None,
    threads: int = 1,
) -> None:
    """Reduce sums (K, *S) to labels of regions that may overlap, out (*S) uint8 or uint16: of each channel in turn that
    would be labelled if it were alone, ``order[channel]``; 0 where none is. Later channels win."""
    mask = np.empty(sums.shape[1:], np.uint8)
    out[...] = 0
    for channel, label in zip(sums, order, strict=True):
        labels(channel[np.newaxis], mask, activation, threshold=threshold, threads=threads)
        np.copyto(out, np.asarray(label, out.dtype), where=mask.view(np.bool_))


def keep(labels: NDArray[np.unsignedinteger], kept: Sequence[int]) -> None:
    """Make 0 of all `labels` (any shape of an axis or more, uint8 or uint16) that are not among those `kept`, where they
    lie."""
    table = np.zeros(np.iinfo(labels.dtype).max + 1, labels.dtype)
    there = [label for label in kept if label < len(table)]
    table[there] = there
    for layer in labels:  # as places of the table they take 8 bytes each
        layer[...] = table[layer]


def masks(
    sums: F32, out: NDArray[np.uint8], activation: str, *, threshold: float | None = None, threads: int = 1
) -> None:
    """Reduce sums (K, *S) to masks, out (K, *S) uint8: of each channel the labels that it would give alone, 0 or 1."""
    _check_type("out", out, "uint8")
    _check_out(out, sums.shape)
    for channel, mask in zip(sums, out, strict=True):
        labels(channel[np.newaxis], mask, activation, threshold=threshold, threads=threads)


def probabilities(sums: F32, out: Array, activation: str, *, threads: int = 1) -> None:
    """Turn sums (K, *S) into probabilities, out (K, *S) float32, float16 (to nearest, ties to even) or uint8 (255 * p,
    halves rounded up).

    "softmax" over the channels, "sigmoid" per channel, or as they are but clipped to 0..1 ("none", "probabilities",
    "probabilities_each": blending may round 1 up). They are computed in float32 and rounded once. NaN stays NaN in
    float32 and float16 (softmax: the whole voxel) and becomes 0 in uint8.
    """
    _check_activation(activation)
    _check_sums(sums, out.ndim - 1)
    _check_type("out", out, "uint8", "float16", "float32")
    _check_out(out, sums.shape)
    if _native is None:
        reference.probabilities(sums, out, activation)
        return
    run = {
        "uint8": _native.probabilities_uint8,
        "float16": _native.probabilities_float16,
        "float32": _native.probabilities_float32,
    }[_type_name(out.dtype)]
    run(_3d(sums), _coded(out)[0], activation, threads)


def logits(sums: F32, out: NDArray[np.floating], *, threads: int = 1) -> None:
    """Copy sums (K, *S) to out (K, *S), float32 or float16 (to nearest, ties to even, infinity beyond 65504)."""
    _check_sums(sums, out.ndim - 1)
    _check_type("out", out, "float16", "float32")
    _check_out(out, sums.shape)
    if _native is None:
        reference.logits(sums, out)
        return
    run = _native.logits_float16 if out.dtype == np.float16 else _native.logits_float32
    run(_3d(sums), _coded(out)[0], threads)


def linear(out: F32, features: F32, weights: F32, bias: F32, *, threads: int = 1) -> None:
    """A convolution of one voxel: ``out[k] = sum over c of features[c] * weights[k, c] + bias[k]``, in float32, c
    ascending, the bias last.

    out: (K, *S) float32, written. features: (C, *S) float32. weights: (K, C), bias: (K,) float32, C contiguous.
    """
    axes = _check_axes("features", features)
    _check_type("features", features, "float32")
    _check_rows("features", features)
    _check_type("out", out, "float32")
    _check_out(out, (out.shape[0], *features.shape[1:]))
    for name, array, shape in (("weights", weights, (out.shape[0], features.shape[0])), ("bias", bias, out.shape[:1])):
        _check_type(name, array, "float32")
        if array.shape != shape or not array.flags.c_contiguous:
            raise ValueError(f"{name} of shape {array.shape} must be C contiguous of shape {shape}")
    if out.ndim != axes + 1 or not features.shape[0]:
        raise ValueError(f"features of shape {features.shape} for out of shape {out.shape}: give at least one channel")
    if not out.size:
        return
    if _native is None:
        reference.linear(out, features, weights, bias)
        return
    _native.linear(_3d(out), _3d(features), weights, bias, threads)


def interpolate(out: F32, block: F32, taps: Sequence[Taps], *, threads: int = 1) -> None:
    """``out[:, z, y, x]``: `block` combined along z, then y, then x as `taps` says, in float32, taps in ascending
    order.

    out: (C, *W) float32, written. block: (C, *S) float32.
    taps: for each spatial axis W[axis] voxels; raises IndexError, naming the axis, where one is made of others than
        0..S[axis]. NaN and infinities spread to what they are part of, with whatever weight.
    """
    axes = _check_axes("block", block)
    _check_type("block", block, "float32")
    _check_rows("block", block)
    _check_type("out", out, "float32")
    if len(taps) != axes:
        raise ValueError(f"{len(taps)} tables for a block of {axes} axes: give one per axis")
    _check_out(out, (block.shape[0], *(t.size for t in taps)))
    for name, axis, size in zip(_names(taps), taps, block.shape[1:], strict=True):
        if axis.size and (axis.first.min() < 0 or axis.first.max() + axis.weights.shape[1] > size):
            raise IndexError(f"axis {name}: a voxel is made of others than the block's 0:{size}")
    if not out.size:
        return
    if _native is None:
        reference.interpolate(out, block, taps)
        return
    first = _3([np.ascontiguousarray(t.first) for t in taps], _ORIGIN)
    weights = _3([np.ascontiguousarray(t.weights) for t in taps], _WHOLE)
    _native.interpolate(_3d(out), _3d(block), first, weights, threads)


def is_constant(block: Array, lo: Sequence[int], hi: Sequence[int], value: float) -> bool:
    """Whether all voxels of ``block[:, lo:hi]`` equal `value`; stops at the first that does not. True if it is empty.

    block: as in `gather`. `value` is taken in the block's type: no voxel equals a value that the type cannot hold (300
    in uint8, 0.5 in any integer), nor NaN; fractions are rounded to the block's float type first.
    """
    axes = _check_axes("block", block)
    _check_type("block", block, *_BLOCK_TYPES)
    if not _check_span(block.shape[1:], block.shape[1:], (0,) * axes, lo, hi) or block.shape[0] == 0:
        return True
    wanted = _in_type(value, block.dtype)
    if wanted is None:
        return False
    if _native is None:
        return reference.is_constant(block, lo, hi, wanted[0])
    return bool(_native.is_constant(*_coded(block), _corner(lo), _corner(hi, 1), _coded(wanted)[0]))


def _in_type(value: float, dtype: np.dtype[Any]) -> Array | None:
    """`value` as an array of one element of this type, or None where no element of the type can equal it."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            cast = np.array([value]).astype(dtype)
        lost = np.isnan(cast[0]) or (np.isinf(cast[0]) and abs(value) != np.inf)
        return None if lost else cast
    if not np.isfinite(value) or value != int(value):
        return None
    lowest, highest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return np.array([int(value)], dtype) if lowest <= int(value) <= highest else None


def _check_axes(name: str, array: Array) -> int:
    axes = array.ndim - 1
    if axes not in (2, 3):
        raise ValueError(f"{name} of shape {array.shape} must be channels first with 2 or 3 spatial axes")
    return axes


def _check_sums(sums: Array, axes: int) -> None:
    if sums.ndim != axes + 1 or axes not in (2, 3):
        raise ValueError(f"sums of shape {sums.shape} must be channels first with the others' 2 or 3 spatial axes")
    if sums.shape[0] < 1:
        raise ValueError("sums has no channel: give at least one")
    _check_type("sums", sums, "float32")
    _check_rows("sums", sums)


@functools.cache
def _type_name(dtype: np.dtype[Any]) -> str:
    """`dtype.name` of native byte order, else something that is no type's name. NumPy builds the name anew at each
    call."""
    return dtype.name if dtype.isnative else dtype.str


def _check_type(name: str, array: Array, *types: str) -> None:
    if _type_name(array.dtype) not in types:
        raise TypeError(
            f"{name} is {array.dtype!r}, must be {' or '.join(types)} in native byte order: convert it first"
        )


def _check_rows(name: str, array: Array) -> None:
    if array.size and array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
        raise ValueError(f"{name} must be contiguous on its last axis: copy it with numpy.ascontiguousarray")


def _check_writable(name: str, array: Array) -> None:
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only: give an array that can be written")


def _check_out(out: Array, shape: tuple[int, ...]) -> None:
    if out.shape != shape:
        raise ValueError(f"out of shape {out.shape} must have the shape {shape} that sums says")
    _check_rows("out", out)
    _check_writable("out", out)


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: take one of {', '.join(ACTIVATIONS)}")


def _check_weights(weights: Sequence[F32], shape: tuple[int, ...]) -> list[F32]:
    if len(weights) != len(shape):
        raise ValueError(f"{len(weights)} weight vectors for {len(shape)} axes: give one per axis")
    for name, weight, size in zip(_names(shape), weights, shape, strict=True):
        _check_type("weights", weight, "float32")
        if weight.shape != (size,):
            raise ValueError(f"axis {name}: weights of shape {weight.shape} for a window of {size}: they must agree")
    return [np.ascontiguousarray(w) for w in weights]


def _check_span(
    shape: tuple[int, ...], window: tuple[int, ...], at: Sequence[int], lo: Sequence[int], hi: Sequence[int]
) -> bool:
    """Whether the range holds any voxel; raises where it leaves the window or, moved by `at`, the sums."""
    if not len(shape) == len(at) == len(lo) == len(hi):
        raise ValueError(f"at {at}, lo {lo}, hi {hi} for {len(shape)} axes: give one value per axis")
    if any(b <= a for a, b in zip(lo, hi, strict=True)):
        return False
    for name, size, extent, start, a, b in zip(_names(shape), shape, window, at, lo, hi, strict=True):
        if a < 0 or b > extent:
            raise ValueError(f"axis {name}: the range {a}:{b} leaves the window's 0:{extent}: clip it first")
        if start + a < 0 or start + b > size:
            raise ValueError(
                f"axis {name}: the range {start + a}:{start + b} leaves the array's 0:{size}: clip it first"
            )
    return True


def _names(axes: Sequence[object]) -> str:
    """The names of two or three axes."""
    return "zyx"[-len(axes) :]


_ORIGIN = np.zeros(1, np.int64)
_ONE = np.ones(1, np.float32)
_WHOLE = np.ones((1, 1), np.float32)


def _3(values: Sequence[T], first: T) -> list[T]:
    """Three values, whether there are two axes or three."""
    return [*values] if len(values) == 3 else [first, *values]


def _corner(values: Sequence[int], first: int = 0) -> list[int]:
    return _3([int(v) for v in values], first)


def _3d(array: Array) -> Array:
    return array if array.ndim == 4 else array[:, None]


def _coded(array: Array) -> tuple[Array, str]:
    """The array in three axes, of a type that DLPack knows, and the name of its real type."""
    name = _type_name(array.dtype)
    if name in ("float16", "bfloat16"):
        array = array.view(np.uint16)
    elif name == "bool":
        array = array.view(np.uint8)
    return (_3d(array) if array.ndim > 1 else array), name
