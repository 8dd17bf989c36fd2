"""Peak memory against the volume, and against what the plan predicted.

    python benchmarks/memory.py [--overlap 0.5] [--workers N] [--json FILE] [--quick]

A volume of 256×512×512, one of 64 times the voxels (the same chunks again, as hard links) grown on every axis, and one
of 64 times the voxels grown on its longest axis alone. The network is the fake back end (identity, two classes out,
windows of 64³), so that hours become minutes; everything around it is real. The larger volumes run with ``--memory``
set to the peak of the small one, and with the default. With ``--workers`` the run is spread over processes by Dask;
peak and prediction are then those of the worker that took most.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr

CHUNK = (64, 128, 128)
MODEL = """[spec]
name = "fake"
axes = "zyx"
channels_in = 1
channels_out = 2
window = [64, 64, 64]
window_min = [64, 64, 64]
window_step = [0, 0, 0]
margin = [0, 0, 0]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="an eighth of the small volume, grown eightfold only")
    parser.add_argument("--grow", help="e.g. 4,4,4: grow by this alone")
    args = parser.parse_args()
    small = (128, 256, 256) if args.quick else (256, 512, 512)
    grown = [(2, 2, 2)] if args.quick else [(4, 4, 4), (1, 1, 64)]
    if args.grow:
        grown = [tuple(map(int, args.grow.split(",")))]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        (root / "net.fake.toml").write_text(MODEL)
        base = _base_volume(root, small)
        rows = [_run(root, base, (1, 1, 1), args, None)]
        for times in grown:
            volume = _grown(root, base, times)
            rows += [_run(root, volume, times, args, limit) for limit in (rows[0]["peak"], None)]
            shutil.rmtree(volume)
    _print(rows)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


def _base_volume(root: Path, shape: tuple[int, ...]) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    zarr.create_array(str(root / "v111.zarr"), data=noise, chunks=CHUNK)
    return root / "v111.zarr"


def _grown(root: Path, base: Path, times: tuple[int, ...]) -> Path:
    """The base volume repeated along its axes, its chunk files linked rather than copied."""
    source = zarr.open_array(str(base), mode="r")
    counts = [n // c for n, c in zip(source.shape, CHUNK, strict=True)]
    path = root / f"v{'x'.join(map(str, times))}.zarr"
    zarr.create_array(
        str(path), shape=[n * t for n, t in zip(source.shape, times, strict=True)], chunks=CHUNK, dtype="uint8"
    )
    for place in np.ndindex(*(n * t for n, t in zip(counts, times, strict=True))):
        link = path / "c" / "/".join(map(str, place))
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(base / "c" / "/".join(str(i % n) for i, n in zip(place, counts, strict=True)), link)
    return path


def _run(
    root: Path, volume: Path, times: tuple[int, ...], given: argparse.Namespace, memory: int | None
) -> dict[str, Any]:
    command = [sys.executable, "-c", "from unet_engine.commands.cli import main; main()", "run", "--in", str(volume)]
    command += [
        "--model",
        str(root / "net.fake.toml"),
        "--out",
        str(root / "out.zarr"),
        "--overlap",
        str(given.overlap),
        "--overwrite",
        "--json",
    ]
    command += ["--memory", str(memory * max(1, given.workers))] if memory else []
    command += ["--workers", str(given.workers)] if given.workers else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    row = {
        "times": list(times), "voxels": result["voxels"], "memory_limit": memory, "peak": result["peak_rss_bytes"],
        "predicted": result["predicted_rss_bytes"], "windows": result["windows_planned"], "seconds": result["seconds"],
    }  # fmt: skip
    print(row, file=sys.stderr, flush=True)
    return row


def _print(rows: list[dict[str, Any]]) -> None:
    first = rows[0]["peak"]
    print(
        "| voxels | --memory | peak MiB | of the small one | predicted MiB | peak ÷ predicted | windows "
        "|\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        limit = f"{row['memory_limit'] / 2**20:.0f} MiB" if row["memory_limit"] else "default"
        print(
            f"| {'×'.join(map(str, row['times']))} = {row['voxels'] / 1e6:.0f} M | {limit} | "
            f"{row['peak'] / 2**20:.0f} | {row['peak'] / first:.2f} | {row['predicted'] / 2**20:.0f} | "
            f"{row['peak'] / row['predicted']:.2f} | {row['windows']:,} |"
        )


if __name__ == "__main__":
    main()
