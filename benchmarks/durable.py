"""What waiting for the disk costs: measured as ratios within rounds.

    python benchmarks/durable.py [--rounds 12] [--model net.onnx] [--window Z,Y,X] [--shape Z,Y,X] [--output KIND]
                                 [--folder DIR] [--json FILE] [--quick]

Rounds of four runs in one process: with ``--durable yes``, twice with ``no``, and with ``yes``. Of each round the ratio
of the two kinds, and as the noise of the method that of the two runs with ``no``; of wall time, and of the time that
cores worked, which what else runs on the machine changes little. Medians, quartiles, extremes. The volume is noise; the
network the demo's 3D one; the output lies in DIR, which should be on a disk, not in memory. Printed too is how often
the disk is asked, and how long that takes by itself: of a block, that is hidden behind the inference of the next
one."""

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
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--model")
    parser.add_argument("--window", default="32,32,32")
    parser.add_argument("--shape", default="64,128,128")
    parser.add_argument("--output", default="probabilities")
    parser.add_argument("--folder")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="two rounds on a small volume")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.shape = 2, "32,48,48"
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        facts = _measure(args, Path(folder))
    print(
        f"{facts['blocks']} blocks, {facts['bytes'] / 1e6:.1f} MB of voxels in {facts['seconds']:.2f} s; the disk was "
        f"asked {facts['flushes']} times, {facts['flush_ms']:.2f} ms each, {facts['flush_share']:.2%} of the run in "
        "threads of their own"
    )
    for name, ratios in facts["ratios"].items():
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name}: {middle:.4f} (half of {len(ratios)} rounds {low:.4f} to {high:.4f}, all {min(ratios):.4f} to "
            f"{max(ratios):.4f})"
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

    def timed(durable: bool) -> tuple[float, float]:  # noqa: FBT001
        """Seconds of wall time without planning, and of cores with it."""
        worked = time.process_time()
        return once(durable).seconds, time.process_time() - worked

    once(durable=True)
    facts = _counted(lambda: once(durable=True))
    ratios: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        first, plain, again, last = (timed(durable) for durable in (True, False, False, True))
        for kind, k in (("wall", 0), ("cores", 1)):
            found = ratios.setdefault(f"durable ÷ plain, {kind}", [])
            found.append((first[k] + last[k]) / (plain[k] + again[k]))
            ratios.setdefault(f"plain ÷ plain, {kind}", []).append(plain[k] / again[k])
    return {**facts, "ratios": ratios}


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
