"""What `--coarse auto` spares in a sparse volume: a full run and one that skips, in turn, each as a process.

    python benchmarks/sparse.py [--dims 2] [--shape 16384,16384] [--clumps 10] [--part 0.05] [--rounds 3] [--json FILE]
        [--volume scan.tif] [--run "--tiling 512,512:128,128:crop"] [--model net.onnx] [--coarse "--coarse-miss 0.005"] [--proof]

Clumps of synthetic tissue lie in resin, for the networks that ship with the engine: cells on a slide in 2D, specimens
in a block in 3D. ``--volume`` takes yours in place of them, with your ``--model``. Options of ``--run`` are those of
both runs. Seconds and processor time are those of the whole command, planning and looking included. Missed is what the
full run calls foreground and the other does not, of all foreground of the full run; all other labels have to be the
same. ``--proof`` plans alone: what is proved, without a run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from command_line import COMMAND

from unet_engine.model.shipped import shipped_model
from unet_export.train.tissue import GREY, NOISE, make_tissue

CHUNK = {2: 512, 3: 64}
DEPTH = 40
"""Planes of the tissue that a specimen in 2D is the middle one of."""
DIFFERENT = 2
"""Specimens that are made; others are these, mirrored."""


def main() -> None:
    args = _arguments()
    shape = tuple(map(int, args.shape.split(","))) if args.shape else {2: (16384,) * 2, 3: (640,) * 3}[args.dims]
    model = args.model or str(shipped_model(f"cells_{args.dims}d.onnx"))
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        root = Path(folder)
        volume = args.volume or str(root / "scan.zarr")
        if not args.volume:
            scene(root / "scan.zarr", shape, args.clumps, args.part)
        common = ["--in", volume, "--model", model, *shlex.split(args.run)]
        if args.proof:
            print(json.dumps(_proved([*common, "--coarse", "auto", *shlex.split(args.coarse)])))
            return
        rows: list[dict[str, Any]] = []
        for _ in range(args.rounds):
            full = _run([*common, "--out", str(root / "full.zarr")])
            sparse = _run([*common, "--out", str(root / "sparse.zarr"), "--coarse", "auto", *shlex.split(args.coarse)])
            rows.append({"full": full, "sparse": sparse, **_compared(root / "full.zarr", root / "sparse.zarr")})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    _print(args.volume or "×".join(map(str, shape)), rows)
    if args.json:
        Path(args.json).write_text(json.dumps({"volume": args.volume or shape, "rows": rows}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, choices=(2, 3), default=2)
    parser.add_argument("--shape")
    parser.add_argument("--clumps", type=int, default=10)
    parser.add_argument("--part", type=float, default=0.05, help="of the voxels that clumps fill")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--volume", help="in place of a synthetic one")
    parser.add_argument("--model")
    parser.add_argument("--run", default="", help="options of both runs")
    parser.add_argument("--coarse", default="", help="options of the run that skips, beside --coarse auto")
    parser.add_argument("--proof", action="store_true", help="plan, and say what is proved")
    parser.add_argument("--work", default=".", help="where volume and outputs lie meanwhile")
    parser.add_argument("--json")
    return parser.parse_args()


def scene(path: Path, shape: tuple[int, ...], clumps: int, part: float) -> None:
    """Resin with `clumps` specimens in it, which fill about `part` of the voxels and do not meet."""
    rng = np.random.default_rng(0)
    side = round((part * np.prod(shape) / clumps / 0.8) ** (1 / len(shape)))
    whole = np.empty(shape, np.uint8)
    for slab in np.array_split(whole, max(1, shape[0] // 32)):
        noise = rng.standard_normal(slab.shape, dtype=np.float32)
        slab[...] = np.clip(GREY["resin"] + NOISE * noise, 1, 255)
    pieces = [_specimen(side, len(shape), seed) for seed in range(min(clumps, DIFFERENT))]
    taken: list[Any] = []
    while len(taken) < clumps:
        lo = np.array([int(rng.integers(0, n - side + 1)) for n in shape])
        if any(np.all(np.abs(lo - other) < side) for other in taken):
            continue
        flips = tuple(slice(None, None, int(rng.choice([-1, 1]))) for _ in shape)
        image, there = (values[flips] for values in pieces[len(taken) % len(pieces)])
        box = whole[tuple(slice(l, l + side) for l in lo)]
        np.copyto(box, image, where=there)
        taken.append(lo)
    chunk = CHUNK[len(shape)]
    zarr.create_array(
        str(path), data=whole, chunks=tuple(min(n, chunk) for n in shape), dimension_names=list("zyx"[-len(shape) :])
    )


def _specimen(side: int, dims: int, seed: int) -> tuple[Any, Any]:
    """Its image, and where it is."""
    image = make_tissue((side if dims == 3 else DEPTH, side, side), seed)[0]
    image = image if dims == 3 else image[DEPTH // 2]
    return image, image != 0


def _run(options: list[str]) -> dict[str, Any]:
    """One run as a process: its seconds, those of all its threads, and what it says."""
    cost, result = _timed("run", [*options, "--overwrite"])
    return {**cost, "windows": result["windows_inferred"], "coarse": result["coarse_choice"]}


def _proved(options: list[str]) -> dict[str, Any]:
    """What a plan proves, and what it takes to do so."""
    cost, plan = _timed("plan", options)
    choice = dict(plan["coarse_choice"])
    return {**cost, **choice, "regions": len(choice["regions"])}


def _timed(what: str, options: list[str]) -> tuple[dict[str, float], dict[str, Any]]:
    command = [*COMMAND, what, *options, "--json"]
    begun, before, load = time.perf_counter(), os.times(), os.getloadavg()[0]
    with tempfile.TemporaryFile("w+") as said:
        code = os.waitstatus_to_exitcode(os.waitpid(_started(command, said.fileno()), 0)[1])
        said.seek(0)
        lines = said.read().strip().splitlines()
    if code:
        raise SystemExit(f"{shlex.join(command)} ended with {code}: {lines[-1:]}")
    after = os.times()
    worked = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": time.perf_counter() - begun, "worked": worked, "load": load}, json.loads(lines[-1])


def _started(command: list[str], out: int) -> int:
    return os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, out, 1)])


def _compared(full: Path, sparse: Path) -> dict[str, float]:
    first, second = (zarr.open_array(str(path / "0"), mode="r") for path in (full, sparse))
    foreground = missed = others = 0
    step = first.chunks[0]
    for lo in range(0, first.shape[0], step):
        a, b = first[lo : lo + step], second[lo : lo + step]
        foreground += int(np.count_nonzero(a))
        missed += int(np.count_nonzero((a != 0) & (b == 0)))
        others += int(np.count_nonzero((a != b) & (b != 0)))
    if others:
        raise SystemExit(f"{others} labels differ that are not background: they should be the same")
    return {"foreground": foreground / np.prod(first.shape), "missed": missed / max(1, foreground)}


def _print(volume: str, rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    choice = first["sparse"]["coarse"]
    print(f"{volume}, foreground {first['foreground']:.1%}, load {rows[-1]['sparse']['load']:.1f}")
    print(choice["kept"] or f"bound {choice['bound']:.2g}, {choice['cells']:,} cells, looking {choice['share']:.1%}")
    print("| | full | --coarse auto | ratio |\n|---|---|---|---|")
    for key in ("seconds", "worked", "windows"):
        pairs = [(row["full"][key], row["sparse"][key]) for row in rows]
        ratios = sorted(a / max(1, b) for a, b in pairs)
        middles = [statistics.median(side) for side in zip(*pairs, strict=True)]
        print(
            f"| {key} | {middles[0]:,.1f} | {middles[1]:,.1f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    print(f"missed: {max(row['missed'] for row in rows):.2g} of the foreground")


if __name__ == "__main__":
    main()
