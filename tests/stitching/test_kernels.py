"""The GPU's kernels give the reference's bits: any shape, type and memory order. On the CPU always, and on a GPU if
there is one.

The functions of `_halo_loop` are those of `_halo_cuda`, kernel bodies and argument checks alike, run in loops (see
`cpp_ext/launch_loop.cpp`).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.arrays import BLOCK_TYPES, WINDOW_TYPES, assert_same_bits, limits_of, seeds, values
from support.kernels import Host, places
from unet_engine.pipeline import reduction
from unet_engine.stitching import operations, reference


@pytest.fixture(params=places(), ids=["loop", "gpu"])
def place(request: pytest.FixtureRequest) -> Any:
    return request.param


def three(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (3 - len(shape)) + tuple(shape)


def last(array: np.ndarray) -> np.ndarray:
    """The same batch with its channels last in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


@st.composite
def scenes(draw: st.DrawFn) -> dict[str, Any]:
    """Some windows of a block: their spans per axis, which of them were skipped, and the sums they are added to."""
    rng = np.random.default_rng(draw(seeds))
    axes = draw(st.sampled_from([2, 3]))
    window = [draw(st.integers(1, 9)) for _ in range(axes - 1)] + [draw(st.sampled_from([1, 5, 31, 40, 130]))]
    sums = [int(rng.integers(1, 2 * w + 2)) for w in window]
    window, sums = three(tuple(window)), three(tuple(sums))
    spans, weights = [], []
    for w, s in zip(window, sums, strict=True):
        count = int(rng.integers(1, 4))
        at = np.sort(rng.integers(-w + 1, s, count)) if w > 1 or s > 1 else np.zeros(count, np.int64)
        lo = np.maximum(0, -at)
        hi = np.minimum(w, s - at)
        spans.append(np.stack([at, lo, hi], 1).astype(np.int64))
        weights.append(rng.random((count, w)).astype(np.float32))
    number = int(rng.integers(1, 7))
    entries = np.stack([rng.integers(0, len(s), number) for s in spans] + [np.full(number, -1)], 1).astype(np.int32)
    inferred = np.flatnonzero(rng.random(number) < 0.7)
    entries[inferred, 3] = rng.permutation(len(inferred))
    return {
        "rng": rng, "axes": axes, "window": window, "sums": sums, "spans": spans, "weights": weights,
        "entries": entries,
        "rows": max(1, len(inferred)),
    }  # fmt: skip


def test_gather_is_the_reference(place: Any) -> None:
    @settings(max_examples=60, deadline=None)
    @given(
        scenes(),
        st.sampled_from(BLOCK_TYPES),
        st.sampled_from(WINDOW_TYPES),
        st.integers(1, 3),
        st.booleans(),
        st.booleans(),
    )
    def check(
        scene: dict[str, Any],
        block_type: str,
        window_type: Any,
        channels: int,
        channels_last: bool,  # noqa: FBT001
        limited: bool,  # noqa: FBT001
    ) -> None:
        device, rng, window, entries = place(), scene["rng"], scene["window"], scene["entries"]
        shape = tuple(int(rng.integers(1, 12)) for _ in range(3)) if scene["axes"] == 3 else (1, 5, 9)
        raw = (rng.normal(scale=60, size=(channels, *shape)).clip(0, 120)).astype(block_type)
        positions = [
            rng.integers(-1, n, (len(s), w)).astype(np.int32) for n, s,
            w in zip(shape, scene["spans"], window, strict=True)
        ]  # fmt: skip
        scale, shift = rng.random(channels) + 0.5, rng.normal(size=channels)
        limits = limits_of(rng, channels) if limited else None
        order = np.array(rng.permutation(len(entries))[: scene["rows"]], np.int32)
        windows = np.zeros((scene["rows"] + 1, channels, *window), window_type)
        if channels_last:
            windows = last(windows)
        out = device.put(windows)
        device.kernels.gather(
            out, device.put(raw), [device.put(p) for p in positions], device.put(entries), device.put(order),
            device.put(scale), device.put(shift), 0.25, **({} if limits is None else {"limits": device.put(limits)}),
        )  # fmt: skip
        got = device.get(windows, out)
        for row, number in enumerate(order):
            expected = np.zeros((channels, *window), np.float32)
            index = [p[e].astype(np.int64) for p, e in zip(positions, entries[number], strict=False)]
            reference.gather(expected, raw, index, scale, shift, 0.25, limits=limits)
            assert_same_bits(np.ascontiguousarray(got[row]), expected.astype(window_type))
        assert not got[len(order) :].any(), "rows that no window was named for stay as they are"

    check()


