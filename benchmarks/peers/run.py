"""Ours against the peers, at equal output, on one machine in one run.

    python benchmarks/peers/run.py [--cases 3D 2D organs scan] [--sizes 1 8 64] [--base 16] [--repeats 1] [--only NAME
        ...] [--python PEERS/bin/python] [--limit SECONDS] [--json FILE] [--markdown FILE] [--quick]

Every contestant runs in a process of its own, pinned to the same two cores with as many threads, and does all of it:
read the Zarr volume, infer, stitch, argmax, write labels as Zarr. Importing libraries, building the PyTorch module and,
for ``torch.compile``, compiling are not counted but told apart; what the engine, dask and bioimageio.core take to load
the ONNX file is. Repetitions take turns. In the case ``scan`` the volume has twice the network's resolution: the image
is resampled, and labels or logits are brought back to it. Agreement is the fraction of voxels with the label that the
engine gives when it blends alike (Gaussian, constant, or cropped to the centres; in ``scan``, by interpolated logits).
Peak memory is that of the process. Lines are those of the contestant's function in `contestants.py`. A peer that cannot
be imported, fails, or takes longer than ``--limit`` is named with the reason. Peers may live in another environment
(``requirements.txt`` here); ``--python`` names its interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import contestants
import numpy as np
import scene
import zarr
from contestants import CONTESTANTS, ENGINES, THREADS, Job

MEBI = 2**20


def main() -> None:
    args = _arguments()
    if args.child:
        print(json.dumps(_child(args)))
        return
    found = [
        row
        for case in args.cases
        for times in args.sizes
        for row in _compare(args, (scene.TOY if args.quick else scene.CASES)[case], times)
    ]
    print(_markdown(found))
    if args.markdown:
        Path(args.markdown).write_text(_markdown(found) + "\n")
    if args.json:
        Path(args.json).write_text(json.dumps({"rows": found, "base": args.base, "threads": THREADS}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(scene.CASES), default=["3D", "2D"])
    parser.add_argument("--sizes", nargs="+", type=int, choices=(1, 8, 64), default=[1])
    parser.add_argument("--base", type=int, default=16, help="filters of the network's first level")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--python", default=sys.executable, help="interpreter that the contestants run in")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for one run of a contestant")
    parser.add_argument("--json")
    parser.add_argument("--markdown")
    parser.add_argument("--quick", action="store_true", help="toy windows and networks: does it run at all")
    parser.add_argument("--child", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    for hidden in ("--case", "--volume", "--onnx", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.base = 4
    return args


# --- one contestant, in its own process ---


def _child(args: argparse.Namespace) -> dict[str, Any]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    case = (scene.TOY if args.quick else scene.CASES)[args.case]
    who = CONTESTANTS[args.child]
    job = Job(args.volume, args.out, args.onnx, case.window, case.chunk, case.spacing)
    begun = time.perf_counter()
    for library in who.imports:
        import_module(library)
    if who.module:
        import torch

        torch.set_num_threads(THREADS)
        job.module = scene.load(case, args.base, str(Path(args.onnx).with_suffix(".pt")))
        if who.module == "compile":
            job.module = torch.compile(job.module, dynamic=False)
        with torch.inference_mode():
            for batch in {4, prod(case.counts[args.times]) % 4 or 4}:  # the last batch is compiled too
                job.module(torch.zeros(batch, 1, *case.window))
    with tempfile.TemporaryDirectory() as folder:
        contestants.prepare(who.name, job, case, Path(folder))
        ready = time.perf_counter()
        who.work(job)
        done = time.perf_counter()
    return {"seconds": done - ready, "prepare_seconds": ready - begun, "peak_bytes": _peak()}


def _peak() -> int:
    """Most resident bytes of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


# --- all of them ---


def _compare(args: argparse.Namespace, case: scene.Case, times: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        scene.save(case, args.base, root)
        scene.volume(case, times, root / "volume.zarr")
        runs: dict[str, list[dict[str, Any]]] = {}
        for repeat in range(args.repeats):
            for name in args.only:
                who = CONTESTANTS[name]
                if len(case.window) not in who.axes or (case.spacing > 1) not in who.spacing:
                    continue
                out = root / f"{list(CONTESTANTS).index(name)}-{repeat}.zarr"
                runs.setdefault(name, []).append(_run(args, case, times, name, root, out))
                print(f"{case.name} {times}x {name}: {_shown(runs[name][-1])}", file=sys.stderr, flush=True)
        return [_row(case, times, name, done, runs) for name, done in runs.items()]


def _run(args: argparse.Namespace, case: scene.Case, times: int, name: str, root: Path, out: Path) -> dict[str, Any]:
    command = [
        args.python,
        __file__,
        "--child",
        name,
        "--case",
        case.name,
        "--base",
        str(args.base),
        "--times",
        str(times),
    ]
    command += ["--volume", str(root / "volume.zarr"), "--onnx", str(root / "net.onnx"), "--out", str(out)]
    command += ["--quick"] if args.quick else []
    pinned = {f"{library}_NUM_THREADS": str(THREADS) for library in ("OMP", "MKL", "OPENBLAS")}
    quiet = {"nnUNet_raw": ".", "nnUNet_preprocessed": ".", "nnUNet_results": ".", "nnUNet_def_n_proc": str(THREADS)}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=args.limit,
            env={**os.environ, **pinned, **quiet},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"stopped after {args.limit:.0f} s"}
    if done.returncode:
        return {"reason": _reason(args, name, done)}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**found, "out": str(out / "0" if (out / "0" / "zarr.json").exists() else out)}


