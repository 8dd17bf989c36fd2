"""Everything that needs a GPU, in one run of under eight minutes: builds, tests, measures, and writes one JSON and one
Markdown table.

    python benchmarks/gpu_check.py [--quick] [--wheels FOLDER] [--only PART,PART] [--json FILE] [--table FILE]

Run it from the repository's root, with Python, nvcc and PyTorch for CUDA there. What else is missing is installed from
the wheels in ``--wheels`` (`gpu_wheels.py` fetches them) into a folder of its own, without a network. Every part has a
time budget and is a process of its own, so that one that hangs or fails takes nothing with it; a part that cannot run
says why. Ratios are of figures measured in the same process, turn by turn.

    build        the CUDA module for this GPU's architecture, with warnings as errors
    tests        kernel, pipeline and back end tests, and every kernel once against NumPy
    sanitizer    compute-sanitizer: memcheck, racecheck, initcheck over every kernel
    bandwidth    kernels at 2, 16, 104 classes against a copy on the device
    norm         InstanceNorm of ours against PyTorch's, alone and in MLPerf's 3D U-Net
    end-to-end   MLPerf's 3D U-Net on a synthetic volume, Zarr to Zarr, against the bare network; the same bytes twice
    monai        MONAI's SlidingWindowInferer with AMP on the same network and volume
    memory       peak device memory from 1 to 64 times a volume; 100 classes at 384³ against MONAI's
    tensorrt     the bare engine in FP16 and INT8, where TensorRT is installed
    gpus         halos between two processes by TCP and UCX, and between two GPUs, where there are two
    decoding     GB/s of voxels decoded by the host's threads, and by nvCOMP where it is installed, against GB/s needed

Five more run when --only names them, as their time is not among the eight minutes:

    classes      as end-to-end with 16 and 104 classes
    int8         our INT8 convolutions in PyTorch: the CPU's bits, cuDNN's FP16, and the whole network
    grid         sums brought to a grid of twice the resolution, linear and cubic: the host's bits, and bytes moved against
                 a copy
    resample     a scan brought to a grid of half the resolution, likewise
    tiling       teravoxels an hour of the network for cells with --tiling auto; needs onnx and protobuf

Exit codes: 0 all parts ran and held, or were left out as the machine or an extra is not there for them; 1 a part failed
or a target was missed; 2 wrong arguments; 3 there is no GPU; 4 a part could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_report import CannotRun, LeftOut, Part, Row, exit_code, table

ROOT = Path(__file__).resolve().parents[1]
NO_GPU = 3
BUDGETS = {
    "build": 50, "tests": 55, "sanitizer": 50, "bandwidth": 10, "norm": 20, "end-to-end": 85, "monai": 35, "memory": 55,
    "tensorrt": 55,
    "gpus": 20, "decoding": 15,
}  # fmt: skip
"""Seconds per part: 450 together, which leaves half a minute for installing wheels."""
FURTHER = {"classes": 120, "int8": 75, "grid": 40, "resample": 30, "tiling": 90}
"""Of parts that run when they are named."""


def main(arguments: list[str] | None = None) -> int:
    args = _arguments(arguments)
    if args.part:
        return _one_part(args)
    if not args.simulate and not _gpus():
        print(
            "no CUDA GPU on this machine: nothing was built or measured; run this where nvidia-smi shows one",
            file=sys.stderr,
        )
        return NO_GPU
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(args, Path(folder))
        parts = [_run_part(name, args, environment, Path(folder)) for name in args.only]
    report = {
        "machine": _machine(),
        "quick": args.quick,
        "simulated": args.simulate,
        "parts": [asdict(part) for part in parts],
    }
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    text = table(parts)
    args.table.write_text(text)
    print(text)
    return exit_code(parts)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it all run")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install what is missing from")
    parser.add_argument("--only", default=",".join(BUDGETS), help="parts, separated by commas")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--table", type=Path, default=Path("gpu_check.md"))
    parser.add_argument(
        "--simulate", action="store_true", help="the simulated device at toy size: for the tests of this script"
    )
    parser.add_argument("--part", choices=BUDGETS | FURTHER, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.only = args.only.split(",")
    if unknown := [name for name in args.only if name not in BUDGETS | FURTHER]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(BUDGETS | FURTHER)}")
    if args.wheels and not args.wheels.is_dir():
        parser.error(f"--wheels {args.wheels} is no folder")
    return args


def _gpus() -> int:
    sys.path[:0] = [str(ROOT / "engine")]
    try:
        from unet_engine.machine import gpu_count
    except ImportError:  # psutil may only be in the wheels
        done = (
            subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
            if _which("nvidia-smi")
            else None
        )
        return len(done.stdout.splitlines()) if done and done.returncode == 0 else 0
    return gpu_count()


def _which(name: str) -> str | None:
    import shutil

    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def _environment(args: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Where the parts find our packages and those of the wheels."""
    paths = [str(ROOT / name) for name in ("engine", "export", "tests", "benchmarks")]
    if args.wheels:
        site = folder / "site"
        wheels = [str(wheel) for wheel in sorted(args.wheels.glob("*.whl"))]
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--target",
            str(site),
            *wheels,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"the wheels cannot be installed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        paths.append(str(site))
    paths += [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "UNET_ENGINE_CACHE": str(folder / "cache")}


def _run_part(name: str, args: argparse.Namespace, environment: dict[str, str], folder: Path) -> Part:
    """One part as a process of its own, ended when its time is over."""
    result, budget = folder / f"{name}.json", (BUDGETS | FURTHER)[name]
    command = [sys.executable, __file__, "--part", name, "--json", str(result)]
    command += [flag for flag, on in (("--quick", args.quick), ("--simulate", args.simulate)) if on]
    begun = time.perf_counter()
    print(f"{name} ...", file=sys.stderr, flush=True)
    child = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True
    )  # fmt: skip
    try:
        _, said = child.communicate(timeout=budget)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # with all that it started
        child.communicate()
        rows = _rows(result)
        return Part(name, "not run", f"took longer than its {budget} s", time.perf_counter() - begun, rows)
    seconds = time.perf_counter() - begun
    if child.returncode or not result.exists():
        last = (said.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        rows = _rows(result)
        return Part(name, "failed", last[:300], seconds, rows)
    found = json.loads(result.read_text())
    return Part(name, found["state"], found["why"], seconds, [Row(**row) for row in found["rows"]])


def _rows(result: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(result.read_text())["rows"]] if result.exists() else []


def _one_part(args: argparse.Namespace) -> int:
    import gpu_parts

    part = Part(args.part, "ran")
    try:
        for row in gpu_parts.PARTS[args.part](args):  # what was measured before something failed is kept
            part.rows.append(row if isinstance(row, Row) else Row.of(*row))
            _keep(part, args.json)
    except LeftOut as lacking:
        part.state, part.why = "left out", str(lacking)
    except CannotRun as lacking:
        part.state, part.why = "not run", str(lacking)
    except ImportError as error:
        part.state, part.why = "not run", f"{error.name or error} is not installed"
    except Exception as error:
        part.state, part.why = "failed", f"{type(error).__name__}: {error}".splitlines()[0][:300]
    _keep(part, args.json)
    return 0


def _keep(part: Part, path: Path) -> None:
    """Written whole or not at all: a part may be ended at any time, and what it measured stays."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(part)))
    new.replace(path)


def _machine() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }
    if smi := _which("nvidia-smi"):
        query = [
            smi,
            "--query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem",
            "--format=csv,noheader",
        ]
        facts["gpus"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    return facts


if __name__ == "__main__":
    sys.exit(main())