def test_add_is_the_reference_in_the_order_of_the_entries(place: Any) -> None:
    @settings(max_examples=80, deadline=None)
    @given(scenes(), st.integers(1, 9), st.sampled_from(WINDOW_TYPES), st.booleans())
    def check(scene: dict[str, Any], channels: int, dtype: Any, channels_last: bool) -> None:  # noqa: FBT001
        device, rng, entries = place(), scene["rng"], scene["entries"]
        windows = values(rng, (scene["rows"], channels, *scene["window"]), dtype, special=0.02)
        if channels_last:
            windows = last(windows)
        sums = values(rng, (channels, *scene["sums"]), special=0.02)
        constants = rng.normal(size=channels).astype(np.float32)
        expected = sums.copy()
        for *ranks, row in entries:
            spans = [s[r] for s, r in zip(scene["spans"], ranks, strict=True)]
            weights = [w[r] for w, r in zip(scene["weights"], ranks, strict=True)]
            at, lo, hi = (tuple(int(s[i]) for s in spans) for i in range(3))
            if any(h <= l for l, h in zip(lo, hi, strict=True)):
                continue
            if row < 0:
                reference.add_constant(expected, constants, weights, at, lo, hi)
            else:
                reference.add(expected, np.ascontiguousarray(windows[row]), weights, at, lo, hi)
        given_sums = device.put(sums)
        device.kernels.add(
            given_sums, device.put(windows), [device.put(w) for w in scene["weights"]],
            [device.put(s) for s in scene["spans"]],
            device.put(entries), device.put(constants), (0, 0, 0), scene["sums"],
        )  # fmt: skip
        assert_same_bits(device.get(sums, given_sums), expected)

    check()


def test_a_floor_of_weights_and_what_they_come_to_are_the_reference(place: Any) -> None:
    @settings(max_examples=40, deadline=None)
    @given(scenes(), st.integers(1, 9))
    def check(scene: dict[str, Any], channels: int) -> None:
        device, rng, entries = place(), scene["rng"], scene["entries"]
        windows = values(rng, (scene["rows"], channels, *scene["window"]), np.float32, special=0.02)
        sums = values(rng, (channels, *scene["sums"]), special=0.02)
        constants = rng.normal(size=channels).astype(np.float32)
        expected = sums.copy()
        for *ranks, row in entries:
            spans = [s[r] for s, r in zip(scene["spans"], ranks, strict=True)]
            weights = [w[r] for w, r in zip(scene["weights"], ranks, strict=True)]
            where = tuple(tuple(int(s[i]) for s in spans) for i in range(3))
            if any(h <= l for l, h in zip(*where[1:], strict=True)):
                continue
            if row < 0:
                reference.add_constant(expected, constants, weights, *where, 0.1)
            else:
                reference.add(expected, np.ascontiguousarray(windows[row]), weights, *where, 0.1)
        covers = [np.where(rng.random((3, n)) < 0.4, -1, rng.random((3, n))).astype(np.float32) for n in scene["sums"]]
        for cover in covers:
            cover[int(rng.integers(3))] = 0.3
        reference.divide(expected, covers, 0.1)
        given_sums = device.put(sums)
        device.kernels.add(
            given_sums, device.put(windows), [device.put(w) for w in scene["weights"]],
            [device.put(s) for s in scene["spans"]],
            device.put(entries), device.put(constants), (0, 0, 0), scene["sums"], floor=0.1,
        )  # fmt: skip
        device.kernels.divide(given_sums, [device.put(c) for c in covers], 0.1)
        assert_same_bits(device.get(sums, given_sums), expected)

    check()


def held(array: np.ndarray, bits: int) -> np.ndarray:
    """A window (channels, z, y, x) as the network is given it in the pose of these bits: axes mirrored, then y and x
    changed."""
    array = np.flip(array, tuple(1 + a for a in range(3) if bits >> a & 1))
    return array.swapaxes(-1, -2) if bits & 8 else array


