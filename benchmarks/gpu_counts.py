"""What can be counted before anything is measured on a GPU: halos between GPUs, and voxels to be decoded. Prints the
tables of docs/gpu.md.

    python benchmarks/gpu_counts.py [--rates 1,3,50] [--windows-per-second 314] [--decode]

The case is the target's: MLPerf's 3D U-Net, 128³ windows, overlap 0.5, 512×512×1024 int16. Geometry is the planner's
own, block by block. Rates of networks and wires are given; ``--decode`` alone measures: what a core decodes, by
processor time, so that other load matters little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace
from math import prod
from types import SimpleNamespace

from unet_engine.plan.box import Box
from unet_engine.plan.bundles import bundle_length, bundles
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.plan import Plan
from unet_engine.plan.sizing import NO_MEMORY, default_block, default_chunk, device_block
from unet_engine.prepare import decoding as reading

SHAPE, WINDOW, OVERLAP, VOXEL_BYTES = (512, 512, 1024), 128, 0.5, 2
WINDOWS_PER_SECOND = 314.0
"""30 % of an H200's dense FP16 peak over the operations of a window; see docs/gpu.md."""
WIRES = (1.0, 3.0, 50.0)
"""GB/s: TCP over loopback, slow and fast, and pinned memory over PCIe 5 ×16."""
CLASSES, GPUS = (3, 16, 104), (2, 8)


@dataclass(frozen=True)
class Halos:
    """Halos of one bundle, by the blocks that send them."""

    classes: int
    gpus: int
    blocks: int
    length: int
    """Blocks that are handed out together, between which halos stay in a process."""
    network_seconds: float
    """Of one block, the mean of all."""
    bytes: float
    """That leave the blocks handed out together, per block: at most so many go to another GPU."""

    def seconds(self, rate: float) -> float:
        """To send them at `rate` bytes per second."""
        return self.bytes / rate

    def saving(self, rate: float) -> float:
        """Share of a run that a path of no cost would save: what of the sending is longer than the network it happens
        beside."""
        return max(0.0, 1 - self.network_seconds / self.seconds(rate)) if self.bytes else 0.0


def plan_of(classes: int) -> Plan:
    axes = tuple(AxisGrid.with_overlap(n, WINDOW, OVERLAP, 0, "gaussian") for n in SHAPE)
    block = device_block(axes, classes)
    chunk = default_chunk(axes, block)
    return Plan("zyx", axes, Box.of_shape(SHAPE), block, chunk, ((),) * 3, "reflect", NO_MEMORY, {})


def halos(classes: int, gpus: int, windows_per_second: float) -> Halos:
    """Counted over every bundle of blocks, as they are handed to the workers of `gpus` GPUs."""
    plan = plan_of(classes)
    length = bundle_length(plan, 1 / windows_per_second, gpus)
    sent = blocks = windows = 0
    for bundle in bundles(plan, lambda _: True, length):
        leaving = {block for _, targets in bundle.targets for block in targets}
        for task in bundle.tasks:
            sent += sum(box.size for to, box in task.halos if to in leaving) * 4 * classes
            windows += len(task.windows)
            blocks += 1
    return Halos(classes, gpus, blocks, length, windows / windows_per_second / blocks, sent / blocks)


def decoding(windows_per_second: float, chunk: int) -> float:
    """GB/s of decoded voxels so that one GPU never waits; blocks are read in whole chunks of `chunk` voxels a side."""
    volume = SimpleNamespace(chunks=(chunk,) * 3, voxel_bytes=VOXEL_BYTES)
    return reading.needed(plan_of(3), volume, 1 / windows_per_second, 1) / 1e9


def decoded_in_blocks(classes: int, block: tuple[int, ...], windows_per_second: float, chunk: int = 128) -> float:
    """GB/s as `decoding`, in blocks of so many windows."""
    plan = plan_of(classes)
    plan = replace(plan, block=block, chunk=default_chunk(plan.axes, block))
    volume = SimpleNamespace(chunks=(chunk,) * 3, voxel_bytes=VOXEL_BYTES)
    return reading.needed(plan, volume, 1 / windows_per_second, 1) / 1e9


