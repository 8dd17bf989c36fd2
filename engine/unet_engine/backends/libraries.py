"""The libraries that run networks: which runs what, and opening one by name."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from unet_engine.backends import tensorrt_api
from unet_engine.backends.base import Backend, Setup
from unet_engine.backends.device import DeviceBackend
from unet_engine.devices.opening import open_device
from unet_engine.errors import BackendError
from unet_engine.model.file import ModelFile

BACKENDS = {
    "openvino": ("onnx",),
    "onnxruntime": ("onnx",),
    "tensorrt": ("onnx",),
    "pytorch": ("pt2", "torchscript"),
    "fake": ("fake",),
}
"""Name of each back end, and the model formats it runs."""


_CLASSES = {
    "openvino": "OpenVINOBackend",
    "onnxruntime": "OnnxRuntimeBackend",
    "tensorrt": "TensorRTBackend",
    "pytorch": "PyTorchBackend",
    "fake": "FakeBackend",
}


_MODULES = {
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime",),
    "tensorrt": tensorrt_api.MODULES,
    "pytorch": ("torch",),
}
"""What must be importable for each; one of them is enough."""


def choose_backend(model: ModelFile, device: str, name: str | None = None) -> str:
    """The back end for `model` on `device`: the one named, else the first that runs the format there.

    Raises `BackendError` where it does not run the format or the device, or is not installed.
    """
    if name is None:
        fitting = [b for b, formats in BACKENDS.items() if model.format in formats]
        name = fitting[0]
        if device != "cpu" and model.format == "onnx":
            name = "tensorrt" if tensorrt_api.installed() else "onnxruntime"
    if name not in BACKENDS:
        raise BackendError(f"there is no back end {name!r}; use one of {', '.join(BACKENDS)}")
    if model.format not in BACKENDS[name]:
        fitting = [b for b, formats in BACKENDS.items() if model.format in formats]
        raise BackendError(
            f"{name} does not run {model.path.name} ({model.format}); leave out --backend or use {' or '.join(fitting)}"
        )
    if name == "openvino" and device != "cpu":
        raise BackendError(f"openvino runs on the CPU here, not on {device}; use --device cpu, or --backend tensorrt")
    if name == "tensorrt" and device == "cpu":
        raise BackendError("tensorrt runs on NVIDIA GPUs alone, not on the cpu; leave out --backend or use openvino")
    modules = _MODULES.get(name, ())
    if modules and not any(find_spec(m) for m in modules):
        extra = "torch" if name == "pytorch" else name
        raise BackendError(f"the back end {name} is not installed; run: pip install 'unet-engine[{extra}]'")
    return name


def library(name: str, device: str) -> str:
    """Version of the back end's library and kind of device: what a verdict is bound to. Imports the library."""
    module = import_module(f"unet_engine.backends.{name}")
    said: str = module.library(device) if hasattr(module, "library") else name
    return said


def open_backend(name: str, setup: Setup) -> Backend:
    """Load the network. Raises `BackendError` or `ModelError` where the library refuses it."""
    chosen = getattr(import_module(f"unet_engine.backends.{name}"), _CLASSES[name])
    backend: Backend = chosen(setup)
    return backend


_ON_DEVICE = {
    "onnxruntime": "OnnxRuntimeDevice",
    "tensorrt": "TensorRTDevice",
    "pytorch": "PyTorchDevice",
    "fake": "FakeDevice",
}


def open_on_device(name: str, setup: Setup) -> DeviceBackend:
    """Load the network for the device pipeline, with its device and a stream of its own. Raises as `open_backend` does."""
    if name not in _ON_DEVICE:
        raise BackendError(f"{name} does not run on {setup.device}; use --device cpu, or --backend tensorrt")
    chosen = getattr(import_module(f"unet_engine.backends.{name}_device"), _ON_DEVICE[name])
    device = open_device(setup.device)
    backend: DeviceBackend = chosen(setup, device, device.stream("compute"))
    return backend