def test_windows_are_held_in_poses_and_put_upright_again(place: Any) -> None:
    """Cut in a pose, a window is the upright one mirrored and turned; added in it, it lies upright in the sums."""

    @settings(max_examples=60, deadline=None)
    @given(seeds, st.integers(1, 6), st.sampled_from([1, 5, 33, 40]), st.sampled_from(WINDOW_TYPES), st.booleans())
    def check(seed: int, number: int, side: int, dtype: Any, channels_last: bool) -> None:  # noqa: FBT001
        device, rng = place(), np.random.default_rng(seed)
        window, raw = (int(rng.integers(1, 5)), side, side), rng.normal(size=(2, 4, 7, 9)).astype(np.float32)
        entries = np.stack([*(rng.integers(0, 2, number) for _ in range(3)), np.arange(number)], 1).astype(np.int32)
        poses, order = rng.integers(0, 16, number).astype(np.int32), rng.permutation(number).astype(np.int32)
        positions = [rng.integers(-1, n, (2, w)).astype(np.int32) for n, w in zip(raw.shape[1:], window, strict=True)]
        one, zero, windows = np.ones(2), np.zeros(2), np.zeros((number, 2, *window), dtype)
        windows = last(windows) if channels_last else windows
        out = device.put(windows)
        device.kernels.gather(
            out, device.put(raw), [device.put(p) for p in positions], device.put(entries), device.put(order),
            device.put(one), device.put(zero), 0.5, poses=device.put(poses),
        )  # fmt: skip
        got = device.get(windows, out)
        for row, n in enumerate(order):
            upright = np.zeros((2, *window), np.float32)
            index = [p[e].astype(np.int64) for p, e in zip(positions, entries[n], strict=False)]
            reference.gather(upright, raw, index, one, zero, 0.5)
            wanted = np.ascontiguousarray(held(upright, int(poses[n]))).astype(dtype)
            assert_same_bits(np.ascontiguousarray(got[row]), wanted)
        # back: what was cut is added, with a share each
        shares, spans = rng.random(number).astype(np.float32), [np.array([[0, 0, w]] * 2, np.int64) for w in window]
        weights = [rng.random((2, w)).astype(np.float32) for w in window]
        answers = values(rng, (number, 2, *window), dtype)
        given = last(np.stack([held(a, int(p)) for a, p in zip(answers, poses, strict=True)]))
        sums, expected = np.zeros((2, *window), np.float32), np.zeros((2, *window), np.float32)
        for n in range(number):
            wz, wy, wx = (w[e] for w, e in zip(weights, entries[n], strict=False))
            reference.add(expected, answers[n], (shares[n] * wz, wy, wx), (0, 0, 0), (0, 0, 0), window)
        given_sums = device.put(sums)
        device.kernels.add(
            given_sums, device.put(given), [device.put(w) for w in weights], [device.put(s) for s in spans],
            device.put(entries), device.put(zero.astype(np.float32)), (0, 0, 0), window,
            poses=device.put(poses), shares=device.put(shares),
        )  # fmt: skip
        assert_same_bits(device.get(sums, given_sums), expected)

    check()


def test_poses_and_shares_are_one_per_entry() -> None:
    put, k = Host().put, Host().kernels
    sums, windows = put(np.zeros((1, 2, 2, 2), np.float32)), put(np.ones((1, 1, 2, 2, 2), np.float32))
    tables, spans = [put(np.ones((1, 2), np.float32))] * 3, [put(np.array([[0, 0, 2]], np.int64))] * 3
    entries, constants = put(np.zeros((1, 4), np.int32)), put(np.zeros(1, np.float32))
    for name, wrong in (("poses", np.zeros(2, np.int32)), ("shares", np.zeros(2, np.float32))):
        with pytest.raises(ValueError, match=f"{name} must have one value per entry"):
            k.add(sums, windows, tables, spans, entries, constants, (0, 0, 0), (2, 2, 2), **{name: put(wrong)})


