"""Parts of `gpu_check.py` about the kernels: built, tested, watched by compute-sanitizer, and their bandwidth."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from gpu_common import ROOT, Figures, device_name, need, tool
from gpu_report import BANDWIDTH, CannotRun, Row


def build(args: argparse.Namespace) -> Figures:
    """With CMake where it is, for this GPU alone, into the package in the repository."""
    if args.simulate:
        raise CannotRun("simulated: nothing to build")
    need("nanobind")
    architecture = _architecture()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        cmake = shutil.which("cmake")
        command = [cmake] if cmake else [sys.executable, "-m", "cmake"]
        environment = {**os.environ, "CUDACXX": tool("nvcc")}
        options = ["-DUNET_ENGINE_CUDA=ON", "-DUNET_ENGINE_WERROR=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"]
        options += [f"-DPython_EXECUTABLE={sys.executable}"]
        for step in (
            [*command, "-S", str(ROOT), "-B", folder, *options],
            [*command, "--build", folder, "-j", str(os.cpu_count())],
        ):
            done = subprocess.run(step, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
        built = [path for path in Path(folder).glob("_halo*") if path.suffix in (".so", ".pyd")]
        for path in built:
            shutil.copy(path, ROOT / "engine" / "unet_engine")
    yield "architecture", f"sm_{architecture}"
    yield "modules", ", ".join(sorted(path.name.partition(".")[0] for path in built))
    yield "seconds", time.perf_counter() - begun
    yield "extension suffix", sysconfig.get_config_var("EXT_SUFFIX")


def _architecture() -> str:
    query = [tool("nvidia-smi"), "--query-gpu=compute_cap", "--format=csv,noheader"]
    return (
        subprocess.run(query, capture_output=True, text=True, check=True)
        .stdout.splitlines()[0]
        .replace(".", "")
        .strip()
    )


def tests(args: argparse.Namespace) -> Figures:
    from gpu_kernels import all_once

    from unet_engine.devices.opening import open_device

    differing = all_once(open_device(device_name(args)))
    if differing:
        raise RuntimeError(f"other bits than the reference's: {', '.join(differing)}")
    yield "kernels against NumPy", "same bits"
    need("pytest", "hypothesis", "ml_dtypes", "zarr", "zarrs", "pydantic")
    files = (
        ["test_kernels.py"]
        if args.quick or args.simulate
        else ["test_kernels.py", "test_device_pipeline.py", "test_device_plan.py"]
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(str(ROOT / "tests" / name) for name in files),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(
            next((line for line in done.stdout.splitlines() if line.startswith("FAILED")), done.stdout[-200:])
        )
    yield "pytest", f"{len(files)} file(s) passed"


def sanitizer(args: argparse.Namespace) -> Figures:
    if args.simulate:
        raise CannotRun("simulated: nothing to watch")
    program = tool("compute-sanitizer")
    for check in ("memcheck", "racecheck", "initcheck"):
        command = [
            program,
            "--tool",
            check,
            "--error-exitcode",
            "9",
            sys.executable,
            str(ROOT / "benchmarks" / "gpu_kernels.py"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        summary = next(
            (line for line in reversed(done.stdout.splitlines()) if "SUMMARY" in line), done.stderr.strip()[-200:]
        )
        if done.returncode:
            raise RuntimeError(f"{check}: {summary}")
        yield check, summary.replace("=========", "").strip()


def bandwidth(args: argparse.Namespace) -> Figures:
    from gpu_kernels import bandwidth as measure
    from gpu_kernels import copy_bandwidth

    from unet_engine.devices.opening import open_device

    device = open_device(device_name(args))
    small = args.quick or args.simulate
    seconds = 0.01 if small else 0.25
    copied = copy_bandwidth(device, 2**20 if args.simulate else 2**30, seconds)
    yield "copy on the device, GB/s", copied / 1e9
    for classes in (2, 16, 104):
        # with few classes a larger window, so that neither caches nor the host's launches decide
        window = 8 if args.simulate else 64 if args.quick else 256 if classes == 2 else 128
        for name, figures in measure(device, classes, window, "float16", seconds).items():
            share = figures["bytes_per_second"] / copied
            what = f"{name}, {classes} classes: share of the copy's bandwidth"
            judged = name != "gather" and not small
            yield Row(what, share, share >= BANDWIDTH if judged else None, f"at least {BANDWIDTH:g}" if judged else "")
