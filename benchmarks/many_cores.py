"""What share of a run on 4 to 64 cores is the network: by clocks for its streams, the thread that cuts and adds, and
those that read and write; and the pipeline itself over a network that only waits.

    python benchmarks/many_cores.py                  the table by clocks
    python benchmarks/many_cores.py --measure        the pipeline as it is, beside the clocks; takes a minute or two
        [--cores 4 8 16 32 64] [--ms 75] [--jitter 0.1] [--channels 1] [--rounds 8] [--json FILE]

The clocks are a model of one process. A stream begins a window when it is free and the window was cut; one thread cuts
windows into free slots and adds them in their order, so a slow one holds up those behind it; at the end of a block it
copies halos and hands the rest to the thread that writes, once that has written the block before; voxels of the next
block are read meanwhile. Streams share nothing but that: what cores take from one another (bandwidth, turbo) is not in
it. ``before`` is the pipeline as it was: two slots to spare, one block under way however few windows it has, and one
thread that adds, copies halos and finishes a block.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.backends.base import slots_for
from unet_engine.pipeline.sharing import sharing_threads

CORES = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Case:
    """What is run. Times in seconds, of one thread."""

    name: str
    window: float
    """That a window takes on one core."""
    per_block: int
    """Windows of a block."""
    cut: float = 0.13e-3
    add: float = 0.20e-3
    queue: float = 0.25e-3
    """Python around both, a window."""
    merge: float = 10e-3
    """Copying the halos of a block."""
    read: float = 6e-3
    finish: float = 0.0
    """Of a block: halos merged, and made labels."""
    write: float = 15e-3
    """A block: encoding, and all on the way to the disk; and `finish`, where that is not told apart."""
    jitter: float = 0.05
    """By what part windows differ in the time that they take: the deviation of a normal distribution."""


CASES = (
    Case("3D, 2 classes, 64³, fp32", 290e-3, 64),
    Case("3D, 2 classes, 64³, bf16", 75e-3, 64),
    Case("the same with blocks of 27 windows", 75e-3, 27),
    Case(
        "16 features blended, 64³, bf16, 8 windows a block",
        110e-3,
        8,
        add=3.6e-3,
        merge=19e-3,
        finish=28e-3,
        write=2e-3,
    ),
)
"""Windows, cutting and adding as docs/performance.md has them measured; adding 16 features and copying their halos as
timed on one core of a Xeon; what else a block takes by its bytes."""


@dataclass(frozen=True)
class Way:
    """How windows are handed out."""

    slots: int
    under_way: int
    adding: int


def before(cores: int, case: Case) -> Way:
    return Way(cores + 2, 1, 1)


def now(cores: int, case: Case) -> Way:
    return Way(slots_for(cores), max(1, -(-cores // case.per_block)), sharing_threads(cores))


def share(cores: int, case: Case, way: Way, windows: int = 0, seed: int = 0) -> float:
    """The part of the time of all cores that the network has. windows: of the run; by default 60 for each core."""
    windows = windows or 60 * cores
    random = np.random.default_rng(seed)
    lasts = case.window * np.maximum(0.1, random.normal(1.0, case.jitter, windows))
    clocks = _Clocks(cores, case, way)
    for number in range(windows):
        if number % case.per_block == 0:
            clocks.begin_block()
        clocks.push(float(lasts[number]))
        if (number + 1) % case.per_block == 0:
            clocks.end_block()
    clocks.end_block()
    clocks.drain()
    return float(lasts.sum()) / (cores * clocks.end)


class _Clocks:
    def __init__(self, cores: int, case: Case, way: Way) -> None:
        self.case, self.way = case, way
        self.streams = [0.0] * cores
        self.entries: list[float | None] = []
        """When each window under way is done, in their order; None for the end of a block."""
        self.head = 0
        self.waiting = self.blocks = 0
        self.now = self.written = 0.0
        self.voxels = case.read

    @property
    def end(self) -> float:
        return max(self.now, self.written)

    def begin_block(self) -> None:
        self.now = max(self.now, self.voxels)
        self.voxels = self.now + self.case.read

    def push(self, lasts: float) -> None:
        while self.waiting == self.way.slots:
            self.pop()
        self.now += self.case.cut + self.case.queue / 2
        begun = max(self.now, heapq.heappop(self.streams))
        heapq.heappush(self.streams, begun + lasts)
        self.entries.append(begun + lasts)
        self.waiting += 1

    def end_block(self) -> None:
        self.entries.append(None)
        self.blocks += 1
        while self.blocks > self.way.under_way:
            self.pop()

    def drain(self) -> None:
        while self.head < len(self.entries):
            self.pop()

    def pop(self) -> None:
        done, self.head = self.entries[self.head], self.head + 1
        if done is not None:
            self.now = max(self.now, done) + self.case.add / self.way.adding + self.case.queue / 2
            self.waiting -= 1
            return
        self.blocks -= 1
        self.now = max(self.now + self.case.merge / self.way.adding, self.written)
        self.written = self.now + self.case.finish / self.way.adding + self.case.write


def table(cores: tuple[int, ...] = CORES) -> str:
    lines = [
        f"| by clocks, before → now | {' | '.join(f'{n} cores' for n in cores)} |",
        f"|---|{'---|' * len(cores)}",
    ]
    for case in CASES:
        found = [f"{share(n, case, before(n, case)):.2f} → {share(n, case, now(n, case)):.2f}" for n in cores]
        lines.append(f"| {case.name} | {' | '.join(found)} |")
    return "\n".join(lines)


# --- the pipeline as it is ---


def measured(cores: int, ms: float, jitter: float, channels: int, rounds: int, folder: Path) -> dict[str, Any]:
    """A run over made voxels with a network that waits `ms` for each window of 64³, on `cores` threads."""
    import zarr

    import unet_engine

    per_axis = max(2, round((rounds * cores) ** (1 / 3)))
    size = 32 * (per_axis + 1)
    volume, model = folder / f"{size}.zarr", folder / f"wait_{ms:g}_{jitter:g}_{channels}.fake.toml"
    if not volume.exists():
        stored = zarr.create_array(volume, shape=(size,) * 3, chunks=(64,) * 3, dtype="uint8")
        stored[...] = np.random.default_rng(0).integers(0, 99, (size,) * 3, np.uint8)
    model.write_text(
        f"latency_ms = {ms}\njitter = {jitter}\n[spec]\nname = 'wait'\naxes = 'zyx'\nchannels_in = 1\n"
        f"channels_out = {channels}\nactivation = 'softmax'\nwindow = [64, 64, 64]\nwindow_min = [4, 4, 4]\n"
        "window_step = [4, 4, 4]\nmargin = [0, 0, 0]\n"
    )
    begun = os.times()
    result = unet_engine.run(
        str(volume), model=str(model), out=str(folder / "out.zarr"), threads=cores, overwrite=True, device="cpu"
    )
    ended = os.times()
    worked = ended.user + ended.system - begun.user - begun.system
    found = result.windows_inferred * ms / 1000 / (cores * result.seconds)
    return {
        "cores": cores, "ms": ms, "jitter": jitter, "channels": channels, "windows": result.windows_inferred,
        "seconds": result.seconds, "share": round(found, 4), "worked": round(worked, 3),
        "load": round(os.getloadavg()[0], 1), "size": size,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, nargs="+", default=list(CORES))
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--ms", type=float, default=75.0)
    parser.add_argument("--jitter", type=float, default=0.1)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json")
    args = parser.parse_args()
    print(table(tuple(args.cores)))
    facts: dict[str, Any] = {
        "clocks": [
            {"case": asdict(case), "cores": n, "before": round(share(n, case, before(n, case)), 4),
             "now": round(share(n, case, now(n, case)), 4)}
            for case in CASES for n in args.cores
        ]
    }  # fmt: skip
    if args.measure:
        facts["measured"] = []
        with tempfile.TemporaryDirectory() as folder:
            for n in args.cores:
                row = measured(n, args.ms, args.jitter, args.channels, args.rounds, Path(folder))
                case = Case("waits", args.ms / 1000, prod((4, 4, 4)), jitter=args.jitter)
                row["by clocks"] = round(share(n, case, now(n, case), row["windows"]), 4)
                facts["measured"].append(row)
                print(json.dumps(row), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