@pytest.mark.parametrize("channels", [2, 16, 104, 512])
def test_add_takes_any_number_of_classes(place: Any, channels: int) -> None:
    device, rng = place(), np.random.default_rng(channels)
    windows = rng.normal(size=(1, channels, 1, 3, 5)).astype(np.float16)
    sums = np.zeros((channels, 1, 3, 5), np.float32)
    spans = [np.array([[0, 0, n]], np.int64) for n in (1, 3, 5)]
    weights = [rng.random((1, n)).astype(np.float32) for n in (1, 3, 5)]
    entries, constants = np.array([[0, 0, 0, 0]], np.int32), np.zeros(channels, np.float32)
    expected = sums.copy()
    reference.add(expected, windows[0], [w[0] for w in weights], (0, 0, 0), (0, 0, 0), (1, 3, 5))
    given_sums = device.put(sums)
    device.kernels.add(
        given_sums, device.put(windows), [device.put(w) for w in weights], [device.put(s) for s in spans],
        device.put(entries),
        device.put(constants), (0, 0, 0), (1, 3, 5),
    )  # fmt: skip
    assert_same_bits(device.get(sums, given_sums), expected)


OUTPUTS = [
    *(("labels", t) for t in ("uint8", "uint16")),
    ("masks", "uint8"),
    *(("probabilities", t) for t in ("uint8", "float16", "float32")),
    *(("logits", t) for t in ("float32", "float16")),
]


