"""Stitching arithmetic: the native functions give the reference's bits, for any threads, views and types, and guard
memory."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.arrays import BLOCK_TYPES, SPECIAL, WINDOW_TYPES, assert_same_bits, limits_of, seeds, values
from support.paths import BENCHMARKS
from unet_engine.stitching import operations, reference

needs_native = pytest.mark.skipif(operations.IMPLEMENTATION != "native", reason="the native extension is not built")
threads_of = st.integers(1, 8)


@pytest.fixture(params=["native", "numpy"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations behind the public functions."""
    if request.param == "numpy":
        monkeypatch.setattr(operations, "_native", None)
    elif operations.IMPLEMENTATION != "native":
        pytest.skip("the native extension is not built")
    return str(request.param)


def shapes(axes: int | None = None) -> st.SearchStrategy[tuple[int, ...]]:
    count = st.sampled_from([2, 3]) if axes is None else st.just(axes)
    return count.flatmap(lambda n: st.tuples(*[st.integers(1, 9)] * n))


def strided(rng: np.random.Generator, array: np.ndarray, *, last: bool = False) -> np.ndarray:
    """The same values as a view into a larger array; with `last`, strided or reversed on the last axis too."""
    steps = [int(n) for n in rng.integers(1, 3, array.ndim)]
    steps[-1] = int(rng.choice([-2, -1, 2])) if last else 1
    margins = [int(m) for m in rng.integers(0, 3, array.ndim)]
    big = np.zeros([m + abs(step) * n + m for m, n, step in zip(margins, array.shape, steps, strict=True)], array.dtype)
    inner = big[tuple(slice(m, n - m) for m, n in zip(margins, big.shape, strict=True))]
    view = inner[tuple(slice(None, None, step) for step in steps)]
    view[...] = array
    assert view.shape == array.shape
    return view


def case_of_add(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, list]:
    """A window of `shape` somewhere over the edge of some sums, with the range that may be added."""
    sums = [int(n) for n in rng.integers(1, 12, len(shape))]
    at = [int(rng.integers(-w + 1, s)) for w, s in zip(shape, sums, strict=True)]
    lo = [int(rng.integers(max(0, -a), min(w, s - a) + 1)) for w, s, a in zip(shape, sums, at, strict=True)]
    hi = [int(rng.integers(l, min(w, s - a) + 1)) for l, w, s, a in zip(lo, shape, sums, at, strict=True)]
    return {"sums": sums, "at": at, "lo": lo, "hi": hi}