def block_table(windows_per_second: float = 213) -> str:
    """What decoding larger blocks saves, in chunks of 128³."""
    lines = [
        "| classes | windows of a CPU's block | decoding needed, GB/s | windows of a GPU's block | decoding needed, GB/s |",
        "|---|---|---|---|---|",
    ]
    for classes in CLASSES:
        axes = plan_of(classes).axes
        cells = [
            f"{'×'.join(map(str, block))} | {decoded_in_blocks(classes, block, windows_per_second):.2f}"
            for block in (default_block(axes, classes), device_block(axes, classes))
        ]
        lines.append(f"| {classes} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def new_voxels(windows_per_second: float) -> float:
    """GB/s if every voxel were decoded once."""
    axes = plan_of(3).axes
    return prod(SHAPE) / prod(a.count for a in axes) * VOXEL_BYTES * windows_per_second / 1e9


def halo_table(windows_per_second: float = WINDOWS_PER_SECOND, wires: tuple[float, ...] = WIRES) -> str:
    heads = [f"at {rate:g} GB/s: ms, saved at most" for rate in wires]
    lines = [
        "| classes | GPUs | blocks, handed out by | network a block, ms | halos a block, MB | "
        + " | ".join(heads)
        + " |",
        "|" + "---|" * (5 + len(wires)),
    ]
    for classes in CLASSES:
        for gpus in GPUS:
            h = halos(classes, gpus, windows_per_second)
            cells = [f"{h.seconds(r * 1e9) * 1e3:.3g}, {h.saving(r * 1e9):.0%}" for r in wires]
            lines.append(
                f"| {classes} | {gpus} | {h.blocks}, {h.length} | {h.network_seconds * 1e3:.3g} | {h.bytes / 1e6:.3g} "
                "| " + " | ".join(cells) + " |"
            )
    return "\n".join(lines) + "\n"


def decoding_table(rates: tuple[float, ...] = (310.0, 438.0)) -> str:
    lines = [
        "| windows/s | every voxel once, GB/s | in blocks, chunks of 64³ | in blocks, chunks of 128³ |",
        "|---|---|---|---|",
    ]
    lines += [f"| {r:g} | {new_voxels(r):.2f} | {decoding(r, 64):.2f} | {decoding(r, 128):.2f} |" for r in rates]
    return "\n".join(lines) + "\n"


def decoded_by_a_core() -> list[float]:
    """GB/s of int16 noise from zstd (level 3), in chunks of 64³, over processor time; one figure per repetition."""
    import numpy as np
    from numcodecs import zstd

    rng = np.random.default_rng(0)
    voxels = [rng.normal(0, 30, (64,) * 3).astype(np.int16) for _ in range(32)]
    stored, rates = [zstd.compress(part.tobytes(), 3) for part in voxels], []
    for _ in range(7):
        begun = time.process_time()
        for data in stored:
            zstd.decompress(data)
        rates.append(sum(part.nbytes for part in voxels) / (time.process_time() - begun) / 1e9)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default=",".join(f"{w:g}" for w in WIRES), help="GB/s of wires")
    parser.add_argument("--windows-per-second", type=float, default=WINDOWS_PER_SECOND)
    parser.add_argument("--decode", action="store_true", help="measure what a core decodes, too")
    args = parser.parse_args()
    print(halo_table(args.windows_per_second, tuple(float(rate) for rate in args.rates.split(","))))
    print(decoding_table())
    print(block_table())
    if args.decode:
        rates = decoded_by_a_core()
        print(
            f"a core decodes {statistics.median(rates):.2f} GB/s ({min(rates):.2f} to {max(rates):.2f}, {len(rates)} "
            "times)"
        )


if __name__ == "__main__":
    main()
