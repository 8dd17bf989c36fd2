"""The kernels alone, for `gpu_check.py`: their bandwidth against a copy on the device, and one pass over all of them
for compute-sanitizer.

python benchmarks/gpu_kernels.py            every kernel once on small cases, compared with NumPy
                                           (what the sanitizer watches)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from unet_engine.devices.base import Device, Region
from unet_engine.devices.opening import open_device
from unet_engine.plan.resampling import Order
from unet_engine.stitching import reference


@dataclass
class Arrays:
    """Arrays in memory of a device."""

    device: Device

    def __post_init__(self) -> None:
        self.stream = self.device.stream("kernels")
        self._memory: list[tuple[Any, Any]] = []

    @property
    def count(self) -> int:
        """Arrays that were put there: the number of the next one."""
        return len(self._memory)

    def put(self, array: np.ndarray) -> Any:
        """A copy of `array` on the device, C-contiguous."""
        from unet_engine.devices.base import host_array

        array = np.ascontiguousarray(array)
        staging, memory = self.device.pinned(array.nbytes, "staging"), self.device.allocate(array.nbytes, "an array")
        host_array(staging)[: array.nbytes] = array.reshape(-1).view(np.uint8)
        self.device.copy(self.stream, Region(memory, 0, array.nbytes), Region(staging, 0, array.nbytes))
        self.wait()
        self.device.free(staging)
        self._memory.append((memory, array))
        return self.device.array(Region(memory, 0, array.nbytes), array.shape, array.dtype.name)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Cleared, without a copy of it on the host."""
        count = prod(shape) * np.dtype(dtype).itemsize
        memory = self.device.allocate(count, "an array")
        self.device.zero(self.stream, Region(memory, 0, count))
        self._memory.append((memory, None))
        return self.device.array(Region(memory, 0, count), shape, dtype)

    def get(self, number: int) -> np.ndarray:
        """What the array that was put as `number` holds now."""
        from unet_engine.devices.base import host_array

        memory, array = self._memory[number]
        staging = self.device.pinned(array.nbytes, "staging")
        self.device.copy(self.stream, Region(staging, 0, array.nbytes), Region(memory, 0, array.nbytes))
        self.wait()
        values = host_array(staging)[: array.nbytes].view(array.dtype).reshape(array.shape).copy()
        self.device.free(staging)
        return values

    def wait(self) -> None:
        event = self.device.event()
        self.device.record(event, self.stream)
        self.device.synchronize(event)

    def close(self) -> None:
        self.wait()
        for memory, _ in self._memory:
            self.device.free(memory)
        self._memory = []

    def run(self, work: Callable[[int], None]) -> None:
        self.device.run(self.stream, "kernel", work, [], [])

    def seconds(self, work: Callable[[int], None], at_least: float) -> float:
        """Median seconds of one call, of five rounds that take `at_least` seconds together."""
        self.run(work)
        self.wait()
        begun = time.perf_counter()
        self.run(work)
        self.wait()
        calls = max(1, min(1000, int(at_least / 5 / max(1e-6, time.perf_counter() - begun))))
        rounds = []
        for _ in range(5):
            begun = time.perf_counter()
            for _ in range(calls):
                self.run(work)
            self.wait()
            rounds.append((time.perf_counter() - begun) / calls)
        return sorted(rounds)[2]


def copy_bandwidth(device: Device, count: int, seconds: float) -> float:
    """Bytes per second, read and written, of a copy of `count` bytes on the device."""
    arrays = Arrays(device)
    memory = [device.allocate(count, "a copy") for _ in range(2)]
    regions = [Region.of(m) for m in memory]
    device.zero(arrays.stream, regions[0])
    taken = arrays.seconds(lambda _: device.copy(arrays.stream, regions[1], regions[0]), seconds)
    for m in memory:
        device.free(m)
    return 2 * count / taken


