"""``unet-engine doctor``: what this machine has, and which back ends and precisions work on it, found out by running a
small network.

Every check is a process of its own, so that a library that ends its process (a driver too old, an instruction that is
missing) shows as one line and not as the end of the report.
"""

from __future__ import annotations

import ctypes
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unet_engine import cores, machine
from unet_engine.errors import UnetEngineError, first_line
from unet_engine.units import size
from unet_engine.version import version_of

WINDOW = (16, 16, 16)
SECONDS = 120
"""A check that takes longer counts as hung."""
INSTRUCTIONS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "bf16",
    "i8mm",
)
"""Instruction sets that decide which precisions are fast, as Linux calls them (x86 and ARM)."""
PACKAGES = {
    "openvino": ("openvino", "openvino"),
    "onnxruntime": ("onnxruntime", "unet-engine[onnxruntime]"),
    "torch": ("torch", "unet-engine[torch]"),
    "tensorrt": ("tensorrt_rtx_cu13_bindings", "unet-engine[tensorrt]"),
    "cuda-core": ("cuda-core", "unet-engine[cuda]"),
    "cuda-bindings": ("cuda-bindings", "unet-engine[cuda]"),
    "nncf": ("nncf", "unet-engine[quantize]"),
    "onnxscript": ("onnxscript", "unet-engine[export]"),
}
"""Per library the distribution that brings it, and what to install for it."""
OTHER_NAMES = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx"),
    "onnxruntime": ("onnxruntime-gpu",),
}


@dataclass(frozen=True)
class Check:
    """One back end in one precision on one device, tried out."""

    backend: str
    device: str
    precision: str
    works: bool
    milliseconds: float | None
    """Per window of 16 voxels a side: says that it works, not how fast it is."""
    difference: float | None
    """Largest difference from OpenVINO in fp32, relative to the largest output."""
    said: str


def facts() -> dict[str, str]:
    """The machine in words, name by name."""
    from unet_engine.devices.opening import missing
    from unet_engine.stitching import operations

    gpus = machine.gpu_count()
    nvcc = shutil.which("nvcc")
    found = {
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "processor": _processor(),
        "instructions": ", ".join(_instructions()) or "unknown",
        "memory": f"{size(machine.available_memory())} available",
        "driver": _driver() or "no NVIDIA driver",
        "gpus": ", ".join(_gpu_names(gpus)) or "none",
        "nvcc": (_first_line_of([nvcc, "--version"], "release") if nvcc else "")
        or "not found; only needed to build the CUDA extension",
        "stitching": "native extension"
        if operations.IMPLEMENTATION == "native"
        else "NumPy; reinstall with a C++ compiler for the native one",
        "second opinion": "onnxruntime is asked whether openvino computes what a model file says"
        if _there("onnxruntime")
        else "nobody to ask; pip install 'unet-engine[onnxruntime]'",
        "stitching on GPUs": missing() or "CUDA module and cuda-core",
    }
    return found | {name: _installed(name) for name in PACKAGES}


def _there(name: str) -> bool:
    from unet_engine.backends.libraries import record

    return record(name).installed


def _installed(name: str) -> str:
    distribution, install = PACKAGES[name]
    for candidate in (distribution, *OTHER_NAMES.get(name, ())):
        if found := version_of(candidate):
            return found
    return f"not installed; pip install '{install}'"


def _processor() -> str:
    """Its name, cores that this process may use, and how they are grouped where they are."""
    count, whole, nodes = machine.cpu_count(), cores.whole(), len(cores.nodes())
    threads = f", threads of {whole} core(s)" if whole < count else ""
    return f"{cores.model_name()}, {count} core(s){threads}" + (f" on {nodes} NUMA nodes" if nodes > 1 else "")


def _instructions() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = next((set(line.split()) for line in text.splitlines() if line.startswith(("flags", "Features"))), set())
    return [name for name in INSTRUCTIONS if name in flags]


