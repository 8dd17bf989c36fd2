"""How fast stitching is: native against the NumPy reference and against this machine's memory.

    python benchmarks/halo_bench.py [--quick] [--threads 1] [--json out.json]

Per case, on one thread unless told: median and spread (half the interquartile range) over repetitions in which native,
reference and a copy of as many bytes take turns, so that a busy neighbour slows all three. "of copy" compares the bytes
that the function must move per second with the bytes that the copy of arrays of that size moved (read + write).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unet_engine.plan.resampling import AxisResampling
from unet_engine.stitching import operations, reference
from unet_engine.stitching.interpolation import taps


@dataclass(frozen=True)
class Case:
    name: str
    native: Callable[[], None]
    reference: Callable[[], None]
    moved: int  # bytes that must be read or written


@dataclass(frozen=True)
class Result:
    name: str
    native_ms: float
    native_spread_ms: float
    reference_ms: float
    reference_spread_ms: float
    copy_ms: float
    times_reference: float
    share_of_copy: float
    gigabytes_per_second: float


def cases(shape: tuple[int, ...], threads: int) -> list[Case]:
    """`shape` is that of a window and of its place in the sums: (K, z, y, x)."""
    k, *window = shape
    axes = len(window)
    zero, label = (0,) * axes, "x".join(map(str, shape))
    rng = np.random.default_rng(0)
    # The sums are larger than the window on every axis, as a block's are: rows do not follow each other in memory.
    sums = rng.normal(size=(k, *(n + n // 2 for n in window))).astype(np.float32)
    inner = sums[(slice(None), *(slice(0, n) for n in window))]
    part = rng.normal(size=shape).astype(np.float32)
    half = part.astype(np.float16)
    weights = tuple((rng.random(n) * 1e-3).astype(np.float32) for n in window)
    values = np.ones(k, np.float32)
    labels = np.zeros(window, np.uint8)
    small, single = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    half_out = np.zeros(shape, np.float16)
    raw = rng.integers(0, 60000, (1, *window)).astype(np.uint16)
    cut = np.zeros((1, *window), np.float32)
    index = tuple(np.arange(n) for n in window)
    scale, shift = np.full(1, 1e-3), np.full(1, 500.0)
    flat = np.zeros((1, *window), np.uint16)
    place = (zero, zero, tuple(window))
    voxels = part.size
    halved = [taps(AxisResampling(n, n // 2, 3), 0, n // 2, 0) for n in window]
    doubled = [taps(AxisResampling(n // 2, n, 1), 0, n, 0) for n in window]
    coarse = np.ascontiguousarray(part[(slice(None), *(slice(0, n // 2) for n in window))])
    smaller = np.zeros_like(coarse)

    def case(name: str, moved: int, native: Callable[[], None], reference: Callable[[], None]) -> Case:
        return Case(f"{name} {label}", native, reference, moved)

    many = {"threads": threads}
    return [
        case(
            "add float32", 12 * voxels,
            lambda: operations.add(inner, part, weights, *place, **many),
            lambda: reference.add(inner, part, weights, *place),
        ),
        case(
            "add float16", 10 * voxels,
            lambda: operations.add(inner, half, weights, *place, **many),
            lambda: reference.add(inner, half, weights, *place),
        ),
        case(
            "add_constant", 8 * voxels,
            lambda: operations.add_constant(inner, values, weights, *place, **many),
            lambda: reference.add_constant(inner, values, weights, *place),
        ),
        case("merge", 12 * voxels, lambda: operations.merge(inner, part, zero, **many),
             lambda: reference.merge(inner, part, zero)),
        case(
            "gather uint16", 6 * raw.size,
            lambda: operations.gather(cut, raw, index, scale, shift, 0, **many),
            lambda: reference.gather(cut, raw, index, scale, shift, 0),
        ),
        case(
            "labels softmax", 4 * voxels + labels.size,
            lambda: operations.labels(part, labels, "softmax", **many),
            lambda: reference.labels(part, labels, above=None),
        ),
        case(
            "softmax uint8", 5 * voxels,
            lambda: operations.probabilities(part, small, "softmax", **many),
            lambda: reference.probabilities(part, small, "softmax"),
        ),
        case(
            "sigmoid float32", 8 * voxels,
            lambda: operations.probabilities(part, single, "sigmoid", **many),
            lambda: reference.probabilities(part, single, "sigmoid"),
        ),
        case(
            "logits float16", 6 * voxels,
            lambda: operations.logits(part, half_out, **many),
            lambda: reference.logits(part, half_out),
        ),
        case(
            "interpolate cubic to half", 4 * (voxels + smaller.size),
            lambda: operations.interpolate(smaller, part, halved, **many),
            lambda: reference.interpolate(smaller, part, halved),
        ),
        case(
            "interpolate linear to double", 4 * (coarse.size + voxels),
            lambda: operations.interpolate(single, coarse, doubled, **many),
            lambda: reference.interpolate(single, coarse, doubled),
        ),
        case(
            "is_constant", 2 * flat.size,
            lambda: _expect(operations.is_constant(flat, zero, window, 0)),
            lambda: _expect(reference.is_constant(flat, zero, window, np.uint16(0))),
        ),
    ]  # fmt: skip


def _expect(holds: bool) -> None:  # noqa: FBT001
    if not holds:
        raise RuntimeError("the benchmark's array of zeros is not constant")


def measure(case: Case, seconds: float) -> Result:
    source = np.ones(max(1, case.moved // 8), np.float32)  # read + write: 8 bytes per element
    target = np.zeros_like(source)
    runs: dict[str, Callable[[], None]] = {
        "native": case.native,
        "reference": case.reference,
        "copy": lambda: np.copyto(target, source),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["copy"]) < 3:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    middle = {name: statistics.median(values) for name, values in times.items()}
    return Result(
        name=case.name,
        native_ms=middle["native"],
        native_spread_ms=spread(times["native"]),
        reference_ms=middle["reference"],
        reference_spread_ms=spread(times["reference"]),
        copy_ms=middle["copy"],
        times_reference=middle["reference"] / middle["native"],
        share_of_copy=middle["copy"] / middle["native"],
        gigabytes_per_second=case.moved / middle["native"] / 1e6,
    )


def spread(times: list[float]) -> float:
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / 2


def main(arguments: list[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy sizes: does it run at all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="per case")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args(arguments)

    shapes = [(2, 8, 8, 8)] if options.quick else [(2, 64, 64, 64), (2, 512, 512), (16, 128, 128, 128)]
    seconds = 0.0 if options.quick else options.seconds
    print(f"{operations.IMPLEMENTATION} on {platform.machine()}, {options.threads} thread(s), numpy {np.__version__}")
    print(f"{'case':<44}{'native ms':>18}{'numpy ms':>18}{'x numpy':>9}{'of copy':>9}{'GB/s':>7}")
    results = []
    for shape in shapes:
        for case in cases(shape, options.threads):
            r = measure(case, seconds)
            results.append(r)
            native, reference = (
                f"{r.native_ms:.3f} ±{r.native_spread_ms:.3f}",
                f"{r.reference_ms:.2f} ±{r.reference_spread_ms:.2f}",
            )
            print(
                f"{r.name:<44}{native:>18}{reference:>18}{r.times_reference:>9.1f}{r.share_of_copy:>9.2f}"
                f"{r.gigabytes_per_second:>7.1f}",
                flush=True,
            )
    if options.json:
        report = {
            "implementation": operations.IMPLEMENTATION,
            "threads": options.threads,
            "results": [asdict(r) for r in results],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