def _reason(args: argparse.Namespace, name: str, done: subprocess.CompletedProcess[str]) -> str:
    """Why a contestant gave nothing: what it said last, and for one that is not installed what pip says."""
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}, as where memory runs out"
    if "ModuleNotFoundError" not in said and "ImportError" not in said:
        return f"failed: {said[:200]}"
    requirement = CONTESTANTS[name].requirement
    asked = subprocess.run(
        [args.python, "-m", "pip", "install", "--dry-run", "--quiet", requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in asked.stderr.splitlines() if line.startswith("ERROR")]
    pip = errors[-1] if errors else f"pip would install {requirement}; see benchmarks/peers/requirements.txt"
    return f"not installed: {said[:120]}; {pip[:200]}"


def _row(
    case: scene.Case, times: int, name: str, done: list[dict[str, Any]], runs: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    who = CONTESTANTS[name]
    row: dict[str, Any] = {
        "case": case.name, "times": times, "shape": list(case.shape(times)), "classes": case.classes,
        "contestant": name,
        "blend": who.blend, "lines": contestants.lines(who.work),
        "reasons": sorted({r["reason"] for r in done if "reason" in r}),
    }  # fmt: skip
    good = [r for r in done if "seconds" in r]
    if not good:
        return row
    seconds = [r["seconds"] for r in good]
    voxels = float(np.prod(case.shape(times)))
    same = ENGINES.get(who.blend, "engine") if case.spacing == 1 else "engine, logits resampled"
    ours = [r for r in runs.get(same, ()) if "out" in r]
    first = "engine" if case.spacing == 1 else "engine, labels resampled"
    return row | {
        "seconds": seconds,
        "prepare_seconds": [r["prepare_seconds"] for r in good],
        "voxels_per_second": voxels / statistics.median(seconds),
        "peak_bytes": max(r["peak_bytes"] for r in good),
        "agreement": _agreement(good[-1]["out"], ours[-1]["out"]) if ours else None,
        # every repetition is compared with the engine's run of the same round
        "times_ours": [
            r["seconds"] / o["seconds"]
            for r, o in zip(done, runs.get(first, done), strict=False)
            if "seconds" in r and "seconds" in o
        ],
    }


def _agreement(one: str, other: str) -> float:
    """Fraction of voxels with the same label, slab by slab."""
    a, b = (zarr.open_array(path, mode="r") for path in (one, other))
    step = a.chunks[0]
    same = sum(int((a[i : i + step] == b[i : i + step]).sum()) for i in range(0, a.shape[0], step))
    return same / float(np.prod(a.shape))


# --- what is told ---


def _shown(run: dict[str, Any]) -> str:
    return run.get("reason") or f"{run['seconds']:.1f} s, peak {run['peak_bytes'] / MEBI:.0f} MiB"


def _markdown(rows: list[dict[str, Any]]) -> str:
    parts = []
    for case, times in dict.fromkeys((row["case"], row["times"]) for row in rows):
        mine = [row for row in rows if (row["case"], row["times"]) == (case, times)]
        shape = "×".join(map(str, mine[0]["shape"]))
        parts.append(
            f"### {case}, {times}× voxels: {shape}, {mine[0]['classes']} classes\n\n"
            "| | blend | Mvoxel/s | time, of the engine's | peak memory | agreement | lines "
            "|\n|---|---|---|---|---|---|---|"
        )
        parts += [_line(row) for row in mine]
        parts.append("")
    return "\n".join(parts)


def _line(row: dict[str, Any]) -> str:
    if "seconds" not in row:
        return f"| {row['contestant']} | {row['blend']} | {'; '.join(row['reasons'])} | | | | {row['lines']} |"
    ratios = sorted(row["times_ours"])
    ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else ""
    agreement = "" if row["agreement"] is None else f"{row['agreement']:.5f}"
    return (
        f"| {row['contestant']} | {row['blend']} | {row['voxels_per_second'] / 1e6:.3f} | {ratio} | "
        f"{row['peak_bytes'] / MEBI:.0f} MiB | "
        f"{agreement} | {row['lines']} |"
    )


if __name__ == "__main__":
    main()