def _driver() -> str:
    """The CUDA version that the driver speaks, e.g. ``CUDA 13.0``."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ""
    number = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return "a driver that does not answer"
    return f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"


def _gpu_names(count: int) -> Iterator[str]:
    if not count:
        return
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    for i in range(count):
        name = ctypes.create_string_buffer(256)
        library.cuDeviceGetName(name, 256, i)
        yield name.value.decode(errors="replace")


def _first_line_of(command: list[str], word: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return ""
    return next((line.strip() for line in done.stdout.splitlines() if word in line), "")


# --- checks ---


def planned() -> list[tuple[str, str, str]]:
    """(back end, device, precision) of all that this engine could run on a machine with these devices."""
    from unet_engine.backends.libraries import LIBRARIES

    devices = {"cpu": "cpu", **({"cuda": "cuda:0"} if machine.gpu_count() else {})}
    return [
        (library.name, device, precision)
        for kind, device in devices.items()
        for library in LIBRARIES
        if library.modules  # the one without stands for none
        for precision in library.devices.get(kind, ())
    ]


def examine(done: Callable[[Check], None] = lambda check: None) -> list[Check]:
    """Run all that is planned, each in a process of its own; `done` is called after each."""
    found = []
    for combination in planned():
        found.append(_in_a_process(*combination))
        done(found[-1])
    return found


def _in_a_process(backend: str, device: str, precision: str) -> Check:
    command = [sys.executable, "-m", "unet_engine.commands.doctor", backend, device, precision]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Check(backend, device, precision, False, None, None, f"did not answer for {SECONDS} s")  # noqa: FBT003
    try:
        return Check(**json.loads(ended.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        how = f"signal {-ended.returncode}" if ended.returncode < 0 else f"exit code {ended.returncode}"
        return Check(backend, device, precision, False, None, None, f"ended its process ({how})")  # noqa: FBT003


def attempt(backend: str, device: str, precision: str) -> Check:
    """One check, in this process."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            milliseconds, difference = _run(backend, device, precision, Path(folder))
    except UnetEngineError as error:
        return Check(backend, device, precision, False, None, None, str(error))  # noqa: FBT003
    except Exception as error:  # libraries raise what they like, and a check has to report all of it
        return Check(backend, device, precision, False, None, None, first_line(error))  # noqa: FBT003
    return Check(backend, device, precision, True, milliseconds, difference, "works")  # noqa: FBT003


def _run(backend: str, device: str, precision: str, folder: Path) -> tuple[float, float]:
    import numpy as np

    from unet_engine.backends.base import Setup
    from unet_engine.backends.libraries import choose_backend, open_backend
    from unet_engine.model.file import open_model
    from unet_engine.model.shipped import shipped_model

    model = open_model(shipped_model("cells_3d.onnx"))
    window = np.random.default_rng(0).random((1, 1, *WINDOW), dtype=np.float32)
    if backend == "pytorch":
        model = replace(open_model(_torch_model(folder, model.spec)), trusted=True)  # made here
    choose_backend(model, device, backend)
    with _opened(backend, Setup(model, WINDOW, device, precision), window) as running:
        got = running.infer(window)
        begun = time.perf_counter()
        running.infer(window)
        milliseconds = 1000 * (time.perf_counter() - begun)
    if backend == "pytorch":
        return milliseconds, 0.0 if np.isfinite(np.asarray(got, np.float32)).all() else float("inf")
    expected = open_backend("openvino", Setup(model, WINDOW)).infer(window)
    return milliseconds, float(np.abs(np.asarray(got, np.float32) - expected).max() / np.abs(expected).max())


def _opened(backend: str, setup: Any, window: Any) -> Any:
    """The back end on the network it needs for the precision, made here where it is another one than the file's own."""
    from unet_export.quantize import gate

    data = None
    if setup.precision == "int8" and backend == "openvino":
        from unet_export.quantize.openvino_int8 import OpenVINOInt8

        data = OpenVINOInt8(setup.model, WINDOW, [window[0]]).network()
    elif backend == "tensorrt" and setup.precision != "fp32":
        data = _typed(setup, window)
    return gate.opened(gate.Candidate(setup, backend, data))


def _typed(setup: Any, window: Any) -> bytes:
    import onnx

    from unet_engine.model.onnx_half import to_half
    from unet_engine.model.onnx_layers import Graph
    from unet_engine.model.onnx_transposed import as_convolutions
    from unet_export.quantize.qdq import quantizable, thresholds, to_qdq

    proto = as_convolutions(onnx.load(setup.model.path))
    if setup.precision == "int8":
        graph = Graph(proto)
        proto = to_qdq(graph, thresholds(graph, [n.input[0] for n in quantizable(graph)], [window[0]]))
    typed: bytes = to_half(proto).SerializeToString()
    return typed


def _torch_model(folder: Path, spec: Any) -> Path:
    """A single convolution as TorchScript: PyTorch has no file of its own among those that are shipped."""
    try:
        import torch
    except ImportError as error:
        raise UnetEngineError("PyTorch is not installed; run: pip install 'unet-engine[torch]'") from error
    from unet_engine.model.spec import METADATA_KEY

    network = torch.jit.trace(torch.nn.Conv3d(1, spec.channels_out, 3, padding=1).eval(), torch.zeros(1, 1, *WINDOW))
    path = folder / "net.pt"
    torch.jit.save(network, str(path), _extra_files={METADATA_KEY: spec.model_dump_json()})
    return path


if __name__ == "__main__":
    print(json.dumps(asdict(attempt(*sys.argv[1:4]))))
