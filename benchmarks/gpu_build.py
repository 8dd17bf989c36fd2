"""Parts of `gpu_check.py` about the kernels: built, tested, watched by compute-sanitizer, and their bandwidth."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from gpu_common import ROOT, Figures, device_name, need, tool
from gpu_report import BANDWIDTH, CannotRun, Row

ROOMS = {"_halo": "stitching", "_halo_loop": "devices", "_halo_cuda": "devices"}
"""Modules, and the rooms of the package that they are installed into."""
SOURCES = {
    "_halo": ("host_module.cpp", "rows.cpp"),
    "_halo_loop": ("device_module.cpp", "launch_loop.cpp"),
    "_halo_cuda": ("device_module.cpp", "launch_cuda.cu"),
}


def build(args: argparse.Namespace) -> Figures:
    """With CMake where it is, else by the compilers themselves; for this GPU alone, into the package in the
    repository."""
    if args.simulate:
        raise CannotRun("simulated: nothing to build")
    need("build", args)
    architecture = _architecture()
    yield "architecture", f"sm_{architecture}"
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        steps = [_with_cmake(architecture, folder)] if shutil.which("cmake") else by_hand(architecture, Path(folder))
        for together in steps:
            _run(together)
        built = [path for path in Path(folder).glob("_halo*") if path.suffix in (".so", ".pyd")]
        for path in built:
            shutil.copy(path, ROOT / "engine" / "unet_engine" / ROOMS[path.name.partition(".")[0]])
    yield "modules", ", ".join(sorted(path.name.partition(".")[0] for path in built))
    yield "seconds", time.perf_counter() - begun
    yield "extension suffix", sysconfig.get_config_var("EXT_SUFFIX")


def _with_cmake(architecture: str, folder: str) -> list[list[str]]:
    options = ["-DUNET_ENGINE_CUDA=ON", "-DUNET_ENGINE_WERROR=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"]
    options += [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_CUDA_COMPILER={tool('nvcc')}"]
    first = ["cmake", "-S", str(ROOT), "-B", folder, *options]
    return [["sh", "-c", f"{shlex.join(first)} && {shlex.join(['cmake', '--build', folder, '-j', '16'])}"]]


def by_hand(architecture: str, folder: Path) -> list[list[list[str]]]:
    """Commands that make the modules as `CMakeLists.txt` does; those of one step may run at once."""
    import nanobind

    place, include = Path(nanobind.__file__).parent, sysconfig.get_paths()["include"]
    found = [f"-I{p}" for p in (include, place / "include", place / "ext" / "robin_map" / "include")]
    host = ["-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", *found]
    ours = [*host, "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    cuda = ["-std=c++17", "-O3", "-DNDEBUG", "--fmad=false", "-Werror", "all-warnings", "-Xcompiler=-fPIC"]
    cuda += ["-Xcompiler=-fvisibility=hidden", f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
    compiled = [["c++", *host, "-fno-strict-aliasing", "-c", str(place / "src" / "nb_combined.cpp"), "-o", "nb.o"]]
    linked = []
    for name, sources in SOURCES.items():
        objects = []
        for source in sources:
            objects.append(f"{name}.{source}.o")
            start = [tool("nvcc"), *cuda] if source.endswith(".cu") else ["c++", *ours]
            start += ["-DUNET_ENGINE_LOOP"] if name == "_halo_loop" else []
            compiled.append([*start, "-c", str(ROOT / "cpp_ext" / source), "-o", objects[-1]])
        out = f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
        if name == "_halo_cuda":
            linked.append([tool("nvcc"), "-shared", "-cudart=static", *objects, "nb.o", "-o", out])
        else:
            linked.append(["c++", "-shared", *objects, "nb.o", "-lpthread", "-o", out])
    return [[["env", "-C", str(folder), *command] for command in step] for step in (compiled, linked)]


def _run(commands: list[list[str]]) -> None:
    """All of them at once. Raises `RuntimeError` with what the first that fails says."""
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands]
    said = [child.communicate()[0] for child in running]
    for child, text in zip(running, said, strict=True):
        if child.returncode:
            raise RuntimeError(next((line for line in text.splitlines() if "error" in line), text.strip()[-300:]))


def _architecture() -> str:
    query = [tool("nvidia-smi"), "--query-gpu=compute_cap", "--format=csv,noheader"]
    return (
        subprocess.run(query, capture_output=True, text=True, check=True)
        .stdout.splitlines()[0]
        .replace(".", "")
        .strip()
    )


TEST_FILES = (
    "stitching/test_kernels.py", "stitching/test_interpolate_kernels.py", "stitching/test_instance_norm.py",
    "pipeline/gpu/test_device_pipeline.py", "pipeline/gpu/test_device_plan.py",
)  # fmt: skip


def tests(args: argparse.Namespace) -> Figures:
    from gpu_kernels import all_once

    from unet_engine.devices.opening import open_device

    differing = all_once(open_device(device_name(args)))
    if differing:
        raise RuntimeError(f"other bits than the reference's: {', '.join(differing)}")
    yield "kernels against NumPy", "same bits"
    need("tests", args)
    files = TEST_FILES[:1] if args.quick or args.simulate else TEST_FILES
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
