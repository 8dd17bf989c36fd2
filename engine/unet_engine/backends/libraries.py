"""The libraries that run networks: one record each, and opening a network with one of them.

A new library is a module in this folder and a record in `LIBRARIES`. The module has a `Backend` for the CPU, a
`DeviceBackend` for GPUs, or both, and is imported when one of them is opened.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from unet_engine.backends import gpu_choice, tensorrt_api
from unet_engine.backends.base import Backend, Setup
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.host_ring import HostRing
from unet_engine.devices.opening import capabilities_of, is_gpu, open_device
from unet_engine.errors import BackendError
from unet_engine.model.file import ModelFile

CPU, GPU = "cpu", "cuda"
"""The kinds of device."""


@dataclass(frozen=True)
class Library:
    """What is known of a library before it is imported. Classes and functions are named as ``module:name``, of modules
    in this folder."""

    name: str
    formats: tuple[str, ...]
    """Of model files."""
    devices: Mapping[str, tuple[str, ...]]
    """Kinds of device it runs on, with the precisions it computes in there where the processor does."""
    modules: tuple[str, ...] = ()
    """What must be importable; one of them is enough."""
    extra: str = ""
    """Of unet-engine, that installs it; empty where unet-engine itself does."""
    host: str = ""
    """The `Backend` on the CPU."""
    on_device: str = ""
    """The `DeviceBackend` on a GPU."""
    bound_to: str = ""
    """Function of a device: what a verdict holds for, which is more than the library's name."""
    computes_in: str = ""
    """Function of a device: the precisions that the processor here computes in; for all of `devices` where there is
    none."""
    sees_gpu: str = ""
    """Function: whether the build that is installed can use a GPU. Every build can where there is none."""
    formats_on_gpus: tuple[str, ...] = ()
    """Further formats of model files that it runs there."""
    joins_threads: bool = False
    """Whether several threads can infer one window here, on the CPU."""
    typed: bool = False
    """Whether it computes in the types that the graph says, so that a lower precision needs a network of its own."""

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return f"pip install {shlex.quote(f'unet-engine[{self.extra}]' if self.extra else self.name)}"

    @property
    def installed(self) -> bool:
        return not self.modules or any(find_spec(name) for name in self.modules)

    def takes(self, model_format: str, device: str) -> bool:
        """Whether it runs model files of that format on `device`."""
        return model_format in (*self.formats, *(self.formats_on_gpus if is_gpu(device) else ()))

    def runs_on(self, device: str) -> bool:
        return (GPU if is_gpu(device) else CPU) in self.devices

    def precisions(self, device: str) -> tuple[str, ...]:
        """Those it computes in on `device`, as far as can be told before a network is loaded."""
        able = self.devices.get(GPU if is_gpu(device) else CPU, ())
        if not self.computes_in:
            return able
        here = _named(self.computes_in)(device)
        return tuple(p for p in able if p in here)


LIBRARIES = (
    Library(
        "openvino", ("onnx",), {CPU: ("fp32", "bf16", "fp16", "int8")}, ("openvino",),
        host="openvino:OpenVINOBackend", bound_to="openvino:library", computes_in="openvino:precisions",
        joins_threads=True,
    ),
    Library(
        "tensorrt", ("onnx",), {GPU: ("fp32", "fp16", "int8")}, tensorrt_api.MODULES, "tensorrt",
        on_device="tensorrt:TensorRTDevice", bound_to="tensorrt:library", typed=True,
    ),
    Library(
        "onnxruntime", ("onnx",), {CPU: ("fp32",), GPU: ("fp32", "fp16")}, ("onnxruntime",), "onnxruntime",
        host="onnxruntime:OnnxRuntimeBackend", on_device="onnxruntime:OnnxRuntimeDevice",
        sees_gpu="onnxruntime:sees_gpu",
    ),
    Library(
        "pytorch", ("pt2", "torchscript"), {CPU: ("fp32", "bf16"), GPU: ("fp32", "bf16", "fp16", "int8")}, ("torch",),
        "torch", host="pytorch:PyTorchBackend", on_device="pytorch:PyTorchDevice", sees_gpu="pytorch:sees_gpu",
        bound_to="pytorch:library",
        formats_on_gpus=("onnx",), joins_threads=True,
    ),
    Library(
        "fake", ("fake",), {CPU: ("fp32",), GPU: ("fp32",)},
        host="fake:FakeBackend", on_device="fake:FakeDevice",
    ),
)  # fmt: skip
"""In order of preference; on a GPU, `gpu_choice.BUILDS` has that."""


def record(name: str) -> Library:
    """The record of that name. Raises `BackendError` where there is none."""
    for known in LIBRARIES:
        if known.name == name:
            return known
    raise BackendError(f"there is no back end {name!r}; use one of {', '.join(l.name for l in LIBRARIES)}")