def bandwidth(device: Device, classes: int, window: int, dtype: str, seconds: float) -> dict[str, dict[str, float]]:
    """Seconds and bytes that must be moved, per kernel, for one window of `window`³ voxels in sums half as large
    again."""
    arrays, k = Arrays(device), device.kernels
    try:
        size, rng = (window,) * 3, np.random.default_rng(0)
        side = window + window // 2
        voxels, item = window**3, np.dtype(dtype).itemsize
        sums = arrays.empty((classes, side, side, side), "float32")
        windows = arrays.empty((1, classes, *size), dtype)
        weights = [arrays.put(rng.random((1, window)).astype(np.float32)) for _ in range(3)]
        spans = [arrays.put(np.array([[window // 4, 0, window]], np.int64)) for _ in range(3)]
        entries, order = arrays.put(np.zeros((1, 4), np.int32)), arrays.put(np.zeros(1, np.int32))
        constants = arrays.put(np.zeros(classes, np.float32))
        lo, hi = [window // 4] * 3, [window // 4 + window] * 3
        raw = arrays.empty((1, side, side, side), "int16")
        positions = [arrays.put(np.arange(window, dtype=np.int32)[None]) for _ in range(3)]
        one = arrays.put(np.ones(1))
        cut = arrays.empty((1, 1, *size), dtype)
        halo = arrays.empty((classes, window // 2, window, window), "float32")
        labels, flag = arrays.empty(size, "uint8"), arrays.put(np.zeros(1, np.int32))
        core = arrays.empty((classes, *size), "float32")
        cases: dict[str, tuple[float, Callable[[int], None]]] = {
            "gather": (
                (2 + item) * voxels,
                lambda s: k.gather(cut, raw, positions, entries, order, one, one, 0.0, stream=s),
            ),
            f"add {dtype}": (
                (8 + item) * voxels * classes,
                lambda s: k.add(sums, windows, weights, spans, entries, constants, lo, hi, stream=s),
            ),
            "pack": (8 * voxels * classes // 2, lambda s: k.pack(sums, halo, lo, stream=s)),
            "merge": (12 * voxels * classes // 2, lambda s: k.merge(sums, halo, lo, stream=s)),
            "commit labels": (
                (4 * classes + 1) * voxels,
                lambda s: k.commit(core, labels, "labels", "softmax", [], [], flag, stream=s),
            ),
            "commit labels, a halo on half": (
                (6 * classes + 1) * voxels,
                lambda s: k.commit(core, labels, "labels", "softmax", [halo], [[0, 0, 0]], flag, stream=s),
            ),
        }
        found = {}
        for name, (moved, work) in cases.items():
            taken = arrays.seconds(work, seconds)
            found[name] = {"bytes": moved, "seconds": taken, "bytes_per_second": moved / taken}
        return found
    finally:
        arrays.close()


def all_once(device: Device) -> list[str]:
    """Every kernel on a small case against the reference. Returns what differs, in words; nothing where all is well."""
    wrong, rng = [], np.random.default_rng(7)
    for dtype in ("float32", "float16"):
        for classes in (2, 5):
            wrong += _add_once(device, rng, dtype, classes)
            wrong += _commit_once(device, rng, classes)
    wrong += [
        name for raw in ("uint8", "int16", "int32", "float16", "float32") for name in _gather_once(device, rng, raw)
    ]
    import gpu_grid  # which import this module
    import gpu_resample

    orders: tuple[Order, ...] = (0, 1, 3)
    parts = {"interpolate": gpu_grid.same, "resample": gpu_resample.same}
    return wrong + [
        f"{name}, order {order}" for name, same in parts.items() for order in orders if not same(device, order)
    ]


def _add_once(device: Device, rng: Any, dtype: str, classes: int) -> list[str]:
    arrays, size, sums_shape = Arrays(device), (5, 9, 37), (9, 15, 70)
    sums = rng.normal(size=(classes, *sums_shape)).astype(np.float32)
    windows = rng.normal(size=(3, classes, *size)).astype(dtype)
    spans = [
        np.array([[a, max(0, -a), min(w, s - a)] for a in (-2, 3)], np.int64)
        for w, s in zip(size, sums_shape, strict=True)
    ]
    weights = [rng.random((2, w)).astype(np.float32) for w in size]
    entries = np.array([[0, 0, 0, 0], [0, 1, 1, -1], [1, 0, 1, 1], [1, 1, 1, 2]], np.int32)
    constants, expected = rng.normal(size=classes).astype(np.float32), sums.copy()
    for *ranks, row in entries:
        chosen = [s[r] for s, r in zip(spans, ranks, strict=True)]
        place = [w[r] for w, r in zip(weights, ranks, strict=True)], *([int(c[i]) for c in chosen] for i in range(3))
        if row < 0:
            reference.add_constant(expected, constants, *place)
        else:
            reference.add(expected, windows[row], *place)
    on = arrays.put(sums)
    given = (arrays.put(windows), [arrays.put(w) for w in weights], [arrays.put(s) for s in spans])
    rest = (arrays.put(entries), arrays.put(constants), (0, 0, 0), sums_shape)
    arrays.run(lambda s: device.kernels.add(on, *given, *rest, stream=s))
    same = arrays.get(0).tobytes() == expected.tobytes()
    arrays.close()
    return [] if same else [f"add {dtype}, {classes} classes"]


def _commit_once(device: Device, rng: Any, classes: int) -> list[str]:
    arrays, shape, wrong = Arrays(device), (5, 9, 37), []
    sums, part = (
        rng.normal(size=(classes, *shape)).astype(np.float32),
        rng.normal(size=(classes, 2, 4, 33)).astype(np.float32),
    )
    expected = sums.copy()
    reference.merge(expected, part, (1, 2, 3))
    on, halo = arrays.put(sums), arrays.put(part)
    for kind, dtype, activation in (
        ("labels", "uint8", "none"), ("logits", "float16", "none"), ("probabilities", "uint8", "sigmoid"),
        ("probabilities", "float32", "softmax"),
    ):  # fmt: skip
        wanted = np.zeros(shape if kind == "labels" else sums.shape, dtype)
        if kind == "labels":
            reference.labels(expected, wanted, above=None)
        elif kind == "logits":
            reference.logits(expected, wanted)
        else:
            reference.probabilities(expected, wanted, activation)
        number = arrays.count
        out, flag = arrays.put(np.zeros_like(wanted)), arrays.put(np.zeros(1, np.int32))
        given_commit = (on, out, kind, activation, [halo], [[1, 2, 3]], flag)
        arrays.run(partial(_commit, device.kernels, given_commit))
        if arrays.get(number).tobytes() != wanted.tobytes():
            wrong.append(f"commit {kind} {dtype} {activation}, {classes} classes")
    arrays.close()
    return wrong


def _commit(kernels: Any, given: tuple[Any, ...], stream: int) -> None:
    kernels.commit(*given, stream=stream)


def _gather_once(device: Device, rng: Any, raw_type: str) -> list[str]:
    arrays, size = Arrays(device), (4, 6, 35)
    raw = rng.integers(0, 100, (2, 7, 8, 40)).astype(raw_type)
    positions = [rng.integers(-1, n, (2, w)).astype(np.int32) for n, w in zip(raw.shape[1:], size, strict=True)]
    entries, order = np.array([[0, 1, 0, 0], [1, 0, 1, 1]], np.int32), np.array([1, 0], np.int32)
    scale, shift = np.array([0.5, 2.0]), np.array([3.0, 1.0])
    out = arrays.put(np.zeros((2, 2, *size), np.float32))
    given = (arrays.put(raw), [arrays.put(p) for p in positions], arrays.put(entries), arrays.put(order))
    scaling = (arrays.put(scale), arrays.put(shift))
    arrays.run(lambda s: device.kernels.gather(out, *given, *scaling, 0.0, stream=s))
    got, wrong = arrays.get(0), []
    for row, number in enumerate(order):
        expected = np.zeros((2, *size), np.float32)
        index = [p[e].astype(np.int64) for p, e in zip(positions, entries[number], strict=False)]
        reference.gather(expected, raw, index, scale, shift, 0.0)
        if got[row].tobytes() != expected.tobytes():
            wrong.append(f"gather {raw_type}")
    arrays.close()
    return wrong


def main() -> None:
    """Exit code 0 where all kernels gave the reference's bits, else 1."""
    differing = all_once(open_device(sys.argv[1] if len(sys.argv) > 1 else "cuda:0"))
    print("\n".join(differing) or "all kernels give the reference's bits")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
