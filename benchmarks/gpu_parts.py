"""The parts of `gpu_check.py`, each in a process of its own. A part yields figures: (what, value)."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gpu_report import BANDWIDTH, CannotRun, Row

ROOT = Path(__file__).resolve().parents[1]
Figures = Iterator[tuple[str, Any]]


def _need(*modules: str) -> None:
    if lacking := [m for m in modules if importlib.util.find_spec(m) is None]:
        raise CannotRun(f"{', '.join(lacking)} not installed: give a wheel in --wheels")


def _device_name(args: argparse.Namespace) -> str:
    return "simulated" if args.simulate else "cuda:0"


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if found is None:
        raise CannotRun(f"{name} is not on PATH nor in /usr/local/cuda/bin")
    return found


# --- build, tests, sanitizer ---


def build(args: argparse.Namespace) -> Figures:
    """With CMake where it is, for this GPU alone, into the package in the repository."""
    if args.simulate:
        raise CannotRun("simulated: nothing to build")
    _need("nanobind")
    architecture = _architecture()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        cmake = shutil.which("cmake")
        command = [cmake] if cmake else [sys.executable, "-m", "cmake"]
        environment = {**os.environ, "CUDACXX": _tool("nvcc")}
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
    query = [_tool("nvidia-smi"), "--query-gpu=compute_cap", "--format=csv,noheader"]
    return (
        subprocess.run(query, capture_output=True, text=True, check=True)
        .stdout.splitlines()[0]
        .replace(".", "")
        .strip()
    )


def tests(args: argparse.Namespace) -> Figures:
    from gpu_kernels import all_once

    from unet_engine.devices import open_device

    differing = all_once(open_device(_device_name(args)))
    if differing:
        raise RuntimeError(f"other bits than the reference's: {', '.join(differing)}")
    yield "kernels against NumPy", "same bits"
    _need("pytest", "hypothesis", "ml_dtypes", "zarr", "zarrs", "pydantic")
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
    program = _tool("compute-sanitizer")
    for tool in ("memcheck", "racecheck", "initcheck"):
        command = [
            program,
            "--tool",
            tool,
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
            raise RuntimeError(f"{tool}: {summary}")
        yield tool, summary.replace("=========", "").strip()


# --- bandwidth ---


def bandwidth(args: argparse.Namespace) -> Figures:
    from gpu_kernels import bandwidth as measure
    from gpu_kernels import copy_bandwidth

    from unet_engine.devices import open_device

    device = open_device(_device_name(args))
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


# --- the network ---


def _network(args: argparse.Namespace, classes: int = 3) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    """The network on the CPU, its window, and the shape of the synthetic volume."""
    import torch
    from gpu_network import MLPerfUNet

    torch.manual_seed(0)
    if args.simulate:
        return MLPerfUNet(classes, (2, 3, 4, 5, 6)).eval(), (32, 32, 32), (48, 40, 40)
    if args.quick:
        return MLPerfUNet(classes).eval(), (64, 64, 64), (128, 128, 256)
    return MLPerfUNet(classes).eval(), (128, 128, 128), (512, 512, 1024)


def _volume(folder: Path, shape: tuple[int, ...]) -> str:
    """Random int16: as hard to compress as can be."""
    import zarr

    path, rng = str(folder / "volume.zarr"), np.random.default_rng(0)
    chunk = tuple(min(128, n) for n in shape)
    array = zarr.create_array(path, shape=shape, chunks=chunk, dtype="int16")
    for z in range(0, shape[0], chunk[0]):
        part = array[z : z + chunk[0]].shape
        array[z : z + chunk[0]] = rng.integers(-1000, 1000, part, np.int16)
    return path


def _bare(network: Any, window: tuple[int, ...], precision: Any, seconds: float) -> float:
    """Windows per second of the network alone: a batch recorded as a CUDA graph, replayed."""
    import torch

    where = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.inference_mode(), torch.autocast(where, precision, cache_enabled=False):
        net = network.to(where).to(memory_format=torch.channels_last_3d)
        given = torch.randn((1, 1, *window), device=where, dtype=precision)
        if where == "cpu":
            begun, calls = time.perf_counter(), 0
            while time.perf_counter() - begun < seconds or calls < 2:
                net(given)
                calls += 1
            return calls / (time.perf_counter() - begun)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                net(given)
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=side):
                net(given)
        graph.replay()
        torch.cuda.synchronize()
        begun, calls = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            for _ in range(10):
                graph.replay()
            torch.cuda.synchronize()
            calls += 10
        return calls / (time.perf_counter() - begun)


def end_to_end(args: argparse.Namespace) -> Figures:
    """Bare, engine, bare, engine: the bare figure is the mean of before and after, as clocks drift."""
    _need("torch", "zarr", "zarrs", "pydantic")
    import torch
    from gpu_network import flops, save

    import unet_engine
    from unet_engine.report import plan_facts
    from unet_engine.settings import Settings
    from unet_engine.teams import team

    small = args.quick or args.simulate
    network, window, shape = _network(args)
    precision, kind = (torch.bfloat16, "fp32") if args.simulate else (torch.float16, "fp16")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save(network, folder, window, 3, flops(_network(args)[0], window))
        volume = _volume(folder, shape)
        rates, digests, bares = [], [], []
        for n in range(2):
            bares.append(_bare(network, window, precision, 0.2 if small else 4))
            options = {
                "model": model, "backend": "pytorch", "device": _device_name(args), "precision": kind, "overlap": 0.5,
                "out": str(folder / f"out{n}.zarr"),
            }  # fmt: skip
            with team(Settings.of(input=volume, **options)) as crew:
                prepared = crew.prepare()
                facts = plan_facts(prepared)
                result = unet_engine.runner.run_volume(crew, prepared)
            rates.append(result.windows_inferred / result.seconds)
            digests.append(_digest(folder / f"out{n}.zarr"))
            bares.append(_bare(network, window, precision, 0.2 if small else 4))
        bare = sum(bares) / len(bares)
        yield "bare network, FP16, windows/s" if not small else "bare network, small, windows/s", bare
        yield "end to end, windows/s", max(rates)
        ratio = max(rates[0] / (bares[0] + bares[1]) * 2, rates[1] / (bares[2] + bares[3]) * 2)
        yield "end to end / bare network" if not small else "end to end / bare network, small", ratio
        yield "windows", result.windows_inferred
        yield "TFLOP per window", facts["flops"] / facts["windows_planned"] / 1e12
        yield "TFLOP/s of the bare network", bare * facts["flops"] / facts["windows_planned"] / 1e12
        yield "decoding needed, GB/s", facts["reading"]["needed_gb_per_second"]
        yield "decoding found, GB/s", facts["reading"]["found_gb_per_second"]
        if digests[0] != digests[1]:
            raise RuntimeError("two runs gave other bytes")
        yield "two runs", "the same bytes"


def _digest(path: Path) -> str:
    import zarr

    return hashlib.sha256(np.asarray(zarr.open_array(path / "0", mode="r")[...]).tobytes()).hexdigest()


def monai(args: argparse.Namespace) -> Figures:
    _need("torch", "monai", "zarr", "zarrs", "pydantic")
    import torch
    from gpu_network import flops, save
    from monai.inferers import SlidingWindowInferer

    import unet_engine

    network, window, shape = _network(args)
    if not (args.quick or args.simulate):
        shape = (256, 512, 512)  # a quarter: MONAI takes several times as long
    where = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.float16 if where == "cuda" else torch.bfloat16
    inferer = SlidingWindowInferer(window, sw_batch_size=4, overlap=0.5, mode="gaussian", sw_device=where, device=where)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save(network, folder, window, 3, flops(_network(args)[0], window))
        volume = _volume(folder, shape)
        import zarr

        net = network.to(where)
        theirs = []
        for _ in range(2):
            begun = time.perf_counter()
            with torch.inference_mode(), torch.autocast(where, kind):
                scan = torch.from_numpy(zarr.open_array(volume, mode="r")[...]).to(where).float()[None, None]
                labels = inferer((scan + 1000) / 2000, net).argmax(1).to(torch.uint8).cpu().numpy()
            theirs.append(time.perf_counter() - begun)
        del scan, labels, net
        ours = []
        for n in range(2):
            result = unet_engine.run(
                volume, model=model, backend="pytorch", device=_device_name(args), out=str(folder / f"o{n}.zarr"),
                precision="fp32" if args.simulate else "fp16", overlap=0.5,
            )  # fmt: skip
            ours.append(result.seconds)
        yield "MONAI, s", min(theirs)
        yield "engine, s", min(ours)
        small = ", small" if args.quick or args.simulate else ""
        yield f"engine / MONAI with AMP{small}", min(theirs) / min(ours)


# --- memory ---


@contextmanager
def _peak(device: Any) -> Iterator[Callable[[], int]]:
    """Most device memory in use since it was entered, looked at every two milliseconds."""
    before, least, stop = device.free_bytes(), [device.free_bytes()], threading.Event()

    def look() -> None:
        device.use()
        while not stop.wait(0.002):
            least[0] = min(least[0], device.free_bytes())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: before - least[0]
    finally:
        stop.set()
        thread.join()


def memory(args: argparse.Namespace) -> Figures:
    _need("zarr", "zarrs", "pydantic", "torch")
    from gpu_network import flops, save

    import unet_engine
    from unet_engine.devices import open_device

    small = args.quick or args.simulate
    device = open_device(_device_name(args))
    network, window, _ = _network(argparse.Namespace(quick=True, simulate=args.simulate))
    side = 40 if args.simulate else 128
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save(
            network,
            folder,
            window,
            3,
            flops(_network(argparse.Namespace(quick=True, simulate=args.simulate))[0], window),
        )
        for factor in (1, 8) if small else (1, 8, 64):
            place = folder / str(factor)
            place.mkdir()
            volume = _volume(place, (side * {1: 1, 8: 2, 64: 4}[factor],) * 3)
            with _peak(device) as peak:
                unet_engine.run(
                    volume, model=model, backend="pytorch", device=_device_name(args), out=str(place / "out.zarr"),
                    precision="fp32" if args.simulate else "fp16",
                )  # fmt: skip
                peaks[factor] = peak()
            yield f"peak device memory, {factor} times the volume, GiB", peaks[factor] / 2**30
    if 64 in peaks:
        yield "peak memory, 64 times the volume / 1 time", peaks[64] / max(1, peaks[1])
    if not small:
        yield from _hundred_classes(args, device)


def _hundred_classes(args: argparse.Namespace, device: Any) -> Figures:
    """100 classes at 384³ with a network of no cost, so that what is measured is stitching."""
    _need("monai")
    import torch
    from gpu_network import MLPerfUNet, save
    from monai.inferers import SlidingWindowInferer

    import unet_engine

    window = (128, 128, 128)
    network = MLPerfUNet(100, (2, 4)).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, volume = save(network, folder, window, 100, 1), _volume(folder, (384, 384, 384))
        with _peak(device) as peak:
            unet_engine.run(
                volume, model=model, backend="pytorch", device="cuda:0", precision="fp16", out=str(folder / "o.zarr")
            )
            ours = peak()
        torch.cuda.reset_peak_memory_stats()
        inferer = SlidingWindowInferer(
            window, sw_batch_size=1, overlap=0.5, mode="gaussian", sw_device="cuda", device="cuda"
        )
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            inferer(torch.zeros((1, 1, 384, 384, 384), device="cuda"), network.cuda()).argmax(1)
        theirs = torch.cuda.max_memory_allocated()
    yield "peak device memory at 100 classes, GiB", ours / 2**30
    yield "MONAI's, GiB", theirs / 2**30
    yield "peak memory at 100 classes / MONAI's", ours / theirs


# --- what a machine may not have ---


def tensorrt(args: argparse.Namespace) -> Figures:
    """The bare engine from random weights in FP16 and INT8: its speed does not depend on them."""
    if args.simulate:
        raise CannotRun("simulated: no engine runs there")
    from unet_engine.backends import trt

    if not trt.installed():
        raise CannotRun("TensorRT is not installed; the figure of INT8 stays not measured")
    _need("onnxscript", "zarr", "pydantic")
    import torch

    from unet_engine.backends import Setup, open_on_device
    from unet_engine.model_file import open_model
    from unet_engine.opening import warm_up

    network, window, _ = _network(args)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "net.onnx")
        torch.onnx.export(network.half().cuda(), (torch.zeros((1, 1, *window)).half().cuda(),), str(path), dynamo=True)
        backend = open_on_device("tensorrt", Setup(open_model(path, window), window, "cuda:0"))
        seconds = min(warm_up(backend) for _ in range(20))
        yield "bare network, FP16 in TensorRT, windows/s", 1 / seconds
    raise CannotRun("INT8 needs a quantised graph: run unet-engine quantize --backend tensorrt, then bench its file")


def gpus(args: argparse.Namespace) -> Figures:
    """Bytes per second of halos between two GPUs: through host memory as built, and peer to peer as it could be."""
    if args.simulate:
        raise CannotRun("simulated: there is one device")
    import torch

    if torch.cuda.device_count() < 2:
        raise CannotRun("one GPU: halos between GPUs stay not measured")
    count = 2**28
    source, target = (
        torch.ones(count, dtype=torch.uint8, device="cuda:0"),
        torch.empty(count, dtype=torch.uint8, device="cuda:1"),
    )
    staging = torch.empty(count, dtype=torch.uint8, pin_memory=True)
    for name, move in (
        ("through host memory", lambda: (staging.copy_(source), target.copy_(staging))),
        ("peer to peer", lambda: target.copy_(source)),
    ):
        move()
        torch.cuda.synchronize(1)
        begun = time.perf_counter()
        for _ in range(10):
            move()
        torch.cuda.synchronize(0)
        torch.cuda.synchronize(1)
        yield f"halos {name}, GB/s", 10 * count / (time.perf_counter() - begun) / 1e9


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "build": build, "tests": tests, "sanitizer": sanitizer, "bandwidth": bandwidth, "end-to-end": end_to_end, "monai": monai,
    "memory": memory, "tensorrt": tensorrt, "gpus": gpus,
}  # fmt: skip
