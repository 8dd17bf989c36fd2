"""The libraries that run networks: one record each, and opening a network with one of them.

A new library is a module in this folder and a record in `LIBRARIES`. The module has a `Backend` for the CPU, a
`DeviceBackend` for GPUs, or both, and is imported when one of them is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from unet_engine.backends import tensorrt_api
from unet_engine.backends.base import Backend, Setup
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.host_ring import HostRing
from unet_engine.devices.opening import is_gpu, open_device
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
    """Of unet-engine, that installs it."""
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
    typed: bool = False
    """Whether it computes in the types that the graph says, so that a lower precision needs a network of its own."""

    @property
    def installed(self) -> bool:
        return not self.modules or any(find_spec(name) for name in self.modules)

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
        "openvino", ("onnx",), {CPU: ("fp32", "bf16", "fp16", "int8")}, ("openvino",), "openvino",
        host="openvino:OpenVINOBackend", bound_to="openvino:library", computes_in="openvino:precisions",
    ),
    Library(
        "tensorrt", ("onnx",), {GPU: ("fp32", "fp16", "int8")}, tensorrt_api.MODULES, "tensorrt",
        on_device="tensorrt:TensorRTDevice", bound_to="tensorrt:library", typed=True,
    ),
    Library(
        "onnxruntime", ("onnx",), {CPU: ("fp32",), GPU: ("fp32",)}, ("onnxruntime",), "onnxruntime",
        host="onnxruntime:OnnxRuntimeBackend", on_device="onnxruntime:OnnxRuntimeDevice",
        sees_gpu="onnxruntime:sees_gpu",
    ),
    Library(
        "pytorch", ("pt2", "torchscript"), {CPU: ("fp32", "bf16"), GPU: ("fp32", "bf16", "fp16")}, ("torch",), "torch",
        host="pytorch:PyTorchBackend", on_device="pytorch:PyTorchDevice", sees_gpu="pytorch:sees_gpu",
    ),
    Library(
        "fake", ("fake",), {CPU: ("fp32",), GPU: ("fp32",)},
        host="fake:FakeBackend", on_device="fake:FakeDevice",
    ),
)  # fmt: skip
"""In order of preference."""


def record(name: str) -> Library:
    """The record of that name. Raises `BackendError` where there is none."""
    for known in LIBRARIES:
        if known.name == name:
            return known
    raise BackendError(f"there is no back end {name!r}; use one of {', '.join(l.name for l in LIBRARIES)}")


def choose_backend(model: ModelFile, device: str, name: str | None = None) -> str:
    """The back end for `model` on `device`: the one named, else the first that is installed and runs the format there.

    Raises `BackendError` where it does not run the format or the device, or is not installed.
    """
    fitting = [l for l in LIBRARIES if model.format in l.formats]
    there = [l for l in fitting if l.runs_on(device)]
    chosen = record(name) if name else next((l for l in there if l.installed), there[-1])
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
        raise BackendError(
            f"the back end {chosen.name} is not installed; run: pip install 'unet-engine[{chosen.extra}]'"
        )
    return chosen.name


def runs_on_gpu(model: ModelFile) -> bool:
    """Whether an installed library can run the format on CUDA. Asked only where there is a GPU: the imports are
    heavy."""
    return any(model.format in l.formats and l.runs_on(GPU) and l.installed and sees_gpu(l) for l in LIBRARIES)


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
