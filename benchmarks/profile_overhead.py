"""What ``run --profile`` costs: counted, and measured as a paired ratio.

    python benchmarks/profile_overhead.py [--pairs 12] [--model net.onnx] [--window Z,Y,X] [--shape Z,Y,X]
        [--json FILE] [--quick]

Counted: the cost of one span (many of them, timed in a loop) times the spans of a run, over the time of the run.
Measured: runs with and without a profile in turn, in one process, the order swapped from pair to pair; the ratio of
each pair, median (least to most), and as the noise of the method the same ratio between two runs that are both plain.
The volume is noise; the network the demo's 3D one. With ``--fake`` the network costs nothing, so that the ratio is that
of all other work, the worst there can be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

import unet_engine
from unet_engine.model.shipped import shipped_model
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.profiling.stages import ADD, Stages

_FAKE = """[spec]
name = "nothing"
axes = "zyx"
channels_in = 1
channels_out = 2
window = [64, 64, 64]
window_min = [8, 8, 8]
window_step = [8, 8, 8]
margin = [0, 0, 0]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--model")
    parser.add_argument("--fake", action="store_true")
    parser.add_argument("--window", default="32,32,32")
    parser.add_argument("--shape", default="96,160,160")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="two pairs on a small volume")
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.shape = 2, "32,48,48"
    with tempfile.TemporaryDirectory() as folder:
        facts = _measure(args, Path(folder))
    print(
        f"{facts['windows']:,} windows of {args.window}, {facts['spans']:,} spans "
        f"({facts['spans'] / facts['windows']:.1f} a window) "
        f"of {facts['span_ns']:.0f} ns: {facts['counted']:.3%} of {facts['seconds']:.2f} s, counted; "
        f"not profiled, {facts['plain_span_ns']:.0f} ns"
    )
    for name in ("profiled", "plain"):
        ratios = facts[f"{name}_over_plain"]
        print(
            f"{name} ÷ plain: {statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f}), {len(ratios)} "
            "pairs"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(facts, indent=1) + "\n")


def _measure(args: argparse.Namespace, root: Path) -> dict[str, object]:
    shape = tuple(map(int, args.shape.split(",")))
    noise = np.random.default_rng(0).integers(1, 255, shape, np.uint8)
    zarr.create_array(root / "scan.zarr", data=noise, chunks=tuple(min(64, n) for n in shape))
    model = args.model or str(shipped_model("cells_3d.onnx"))
    if args.fake:
        model = str(root / "nothing.fake.toml")
        Path(model).write_text(_FAKE)
    window = tuple(map(int, args.window.split(",")))

    def once(profile: str | None) -> unet_engine.api.Result:
        options = {
            "model": model,
            "window": window,
            "out": str(root / "out.zarr"),
            "overwrite": True,
            "profile": profile,
        }
        return unet_engine.run(str(root / "scan.zarr"), **options)

    trace = str(root / "trace.json")
    warm = once(trace)
    spans = sum(e["ph"] == "X" for e in json.loads(Path(trace).read_text())["traceEvents"])
    pairs: dict[str, list[float]] = {"profiled": [], "plain": []}
    seconds = []
    for k in range(args.pairs):
        for kind, profile in (("profiled", trace), ("plain", None)):
            order = [profile, None] if k % 2 else [None, profile]
            first, second = (once(p).seconds for p in order)
            asked, plain = (first, second) if k % 2 else (second, first)
            pairs[kind].append(asked / plain)
            seconds.append(plain)
    cost = _span_ns(Stages())
    return {
        "windows": warm.windows_inferred,
        "spans": spans,
        "span_ns": cost,
        "plain_span_ns": _span_ns(PLAIN),
        "seconds": statistics.median(seconds),
        "counted": spans * cost / 1e9 / statistics.median(seconds),
        "profiled_over_plain": pairs["profiled"],
        "plain_over_plain": pairs["plain"],
    }


def _span_ns(recorder: Recorder, count: int = 200_000) -> float:
    """What a span takes, with buffers that fill and are thinned as in a long run."""
    begun = time.perf_counter_ns()
    for k in range(count):
        with recorder.span(ADD):
            pass
        if isinstance(recorder, Stages) and not k % 256:
            recorder.track().next_group()
    taken = time.perf_counter_ns() - begun
    begun = time.perf_counter_ns()
    for _ in range(count):
        pass
    return (taken - (time.perf_counter_ns() - begun)) / count


if __name__ == "__main__":
    main()
