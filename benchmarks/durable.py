"""What waiting for the disk costs: measured as a paired ratio.

    python benchmarks/durable.py [--pairs 12] [--model net.onnx] [--window Z,Y,X] [--shape Z,Y,X] [--output KIND]
                                 [--folder DIR] [--json FILE] [--quick]

Runs with ``--durable yes`` and ``no`` in turn, in one process, the order swapped from pair to pair; the ratio of each
pair, median (least to most), and as the noise of the method the same ratio between two runs that are both ``no``. The
volume is noise; the network the demo's 3D one; the output lies in DIR, which should be on a disk, not in memory.
Printed too is how often the disk is asked, and how long that takes by itself: of a block, that is hidden behind the
inference of the next one."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import unet_engine
from unet_engine.model.shipped import shipped_model
from unet_engine.storage.durability import OnDisk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--model")
    parser.add_argument("--window", default="32,32,32")
    parser.add_argument("--shape", default="96,160,160")
    parser.add_argument("--output", default="probabilities")
    parser.add_argument("--folder")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="two pairs on a small volume")
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.shape = 2, "32,48,48"
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        facts = _measure(args, Path(folder))
    print(
        f"{facts['blocks']} blocks, {facts['bytes'] / 1e6:.1f} MB of voxels in {facts['seconds']:.2f} s; the disk was "
        f"asked {facts['flushes']} times, {facts['flush_ms']:.2f} ms each, {facts['flush_share']:.2%} of the run in "
        "threads of their own"
    )
    for name in ("durable", "plain"):
        ratios = facts[f"{name}_over_plain"]
        print(
            f"{name} ÷ plain: {statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f}), {len(ratios)} "
            "pairs"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(facts, indent=1) + "\n")


def _measure(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    shape = tuple(map(int, args.shape.split(",")))
    noise = np.random.default_rng(0).integers(1, 255, shape, np.uint8)
    zarr.create_array(root / "scan.zarr", data=noise, chunks=tuple(min(64, n) for n in shape))
    model = args.model or str(shipped_model("cells_3d.onnx"))
    window = tuple(map(int, args.window.split(",")))

    def once(durable: bool) -> unet_engine.api.Result:  # noqa: FBT001
        return unet_engine.run(
            str(root / "scan.zarr"), model=model, window=window, out=str(root / "out.zarr"), overwrite=True,
            durable=durable, output=args.output,
        )  # fmt: skip

    once(durable=True)
    facts = _counted(lambda: once(durable=True))
    ratios: dict[str, list[float]] = {"durable": [], "plain": []}
    for pair in range(args.pairs):
        for name, durable in (("durable", True), ("plain", False)):
            order = (durable, False) if pair % 2 == 0 else (False, durable)
            first, second = (once(durable=way).seconds for way in order)
            ratios[name].append(first / second if pair % 2 == 0 else second / first)
    return {**facts, **{f"{name}_over_plain": found for name, found in ratios.items()}}


def _counted(run: Callable[[], unet_engine.api.Result]) -> dict[str, Any]:
    """A run, and the time that its threads spend waiting for the disk."""
    waits: list[float] = []

    def timed(wait: Callable[..., None]) -> Callable[..., None]:
        def waiting(self: OnDisk, what: Any) -> None:
            begun = time.perf_counter()
            wait(self, what)
            waits.append(time.perf_counter() - begun)

        return waiting

    before = OnDisk.file, OnDisk.folders
    OnDisk.file, OnDisk.folders = timed(before[0]), timed(before[1])  # type: ignore[method-assign]
    try:
        result = run()
    finally:
        OnDisk.file, OnDisk.folders = before  # type: ignore[method-assign]
    return {
        "blocks": result.blocks_written, "bytes": result.bytes_written, "seconds": result.seconds,
        "flushes": len(waits),
        "flush_ms": 1000 * statistics.mean(waits), "flush_share": sum(waits) / result.seconds,
    }  # fmt: skip


if __name__ == "__main__":
    main()