def weights_of(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(rng.random(n).astype(np.float32) for n in shape)


# ---- the same bits ---------------------------------------------------------------------------------------------------


@needs_native
@settings(deadline=None)
@given(shapes(), st.integers(1, 4), st.sampled_from(WINDOW_TYPES), seeds, threads_of)
def test_add_is_the_reference(shape: tuple[int, ...], k: int, dtype: object, seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    case = case_of_add(rng, shape)
    at, lo, hi = case["at"], case["lo"], case["hi"]
    weights = weights_of(rng, shape)
    sums = strided(rng, values(rng, (k, *case["sums"])))
    window = strided(rng, values(rng, (k, *shape), dtype))
    expected = sums.copy()
    if all(h > l for l, h in zip(lo, hi, strict=True)):
        reference.add(expected, window, weights, at, lo, hi)
    operations.add(sums, window, weights, at, lo, hi, threads=threads)
    assert_same_bits(sums, expected)
    sums[...] = 0
    assert sums.base is not None
    assert not sums.base.any(), "something beside the view was written"


@needs_native
@settings(deadline=None)
@given(shapes(), st.integers(1, 4), seeds, threads_of)
def test_add_constant_is_add_of_a_constant_window(shape: tuple[int, ...], k: int, seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    case = case_of_add(rng, shape)
    place = case["at"], case["lo"], case["hi"]
    weights, constant = weights_of(rng, shape), values(rng, (k,))
    start = values(rng, (k, *case["sums"]))
    native, expected, window = start.copy(), start.copy(), start.copy()
    operations.add_constant(native, constant, weights, *place, threads=threads)
    operations.add(
        window, np.broadcast_to(constant.reshape(-1, *[1] * len(shape)), (k, *shape)).copy(), weights, *place
    )
    if all(h > l for l, h in zip(place[1], place[2], strict=True)):
        reference.add_constant(expected, constant, weights, *place)
    assert_same_bits(native, expected)
    assert_same_bits(native, window)


@needs_native
@settings(deadline=None)
@given(shapes(), st.integers(1, 4), seeds, threads_of)
def test_a_floor_of_weights_and_what_they_come_to_are_the_reference(
    shape: tuple[int, ...], k: int, seed: int, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    case = case_of_add(rng, shape)
    place = case["at"], case["lo"], case["hi"]
    weights, constant = weights_of(rng, shape), values(rng, (k,))
    start, window = values(rng, (k, *case["sums"])), values(rng, (k, *shape))
    native, expected = start.copy(), start.copy()
    operations.add(native, window, weights, *place, floor=0.2, threads=threads)
    operations.add_constant(native, constant, weights, *place, floor=0.2, threads=threads)
    if all(h > l for l, h in zip(place[1], place[2], strict=True)):
        product = np.maximum(reference._outer([w[l:h] for w, l, h in zip(weights, *place[1:], strict=True)]), 0.2)
        flat = [np.ones(n, np.float32) for n in shape]
        raised = window.copy()
        inside = (slice(None), *(slice(l, h) for l, h in zip(*place[1:], strict=True)))
        with np.errstate(all="ignore"):
            raised[inside] *= product.astype(np.float32)
        reference.add(expected, raised, flat, *place)
        reference.add_constant(expected, constant, weights, *place, 0.2)
    assert_same_bits(native, expected)
    covers = [np.where(rng.random((3, n)) < 0.4, -1, rng.random((3, n))).astype(np.float32) for n in case["sums"]]
    for cover in covers:
        cover[int(rng.integers(3))] = 0.3  # every voxel has a window
    plain = native.copy()
    operations.divide(native, covers, 0.2, threads=threads)
    reference.divide(plain, covers, 0.2)
    assert_same_bits(native, plain)


@needs_native
@settings(deadline=None)
@given(shapes(), st.integers(1, 4), seeds, threads_of)
def test_merge_is_the_reference(shape: tuple[int, ...], k: int, seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    at = [int(a) for a in rng.integers(0, 3, len(shape))]
    sums = strided(rng, values(rng, (k, *(n + a + 1 for n, a in zip(shape, at, strict=True)))))
    part = strided(rng, values(rng, (k, *shape)))
    expected = sums.copy()
    reference.merge(expected, part, at)
    operations.merge(sums, part, at, threads=threads)
    assert_same_bits(sums, expected)


@needs_native
@settings(deadline=None, max_examples=300)
@given(shapes(), st.sampled_from(BLOCK_TYPES), st.integers(1, 3), seeds, threads_of, st.booleans())
def test_gather_is_the_reference(
    size: tuple[int, ...], dtype: str, c: int, seed: int, threads: int, last: object
) -> None:
    rng = np.random.default_rng(seed)
    is_float = np.dtype(dtype).kind == "f"
    raw = values(rng, (c, *size), dtype) if is_float else rng.integers(0, 2**64, (c, *size), np.uint64).astype(dtype)
    block = strided(rng, raw, last=bool(last))
    index = tuple(_window_index(rng, n) for n in size)
    scale, shift = (
        rng.normal(size=c).astype(rng.choice(["f4", "f8"])),
        rng.normal(size=c).astype(rng.choice(["f4", "f8"])),
    )
    out = np.full((c, *(i.size for i in index)), 7, np.float32)
    expected = out.copy()
    reference.gather(expected, block, index, scale, shift, -2.5)
    operations.gather(out, block, index, scale, shift, -2.5, threads=threads)
    assert_same_bits(out, expected)
    limits = limits_of(rng, c)
    reference.gather(expected, block, index, scale, shift, -2.5, limits=limits)
    operations.gather(out, block, index, scale, shift, -2.5, limits=limits, threads=threads)
    assert_same_bits(out, expected)


def _window_index(rng: np.random.Generator, size: int) -> np.ndarray:
    """Reflected, shifted over the edge with padding, or at random: what the edges of a volume lead to."""
    length, start = int(rng.integers(0, 25)), int(rng.integers(-10, size + 3))
    plain = np.arange(start, start + length)
    kind = rng.integers(3)
    if kind == 0:
        return np.where((plain >= 0) & (plain < size), plain, -1)
    if kind == 1:
        folded = np.abs(plain) % (2 * size)
        return np.minimum(folded, 2 * size - 1 - folded)
    return rng.integers(-1, size, length)


@needs_native
@settings(deadline=None, max_examples=200)
@given(
    shapes(),
    st.integers(1, 6),
    st.sampled_from(operations.ACTIVATIONS),
    st.sampled_from(["u1", "u2"]),
    seeds,
    threads_of,
)
def test_labels_are_the_reference(
    shape: tuple[int, ...], k: int, activation: str, dtype: str, seed: int, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    few = rng.integers(-2, 2, (k, *shape)).astype(np.float32)  # many ties
    sums = strided(rng, np.where(rng.random(few.shape) < 0.3, rng.choice(SPECIAL, few.shape), few))
    out, expected = strided(rng, np.full(shape, 99, dtype)), np.zeros(shape, dtype)
    operations.labels(sums, out, activation, threads=threads)
    reference.labels(sums, expected, above=operations.label_threshold(activation, k))
    np.testing.assert_array_equal(out, expected)
    masks = np.full(sums.shape, 9, np.uint8)
    operations.masks(sums, masks, activation, threads=threads)
    np.testing.assert_array_equal(masks, sums > operations.label_threshold(activation, 1))


@needs_native
@settings(deadline=None, max_examples=200)
@given(
    shapes(),
    st.integers(1, 6),
    st.sampled_from(operations.ACTIVATIONS),
    st.sampled_from(["u1", "f2", "f4"]),
    seeds,
    threads_of,
)
def test_probabilities_are_the_reference(
    shape: tuple[int, ...], k: int, activation: str, dtype: str, seed: int, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    sums = strided(rng, values(rng, (k, *shape)))
    out, expected = strided(rng, np.full((k, *shape), 99, dtype)), np.zeros((k, *shape), dtype)
    operations.probabilities(sums, out, activation, threads=threads)
    reference.probabilities(sums, expected, activation)
    assert_same_bits(out, expected)


@needs_native
@settings(deadline=None)
@given(shapes(), st.integers(1, 4), st.sampled_from(["f2", "f4"]), seeds, threads_of)
def test_logits_are_the_reference(shape: tuple[int, ...], k: int, dtype: str, seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    sums = strided(rng, values(rng, (k, *shape), special=0.3))
    out, expected = strided(rng, np.zeros((k, *shape), dtype)), np.zeros((k, *shape), dtype)
    operations.logits(sums, out, threads=threads)
    reference.logits(sums, expected)
    assert_same_bits(out, expected)


@needs_native
def test_every_16_bit_float_converts_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16).reshape(1, 256, 256)
    one = (np.ones(256, np.float32),) * 2
    for dtype in (np.float16, ml_dtypes.bfloat16):
        sums = np.zeros((1, 256, 256), np.float32)
        operations.add(sums, bits.view(dtype), one, (0, 0), (0, 0), (256, 256))
        with np.errstate(all="ignore"):
            assert_same_bits(sums, np.float32(0) + bits.view(dtype).astype(np.float32))
    # and back: every float16, its upper neighbour, and the midpoint (ties to even)
    with np.errstate(all="ignore"):
        finite = bits.view(np.float16)[np.isfinite(bits.view(np.float16))].astype(np.float32)
        middle = finite + np.spacing(finite.astype(np.float16)).astype(np.float32) / 2
    sums = np.concatenate([finite, np.nextafter(finite, np.float32(np.inf)), middle]).reshape(1, 1, -1)
    out = np.zeros(sums.shape, np.float16)
    operations.logits(sums, out)
    with np.errstate(all="ignore"):
        assert_same_bits(out, sums.astype(np.float16))


@needs_native
@pytest.mark.parametrize("shape", [(3, 20, 50, 70), (3, 300, 410)])
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...]) -> None:
    """Large enough that eight threads really start; the properties above are smaller than one thread's share."""
    rng = np.random.default_rng(0)
    sums, window = values(rng, shape), values(rng, shape)
    weights, axes = weights_of(rng, shape[1:]), len(shape) - 1
    index = [np.arange(n)[::-1].copy() if a == 0 else np.arange(n) for a, n in enumerate(shape[1:])]

    def everything(threads: int) -> Iterator[np.ndarray]:
        added = sums.copy()
        operations.add(added, window, weights, (0,) * axes, (0,) * axes, shape[1:], threads=threads)
        operations.add_constant(
            added, np.ones(3, np.float32), weights, (0,) * axes, (0,) * axes, shape[1:], threads=threads
        )
        operations.merge(added, window, (0,) * axes, threads=threads)
        yield added
        gathered = np.zeros(shape, np.float32)
        operations.gather(gathered, window, index, np.ones(3), np.zeros(3), 0, threads=threads)
        yield gathered
        for activation in operations.ACTIVATIONS:
            labels, chances = np.zeros(shape[1:], np.uint8), np.zeros(shape, np.float32)
            operations.labels(sums, labels, activation, threads=threads)
            operations.probabilities(sums, chances, activation, threads=threads)
            yield labels
            yield chances
        half = np.zeros(shape, np.float16)
        operations.logits(sums, half, threads=threads)
        yield half

    one = list(everything(1))
    for threads in range(2, 9):
        for actual, expected in zip(everything(threads), one, strict=True):
            assert_same_bits(actual, expected)


# ---- what the results mean -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("implementation")
def test_ties_take_the_lowest_label_and_nan_never_wins() -> None:
    nan, inf = np.nan, np.inf
    sums = np.array(
        [[1, nan, nan, -inf, -1, 0], [1, 0, nan, nan, -1, 0], [0, -1, nan, nan, -2, nan]], np.float32
    ).reshape(3, 1, 6)
    out = np.full((1, 6), 9, np.uint8)
    operations.labels(sums, out, "softmax")
    assert out.tolist() == [[0, 1, 0, 0, 0, 0]]
    operations.labels(sums, out, "sigmoid")
    assert out.tolist() == [[1, 0, 0, 0, 0, 0]], "a logit of exactly 0 is background, as is NaN"
    operations.labels(sums[:1], out, "softmax")
    assert out.tolist() == [[1, 0, 0, 0, 0, 0]], "one channel is a threshold whatever the activation"


@pytest.mark.usefixtures("implementation")
def test_probabilities_are_probabilities() -> None:
    rng = np.random.default_rng(1)
    sums = rng.normal(scale=20, size=(5, 40, 50)).astype(np.float32)
    wide = sums.astype(np.float64)
    e = np.exp(wide - wide.max(axis=0))
    expected = {"softmax": e / e.sum(axis=0), "sigmoid": 1 / (1 + np.exp(-wide)), "none": np.clip(wide, 0, 1)}
    for activation, true in expected.items():
        p, q = np.zeros(sums.shape, np.float32), np.zeros(sums.shape, np.uint8)
        operations.probabilities(sums, p, activation)
        operations.probabilities(sums, q, activation)
        # 2 ulp of exp, and the rounding of a difference of about 100 before it
        np.testing.assert_allclose(p, true, rtol=1e-5, atol=1e-37)
        np.testing.assert_array_equal(q, np.floor(p * np.float32(255) + np.float32(0.5)))


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("activation", operations.ACTIVATIONS)
def test_float16_probabilities_are_those_of_float32_rounded_once(activation: str) -> None:
    rng = np.random.default_rng(2)
    sums = rng.normal(scale=3, size=(3, 20, 30)).astype(np.float32)
    sums[:, 0, :2] = np.nan, np.inf
    exact, half = np.zeros(sums.shape, np.float32), np.full(sums.shape, 9, np.float16)
    operations.probabilities(sums, exact, activation)
    operations.probabilities(sums, half, activation)
    assert_same_bits(half, exact.astype(np.float16))


@pytest.mark.usefixtures("implementation")
def test_float16_rounds_to_nearest_and_ties_to_even() -> None:
    step = 2.0**-11  # between numbers of float16 from 0.5 to 1
    sums = np.array([0.5 + step / 2, 0.5 + 3 * step / 2, 0.5 + step * 0.51, -1, 2, 2**-26], np.float32).reshape(1, 1, 6)
    out = np.full((1, 1, 6), 9, np.float16)
    operations.probabilities(sums, out, "none")
    assert out.ravel().tolist() == [0.5, 0.5 + 2 * step, 0.5 + step, 0, 1, 0]


@pytest.mark.usefixtures("implementation")
def test_uint8_rounds_halves_up_and_nan_to_zero() -> None:
    sums = np.array([0.5 / 255, 1.5 / 255, -1, 2, np.nan, 1], np.float32).reshape(1, 1, 6)
    out = np.full((1, 1, 6), 9, np.uint8)
    operations.probabilities(sums, out, "none")
    assert out.ravel().tolist() == [1, 2, 0, 255, 0, 255]


@pytest.mark.usefixtures("implementation")
def test_wide_types_are_subtracted_before_they_are_rounded() -> None:
    """2**24 + 1 and its neighbours are one number in float32: a 32-bit volume must not lose its lowest bits before the
    shift."""
    block = (2**24 + np.arange(5, dtype=np.int32)).reshape(1, 1, 5)
    out = np.zeros((1, 1, 5), np.float32)
    operations.gather(out, block, (np.arange(1), np.arange(5)), np.ones(1), np.array([2.0**24]), 0)
    assert out.ravel().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", BLOCK_TYPES)
def test_is_constant(dtype: str) -> None:
    block = np.ones((2, 3, 4, 50), dtype)
    everything = (0, 0, 0), (3, 4, 50)
    assert operations.is_constant(block, *everything, 1)
    assert operations.is_constant(block[..., ::-3], (0, 0, 0), (3, 4, 17), 1)
    assert not operations.is_constant(block, *everything, 0)
    block[1, 2, 3, 49] = 0
    assert not operations.is_constant(block, *everything, 1)
    assert not operations.is_constant(block[..., ::-1], *everything, 1)
    assert operations.is_constant(block, (0, 0, 0), (3, 4, 49), 1)
    assert operations.is_constant(block, (1, 1, 1), (1, 1, 1), 5), "an empty range holds no other value"


@pytest.mark.usefixtures("implementation")
def test_is_constant_takes_the_value_in_the_type_of_the_block() -> None:
    span = (0, 0), (1, 1)
    assert operations.is_constant(np.full((1, 1, 1), 0.1, np.float32), *span, 0.1)
    assert not operations.is_constant(np.zeros((1, 1, 1), np.uint8), *span, 256), "not 256 modulo 256"
    assert not operations.is_constant(np.zeros((1, 1, 1), np.int64), *span, 0.5)
    assert not operations.is_constant(np.full((1, 1, 1), np.inf, np.float16), *span, 1e6)
    assert not operations.is_constant(np.full((1, 1, 1), np.nan, np.float32), *span, np.nan), "NaN equals nothing"
    assert operations.is_constant(np.full((1, 1, 1), -0.0, np.float16), *span, 0.0)
    assert operations.is_constant(np.full((1, 1, 1), 2**63 + 1, np.uint64), *span, 2**63 + 1)


# ---- refused, and nothing touched ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_windows_may_have_any_strides(dtype: str) -> None:
    """As a view that is mirrored or turned: the bits of its copy."""
    rng = np.random.default_rng(3)
    window = rng.normal(size=(3, 5, 40, 40)).astype(dtype)
    weights = [rng.random(n).astype(np.float32) for n in window.shape[1:]]
    views = (window[:, ::-1], window[..., ::-1], window[:, :, ::-1, ::-1], window.swapaxes(2, 3)[..., ::-1])
    for view in views:
        sums, expected = np.zeros((2, 3, 5, 44, 44), np.float32)
        where = (0, 3, -2), (0, 1, 2), (5, 40, 39)
        operations.add(sums, view, weights, *where)
        operations.add(expected, np.ascontiguousarray(view), weights, *where)
        assert_same_bits(sums, expected)


@pytest.mark.usefixtures("implementation")
def test_positions_may_run_backwards() -> None:
    """Long runs, short ones, ends at 0, and stretches outside between them."""
    rng = np.random.default_rng(4)
    block = rng.integers(0, 99, (2, 4, 60)).astype(np.uint8)
    for row in (
        np.arange(59, -1, -1), np.concatenate([np.arange(30, -1, -1), [-1, -1], np.arange(1, 25)]),
        np.concatenate([[-1], np.arange(9, 2, -1), [-1], np.arange(40, 10, -1), np.arange(11, 50)]),
        np.concatenate([np.arange(12, -1, -1), np.arange(13)]),
    ):  # fmt: skip
        out = np.zeros((2, 4, len(row)), np.float32)
        operations.gather(out, block, [np.arange(4), row], np.array([0.5, 2]), np.array([1.0, 3]), 7.0)
        picked = (block[:, :, row].astype(np.float32) - [[[1]], [[3]]]) * np.array([[[0.5]], [[2]]])
        np.testing.assert_array_equal(out, np.where(row < 0, 7, picked))


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(
    ("at", "lo", "hi", "message"),
    [
        ((-1, 0, 0), (0, 0, 0), (4, 4, 4), "axis z: the range -1:3"),
        ((0, 3, 0), (0, 0, 0), (4, 4, 4), "axis y: the range 3:7"),
        ((0, 0, 0), (0, 0, -1), (4, 4, 4), "axis x: the range -1:4"),
        ((0, 0, 0), (0, 0, 0), (4, 4, 5), "axis x: the range 0:5"),
        ((0, 0, 2**63 - 2), (0, 0, 0), (4, 4, 4), "axis x"),
        ((0, 0), (0, 0, 0), (4, 4, 4), "one value per axis"),
    ],
)
def test_ranges_that_leave_an_array_are_refused(at: tuple, lo: tuple, hi: tuple, message: str) -> None:
    sums, window = np.zeros((2, 6, 6, 6), np.float32), np.ones((2, 4, 4, 4), np.float32)
    weights = (np.ones(4, np.float32),) * 3
    for call in (
        lambda: operations.add(sums, window, weights, at, lo, hi),
        lambda: operations.add_constant(sums, np.ones(2, np.float32), weights, at, lo, hi),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not sums.any()


@pytest.mark.usefixtures("implementation")
def test_merge_beyond_the_edge_is_refused() -> None:
    sums = np.zeros((1, 6, 6), np.float32)
    with pytest.raises(ValueError, match="axis x: the range 3:7"):
        operations.merge(sums, np.ones((1, 4, 4), np.float32), (0, 3))
    assert not sums.any()


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(("position", "axis"), [(4, "y"), (-2, "y"), (4, "x"), (2**40, "x")])
def test_positions_outside_the_block_are_refused(position: int, axis: str) -> None:
    out = np.full((1, 3, 3), 7, np.float32)
    index = [np.array([0, 1, 2]), np.array([0, 1, 2])]
    index["yx".index(axis)][1] = position
    with pytest.raises(IndexError, match=f"axis {axis}: index"):
        operations.gather(out, np.zeros((1, 4, 4), np.uint8), index, np.ones(1), np.zeros(1), 0)
    assert (out == 7).all()


def _zeros(*shape: int, dtype: str = "f4") -> np.ndarray:
    return np.zeros(shape, dtype)


W4 = (np.ones(4, np.float32),) * 2
REFUSED = [
    (ValueError, "channels", lambda: operations.add(_zeros(2, 6, 6), _zeros(3, 4, 4), W4, (0, 0), (0, 0), (4, 4))),
    (
        ValueError,
        "axis y: weights",
        lambda: operations.add(_zeros(2, 6, 6), _zeros(2, 5, 4), W4, (0, 0), (0, 0), (4, 4)),
    ),
    (ValueError, "2 or 3", lambda: operations.add(_zeros(2, 6), _zeros(2, 4), W4[:1], (0,), (0,), (4,))),
    (
        ValueError,
        "last axis",
        lambda: operations.add(_zeros(2, 6, 12)[..., ::2], _zeros(2, 4, 4), W4, (0, 0), (0, 0), (4, 4)),
    ),
    (
        TypeError,
        "float32",
        lambda: operations.add(_zeros(2, 6, 6, dtype="f8"), _zeros(2, 4, 4), W4, (0, 0), (0, 0), (4, 4)),
    ),
    (
        TypeError,
        "byte order",
        lambda: operations.add(_zeros(2, 6, 6, dtype=">f4"), _zeros(2, 4, 4), W4, (0, 0), (0, 0), (4, 4)),
    ),
    (
        TypeError,
        "window",
        lambda: operations.add(_zeros(2, 6, 6), _zeros(2, 4, 4, dtype="i4"), W4, (0, 0), (0, 0), (4, 4)),
    ),
    (ValueError, "axis x: covers", lambda: operations.divide(_zeros(2, 6, 6), [_zeros(1, 6), _zeros(1, 5)], 0)),
    (ValueError, "halo has 1", lambda: operations.merge(_zeros(2, 6, 6), _zeros(1, 4, 4), (0, 0))),
    (ValueError, "shape", lambda: operations.labels(_zeros(2, 6, 6), _zeros(6, 5, dtype="u1"), "softmax")),
    (ValueError, "activation", lambda: operations.labels(_zeros(2, 6, 6), _zeros(6, 6, dtype="u1"), "relu")),
    (ValueError, "256 do not fit", lambda: operations.labels(_zeros(256, 1, 1), _zeros(1, 1, dtype="u1"), "sigmoid")),
    (TypeError, "uint8 or uint16", lambda: operations.labels(_zeros(2, 6, 6), _zeros(6, 6, dtype="i8"), "softmax")),
    (ValueError, "no channel", lambda: operations.labels(_zeros(0, 6, 6), _zeros(6, 6, dtype="u1"), "softmax")),
    (TypeError, "float16", lambda: operations.logits(_zeros(2, 6, 6), _zeros(2, 6, 6, dtype="f8"))),
    (ValueError, "leaves", lambda: operations.is_constant(_zeros(1, 4, 4), (0, 0), (4, 5), 0)),
    (TypeError, "block", lambda: operations.is_constant(_zeros(1, 4, 4, dtype="c8"), (0, 0), (4, 4), 0)),
]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(("error", "message", "call"), REFUSED)
def test_wrong_arguments_are_refused(error: type[Exception], message: str, call: object) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


@pytest.mark.usefixtures("implementation")
def test_read_only_inputs_are_taken_and_read_only_outputs_refused() -> None:
    sums, window = np.zeros((1, 4, 4), np.float32), np.ones((1, 4, 4), np.float32)
    window.flags.writeable = False
    operations.add(sums, window, W4, (0, 0), (0, 0), (4, 4))
    operations.merge(sums, window, (0, 0))
    assert (sums == 2).all()
    with pytest.raises(ValueError, match="read-only"):
        operations.merge(window, sums, (0, 0))


@pytest.mark.usefixtures("implementation")
def test_empty_ranges_add_nothing() -> None:
    sums = np.zeros((1, 4, 4), np.float32)
    operations.add(sums, np.ones((1, 4, 4), np.float32), W4, (9, 9), (2, 2), (2, 2))
    operations.add(sums, np.ones((1, 4, 4), np.float32), W4, (9, 9), (3, 0), (1, 4))
    assert not sums.any()


# ---- the native module -----------------------------------------------------------------------------------------------


def test_the_native_path_is_used_where_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("unet_engine.stitching._halo") is None:
        pytest.skip("the native extension is not built")
    assert operations.IMPLEMENTATION == "native"

    def unused(*_: object) -> None:
        raise AssertionError("the reference ran although the native extension is there")

    names = "gather", "add", "add_constant", "divide", "merge", "labels", "probabilities", "logits", "is_constant"
    for name in names:
        monkeypatch.setattr(reference, name, unused)
    sums, window = np.zeros((1, 4, 4), np.float32), np.ones((1, 4, 4), np.float32)
    operations.gather(sums, window, (np.arange(4), np.arange(4)), np.ones(1), np.zeros(1), 0)
    operations.add(sums, window, W4, (0, 0), (0, 0), (4, 4))
    operations.add_constant(sums, np.ones(1, np.float32), W4, (0, 0), (0, 0), (4, 4))
    operations.divide(sums, (np.ones((1, 4), np.float32),) * 2, 0)
    operations.merge(sums, window, (0, 0))
    operations.labels(sums, np.zeros((4, 4), np.uint8), "softmax")
    operations.probabilities(sums, np.zeros((1, 4, 4), np.uint8), "softmax")
    operations.logits(sums, np.zeros((1, 4, 4), np.float16))
    assert operations.is_constant(sums, (0, 0), (4, 4), 4)


@needs_native
def test_the_native_module_guards_memory_by_itself() -> None:
    """A mistake in `halo.py` may not become a write beyond an array."""
    native = operations._native
    assert native is not None
    sums, window, one = np.zeros((1, 1, 6, 6), np.float32), np.ones((1, 1, 4, 4), np.float32), np.ones(4, np.float32)
    weights = [one[:1], one, one]
    huge = 2**63 - 1
    for at, lo, hi in (
        ([0, 0, 3], [0] * 3, [1, 4, 4]),
        ([0, 0, huge], [0] * 3, [1, 4, 4]),
        ([0, -huge, 0], [0] * 3, [1, 4, 4]),
    ):
        with pytest.raises(ValueError, match="axis"):
            native.add(sums, window, "float32", weights, at, lo, hi, 1)
    with pytest.raises(ValueError, match="weights"):
        native.add(sums, window, "float32", [one[:1], one, one[:3]], [0] * 3, [0] * 3, [1, 4, 4], 1)
    with pytest.raises(ValueError, match="item size"):
        native.add(sums, window, "float16", weights, [0] * 3, [0] * 3, [1, 4, 4], 1)
    with pytest.raises(ValueError, match="4 axes"):
        native.merge(sums, window[0], [0] * 3, 1)
    with pytest.raises(ValueError, match="shape"):
        native.labels_uint8(sums, np.zeros((1, 1, 6, 5), np.uint8), bool(0), 1)
    assert not sums.any()


@needs_native
def test_the_stub_names_what_the_native_module_has() -> None:
    stub = ast.parse((Path(operations.__file__).parent / "_halo.pyi").read_text())
    named = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert named == {name for name in dir(operations._native) if not name.startswith("_")}


def test_the_benchmark_runs(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("halo_bench", BENCHMARKS / "halo_bench.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = bench  # dataclasses look their module up
    spec.loader.exec_module(bench)
    bench.main(["--quick", "--json", str(tmp_path / "bench.json")])
    results = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert len(results) == 12
    assert all(result["native_ms"] > 0 for result in results)


# --- the last layer ---


@given(shapes(), st.integers(1, 5), st.integers(1, 9), seeds, threads_of)
def test_a_linear_layer_is_the_reference(shape: tuple[int, ...], k: int, c: int, seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    long = (*shape[:-1], shape[-1] * int(rng.choice([1, 17])))  # also more than a register, and than a strip
    features = strided(rng, values(rng, (c, *long)))
    weights, bias = values(rng, (k, c), special=0.05), values(rng, (k,), special=0.05)
    out, expected = strided(rng, np.full((k, *long), 9, np.float32)), np.zeros((k, *long), np.float32)
    operations.linear(out, features, weights, bias, threads=threads)
    reference.linear(expected, features, weights, bias)
    assert_same_bits(np.ascontiguousarray(out), expected)


def test_a_linear_layer_is_what_numpy_multiplies(implementation: str) -> None:
    rng = np.random.default_rng(0)
    features, weights = rng.normal(size=(7, 3, 5, 300)).astype("f4"), rng.normal(size=(30, 7)).astype("f4")
    bias, out = rng.normal(size=30).astype("f4"), np.empty((30, 3, 5, 300), np.float32)
    operations.linear(out, features, weights, bias)
    expected = np.einsum("kc,czyx->kzyx", weights.astype("f8"), features) + bias.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("wrong", [
    {"weights": np.zeros((3, 4), np.float32)}, {"bias": np.zeros(2, np.float32)}, {"out": np.zeros((3, 5, 5), "f4")},
    {"weights": np.zeros((2, 3), np.float32).T}, {"features": np.zeros((0, 5, 6), "f4"), "weights": np.zeros((3, 0), "f4")},
])  # fmt: skip
def test_a_linear_layer_of_other_shapes_is_refused(wrong: dict[str, np.ndarray]) -> None:
    given = {
        "out": np.zeros((3, 5, 6), np.float32), "features": np.zeros((2, 5, 6), np.float32),
        "weights": np.zeros((3, 2), np.float32), "bias": np.zeros(3, np.float32),
    } | wrong  # fmt: skip
    with pytest.raises(ValueError, match="shape"):
        operations.linear(**given)
    if operations._native is not None and given["weights"].flags.c_contiguous:
        three = {k: v[:, None] if v.ndim == 3 else v for k, v in given.items()}
        with pytest.raises((ValueError, TypeError)):
            operations._native.linear(three["out"], three["features"], three["weights"], three["bias"], 1)