def choose_backend(model: ModelFile, device: str, name: str | None = None) -> str:
    """The back end for `model` on `device` (``cpu``, ``cuda``, ``cuda:N``, ``cuda:N,M``): the one named, else the first
    that is installed, runs the format there and, on GPUs, is made for these.

    Raises `BackendError` where it does not run the format or the device, or is not installed.
    """
    fitting = [l for l in LIBRARIES if l.takes(model.format, device)]
    there = [l for l in fitting if l.runs_on(device)]
    best = _best_on_gpu(model, device) if is_gpu(device) else next((l for l in there if l.installed), None)
    chosen = record(name) if name else best or next((l for l in there if l.installed), there[-1])
    if chosen not in fitting:
        names = " or ".join(l.name for l in fitting)
        raise BackendError(
            f"{chosen.name} does not run {model.path.name} ({model.format}); leave out --backend or use {names}"
        )
    if chosen not in there and is_gpu(device):
        raise BackendError(
            f"{chosen.name} runs on the CPU here, not on {device}; use --device cpu, or --backend {there[0].name}"
        )
    if chosen not in there:
        raise BackendError(
            f"{chosen.name} runs on NVIDIA GPUs alone, not on the {device}; leave out --backend or use {there[0].name}"
        )
    if not chosen.installed:
        raise BackendError(f"the back end {chosen.name} is not installed; run: {chosen.remedy}")
    if said := _objection(chosen, device):
        raise BackendError(said)
    return chosen.name


def _best_on_gpu(model: ModelFile, device: str) -> Library | None:
    """The first in `gpu_choice.BUILDS` that is installed, made for these GPUs, and runs the graph."""
    gpus = capabilities_of(device)
    for build in gpu_choice.preferred(model.format, gpus, _installed_builds()):
        known = record(build.library)
        if gpus and not sees_gpu(known):
            continue
        if model.format not in known.formats and _cannot_import(model):
            continue
        return known
    return next((l for l in LIBRARIES if l.takes(model.format, device) and not l.modules), None)


def _installed_builds() -> frozenset[str]:
    """Of `gpu_choice.BUILDS`; whether they can use a GPU is not asked."""
    modules = {"tensorrt": tensorrt_api.MODULES[:1], "tensorrt_rtx": tensorrt_api.MODULES[1:], "torch": ("torch",)}
    return frozenset(b.name for b in gpu_choice.BUILDS if any(find_spec(m) for m in modules.get(b.name, (b.name,))))


def _objection(known: Library, device: str) -> str:
    """Why what is installed of a library does not run on these GPUs, and what would; empty where it does, and where
    nothing is installed."""
    gpus = capabilities_of(device)
    builds = [b for b in gpu_choice.BUILDS if b.library == known.name and b.name in _installed_builds()]
    if not builds or any(all(map(b.is_for, gpus)) for b in builds):
        return ""
    gpu = next(gpu for gpu in gpus if not builds[-1].is_for(gpu))
    return (
        f"{builds[-1].called} is not made for {device}, of compute capability {gpu_choice.shown(gpu)}; install "
        "TensorRT itself, or PyTorch with CUDA for --backend pytorch"
    )


def _cannot_import(model: ModelFile) -> str:
    """Why PyTorch does not run one of the graphs of an ONNX model; empty where it runs all."""
    from unet_engine.model.onnx_network import network_of

    objection_to = _named("onnx_torch:objection_to")
    return next((said for network in model.networks if (said := str(objection_to(network_of(network))))), "")


def about_choice(model: ModelFile, device: str, chosen: str) -> tuple[str, ...]:
    """What to tell of libraries that are installed and not made for the GPUs of `device`, where `chosen` runs there."""
    return gpu_choice.passed_over(model.format, capabilities_of(device), _installed_builds(), chosen)


def runs_on_gpu(model: ModelFile) -> bool:
    """Whether an installed library can run the model on all GPUs here. Asked only where there is one: the imports are
    heavy."""
    return _best_on_gpu(model, GPU) is not None


def sees_gpu(known: Library) -> bool:
    """Whether the build that is installed can use a GPU. Imports it."""
    try:
        return not known.sees_gpu or bool(_named(known.sees_gpu)())
    except ImportError:
        return False


def library(name: str, device: str) -> str:
    """Version of the back end's library and kind of device: what a verdict is bound to. Imports the library."""
    known = record(name)
    return str(_named(known.bound_to)(device)) if known.bound_to else name


def open_backend(name: str, setup: Setup) -> Backend:
    """Load the one network of `setup`, for a caller on the host. Raises `BackendError` or `ModelError` where the
    library refuses it."""
    assert not setup.model.members  # `opening.open_network` is for several
    if is_gpu(setup.device):
        return HostRing(open_on_device(name, setup))
    known = record(name)
    if not known.host:
        raise BackendError(f"{name} does not run on {setup.device}; leave out --backend")
    backend: Backend = _named(known.host)(setup)
    return backend


def open_on_device(name: str, setup: Setup, beside: DeviceBackend | None = None) -> DeviceBackend:
    """Load the network on its device, with a stream of its own, or with that of a network that it works together with.
    Raises as `open_backend` does."""
    assert not setup.model.members
    known = record(name)
    if not known.on_device:
        raise BackendError(f"{name} does not run on {setup.device}; use --device cpu, or --backend tensorrt")
    # a library may end the process where there is no GPU: the device comes first
    device = beside.device if beside else open_device(setup.device)
    stream = beside.stream if beside else device.stream("compute")
    backend: DeviceBackend = _named(known.on_device)(setup, device, stream)
    return backend


def _named(what: str) -> Callable[..., Any]:
    module, _, name = what.partition(":")
    found: Callable[..., Any] = getattr(import_module(f"unet_engine.backends.{module}"), name)
    return found