@pytest.mark.parametrize("activation", operations.ACTIVATIONS)
def test_commit_is_merge_and_finish_of_the_cpu(place: Any, activation: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(seeds, st.sampled_from(OUTPUTS), st.sampled_from([1, 2, 5, 17]), st.integers(0, 9), st.sampled_from([2, 3]))
    def check(seed: int, output: tuple[str, str], channels: int, count: int, axes: int) -> None:
        device, rng, (kind, dtype) = place(), np.random.default_rng(seed), output
        shape = tuple(int(rng.integers(1, 9)) for _ in range(axes - 1)) + (int(rng.choice([3, 40])),)
        sums = rng.normal(scale=5, size=(channels, *shape)).astype(np.float32)
        poisoned = bool(rng.random() < 0.3)
        if poisoned:
            sums.flat[int(rng.integers(sums.size))] = rng.choice([np.nan, np.inf, -np.inf])
        halos, at = [], []
        for _ in range(count):
            size = [int(rng.integers(1, n + 1)) for n in shape]
            at.append([int(rng.integers(0, n - s + 1)) for n, s in zip(shape, size, strict=True)])
            halos.append(rng.normal(size=(channels, *size)).astype(np.float32))
        expected = sums.copy()
        for values_, corner in zip(halos, at, strict=True):
            operations.merge(expected, values_, corner)
        wanted = np.zeros(shape if kind == "labels" else sums.shape, dtype)
        if kind == "logits":
            operations.logits(expected, wanted)
        else:
            getattr(operations, kind)(expected, wanted, activation)
        out, flag = np.zeros_like(wanted), np.zeros(1, np.int32)
        given_out, given_flag = device.put(out), device.put(flag)
        device.kernels.commit(
            device.put(sums), given_out, kind, activation, [device.put(h) for h in halos], at, given_flag
        )
        assert_same_bits(device.get(out, given_out), wanted)
        assert bool(device.get(flag, given_flag)[0]) == poisoned

    check()


@pytest.mark.parametrize("kind", ["labels", "regions", "masks"])
def test_commit_takes_thresholds_and_regions(place: Any, kind: str) -> None:
    """As the host does, with a halo merged first; of regions that overlap the last one wins."""

    @settings(max_examples=40, deadline=None)
    @given(
        seeds, st.integers(1, 12), st.sampled_from(["sigmoid", "none", "probabilities_each", "softmax"]),
        st.sampled_from([None, 0.2, 0.7]), st.sampled_from(["uint8", "uint16"]),
    )  # fmt: skip
    def check(seed: int, channels: int, activation: str, threshold: float | None, dtype: str) -> None:
        device, rng = place(), np.random.default_rng(seed)
        shape = (2, 3, int(rng.choice([5, 70])))
        sums = rng.normal(scale=0.5, size=(channels, *shape)).astype(np.float32)
        halo = rng.normal(size=(channels, 1, 2, 5)).astype(np.float32)
        expected = sums.copy()
        operations.merge(expected, halo, (1, 0, 0))
        order = rng.permutation(channels) + (200 if dtype == "uint8" else 60_000)
        wanted = np.zeros(sums.shape if kind == "masks" else shape, "uint8" if kind == "masks" else dtype)
        if kind == "regions":
            operations.regions(expected, wanted, order.tolist(), activation, threshold=threshold)
        else:
            getattr(operations, kind)(expected, wanted, activation, threshold=threshold)
        alone = channels if kind == "labels" else 1
        out, flag = np.zeros_like(wanted), np.zeros(1, np.int32)
        given_out, given_flag = device.put(out), device.put(flag)
        device.kernels.commit(
            device.put(sums), given_out, kind, activation, [device.put(halo)], [(1, 0, 0)], given_flag,
            above=operations.label_threshold(activation, alone, threshold),
            order=order.tolist() if kind == "regions" else (),
        )  # fmt: skip
        assert_same_bits(device.get(out, given_out), wanted)

    check()


def test_regions_that_do_not_fit_are_refused() -> None:
    device = Host()
    sums, out, flag = np.zeros((2, 2, 2, 2), np.float32), np.zeros((2, 2, 2), np.uint8), np.zeros(1, np.int32)
    given = [device.put(sums), device.put(out), "regions", "sigmoid", [], [], device.put(flag)]
    with pytest.raises(ValueError, match="one label per channel"):
        device.kernels.commit(*given, order=[1])
    with pytest.raises(ValueError, match="take uint16"):
        device.kernels.commit(*given, order=[1, 256])
    many = np.zeros((65, 2, 2, 2), np.float32)
    with pytest.raises(ValueError, match="64 regions at most"):
        device.kernels.commit(device.put(many), *given[1:], order=[1] * 65)
    assert device.kernels.MOST_REGIONS == reduction.MOST_REGIONS


def test_pack_and_merge_move_a_box(place: Any) -> None:
    @settings(max_examples=30, deadline=None)
    @given(seeds, st.sampled_from([2, 3]))
    def check(seed: int, axes: int) -> None:
        device, rng = place(), np.random.default_rng(seed)
        shape = tuple(int(rng.integers(1, 9)) for _ in range(axes - 1)) + (int(rng.choice([3, 70])),)
        size = tuple(int(rng.integers(1, n + 1)) for n in shape)
        at = [int(rng.integers(0, n - s + 1)) for n, s in zip(shape, size, strict=True)]
        sums = values(rng, (3, *shape))
        box = (slice(None), *(slice(a, a + s) for a, s in zip(at, size, strict=True)))
        out = np.zeros((3, *size), np.float32)
        given_out = device.put(out)
        device.kernels.pack(device.put(sums), given_out, at)
        assert_same_bits(device.get(out, given_out), sums[box].copy())
        expected = sums.copy()
        reference.merge(expected, sums[box].copy(), at)
        given_sums = device.put(sums.copy())
        halo_given = device.put(sums[box].copy())
        kept = sums.copy()
        given_sums = device.put(kept)
        device.kernels.merge(given_sums, halo_given, at)
        assert_same_bits(device.get(kept, given_sums), expected)

    check()


def test_wrong_arguments_are_refused_before_anything_runs() -> None:
    device = Host()
    k = device.kernels
    sums, windows = np.zeros((2, 4, 5, 6), np.float32), np.ones((3, 2, 4, 5, 6), np.float32)
    tables = [np.ones((1, n), np.float32) for n in (4, 5, 6)]
    spans = [np.array([[0, 0, n]], np.int64) for n in (4, 5, 6)]
    entries, constants = np.zeros((1, 4), np.int32), np.zeros(2, np.float32)

    def add(
        sums: np.ndarray = sums,
        windows: np.ndarray = windows,
        tables: Any = tables,
        entries: Any = entries,
        hi: Any = (4, 5, 6),
    ) -> None:
        put = device.put
        k.add(
            put(sums), put(windows), [put(t) for t in tables], [put(s) for s in spans], put(entries), put(constants),
            (0, 0, 0), hi
        )  # fmt: skip

    with pytest.raises(ValueError, match="as many channels"):
        add(windows=windows[:, :1])
    with pytest.raises(ValueError, match="axis x: weights"):
        add(windows=windows[..., :-1])
    with pytest.raises(ValueError, match="windows must be float32"):
        add(windows=windows.astype(np.float64))
    with pytest.raises(ValueError, match="axis z: lo and hi leave"):
        add(hi=(5, 5, 6))
    with pytest.raises(ValueError, match="8192 entries"):
        add(entries=np.zeros((8193, 4), np.int32))
    with pytest.raises(ValueError, match="axis z: halo leaves"):
        k.merge(device.put(sums), device.put(sums), [1, 0, 0])
    flag, labels = np.zeros(1, np.int32), np.zeros((4, 5, 6), np.uint8)
    for out, kind, words in (
        (labels[:3], "labels", "shape of sums"), (labels, "pictures", "unknown kind"),
        (sums, "labels", "uint8 or uint16"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            k.commit(device.put(sums), device.put(out), kind, "softmax", [], [], device.put(flag))
    many = np.zeros((300, 2, 2), np.float32)
    with pytest.raises(ValueError, match="take uint16"):
        k.commit(
            device.put(many), device.put(np.zeros((2, 2), np.uint8)), "labels", "softmax", [], [], device.put(flag)
        )
    assert not sums.any()


def test_bfloat16_is_rounded_as_others_do() -> None:
    device = Host()
    bits = np.random.default_rng(0).integers(0, 2**32, 20000, np.uint64).astype(np.uint32)
    raw = bits.view(np.float32).reshape(1, 1, 1, -1)
    out = np.zeros((1, 1, 1, 1, raw.shape[-1]), ml_dtypes.bfloat16)
    n = raw.shape[-1]
    positions = [np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int32), np.arange(n, dtype=np.int32)[None]]
    one, zero = np.ones(1), np.zeros(1)
    device.kernels.gather(
        device.put(out), device.put(raw), [device.put(p) for p in positions], device.put(np.zeros((1, 4), np.int32)),
        device.put(np.zeros(1, np.int32)), device.put(one), device.put(zero), 0.0,
    )  # fmt: skip
    with np.errstate(all="ignore"):
        assert_same_bits(out[0, 0, 0, 0], raw[0, 0, 0].astype(ml_dtypes.bfloat16))


def test_rows_that_are_aligned_give_the_bits_of_those_that_are_not(place: Any) -> None:
    """Four voxels of such rows are read at once, where a window begins at a multiple of four, and one by one where it
    does not, or is mirrored. The same windows in sums of odd rows are read one by one."""

    @settings(max_examples=60, deadline=None)
    @given(
        seeds, st.integers(1, 6), st.integers(1, 9), st.sampled_from([4, 12, 36, 132]), st.sampled_from(WINDOW_TYPES)
    )
    def check(seed: int, channels: int, number: int, width: int, dtype: Any) -> None:
        rng, shape = np.random.default_rng(seed), (2, 5, 8 * int(width / 4))
        window = (2, 3, width)
        inside = rng.integers(0, 2, 3)
        spans = []
        for n, w in zip(shape, window, strict=True):
            at = rng.integers(-w + 1, n, 3)
            at[inside] -= at[inside] % 4
            lo = np.minimum(np.maximum(0, -at) + rng.integers(0, 2, 3), w - 1)  # a block may take a part of a window
            spans.append(np.stack([at, lo, np.minimum(w, n - at)], 1).astype(np.int64))
        weights = [rng.random((3, w)).astype(np.float32) for w in window]
        entries = np.stack([*(rng.integers(0, 3, number) for _ in range(3)), np.arange(number)], 1).astype(np.int32)
        entries[rng.random(number) < 0.2, 3] = -1
        windows = values(rng, (number, channels, *window), dtype, special=0.02)
        poses = np.where(rng.random(number) < 0.5, 0, rng.integers(0, 8, number)).astype(np.int32)
        shares, constants = rng.random(number).astype(np.float32), rng.normal(size=channels).astype(np.float32)
        before = values(rng, (channels, *shape), special=0.02)
        begins = [s[e] for s, e in zip(spans, entries[:, :3].T, strict=True)]
        lo = tuple(int((s[:, 0] + s[:, 1]).clip(0).min()) for s in begins)
        found = []
        for columns in (0, 1):
            device, sums = place(), np.zeros((channels, *shape[:2], shape[2] + columns), np.float32)
            sums[..., : shape[2]] = before
            given_sums = device.put(sums)
            device.kernels.add(
                given_sums, device.put(windows), [device.put(w) for w in weights], [device.put(s) for s in spans],
                device.put(entries), device.put(constants), lo, shape,
                poses=device.put(poses), shares=device.put(shares), floor=1e-3,
            )  # fmt: skip
            found.append(np.ascontiguousarray(device.get(sums, given_sums)[..., : shape[2]]))
        assert_same_bits(*found)
        touched = np.flatnonzero((found[0].view(np.uint32) != before.view(np.uint32)).any((0, 1, 2)))
        assert not touched.size or touched[0] >= lo[2]

    check()
