"""ONNX Runtime on the CPU, and on device memory where its build for GPUs is installed. Inputs and outputs are bound
once, so nothing is allocated per window.

On a GPU its CUDA provider runs on the pipeline's stream and does not wait: that is left to the stream. A CUDA graph is
not asked for, since ONNX Runtime records on a stream of its own.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from typing import Any

import numpy as np
import onnxruntime as ort

from unet_engine.backends.base import ANOTHER, OTHER_WINDOW, Array, Setup, ThreadedBackend
from unet_engine.backends.device import DeviceBackend
from unet_engine.devices.base import Device, Stream
from unet_engine.devices.opening import SIMULATED
from unet_engine.errors import BackendError, ModelError, first_line
from unet_engine.model import onnx_half
from unet_engine.model.onnx_means import NAMED
from unet_engine.model.onnx_network import exact_network_of, network_of
from unet_engine.units import times

_CUDA = "CUDAExecutionProvider"


def sees_gpu() -> bool:
    """Whether this build of it has CUDA."""
    return _CUDA in ort.get_available_providers()


@cache
def _find_cuda() -> None:
    """Have it find CUDA and cuDNN where pip put them: it looks on the system's paths alone, and falls back to the
    CPU."""
    if load := getattr(ort, "preload_dlls", None):
        with redirect_stdout(StringIO()):  # it prints what it does not find; what that comes to is told by us
            load()


class OnnxRuntimeBackend(ThreadedBackend):
    name = "onnxruntime"

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.version = f"onnxruntime {ort.__version__}"
        self._refuse_precision("fp32")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what it says of an error is in the exception
        try:
            self._session = ort.InferenceSession(
                exact_network_of(setup.model, setup.input_shape), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ModelError(
                f"{setup.model.path}: ONNX Runtime refuses the network: {first_line(error)}; export it again"
            ) from error
        super().__init__(setup)
        self._outputs = [np.zeros(setup.output_shape, np.float32) for _ in range(self.slots)]
        self._bindings = [self._bound(slot) for slot in range(self.slots)]
        try:
            shape = self._session.run(None, {self._session.get_inputs()[0].name: self._inputs[0]})[0].shape
        except Exception as error:
            self.close()
            raise ModelError(
                f"{setup.model.path} does not take windows of {times(setup.window)}: {first_line(error)}; {OTHER_WINDOW}"
            ) from error
        self._check_output(shape)

    def identity(self) -> dict[str, Any]:
        return NAMED

    def _bound(self, slot: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        for bind, name, array in (
            (binding.bind_input, self._session.get_inputs()[0].name, self._inputs[slot]),
            (binding.bind_output, self._session.get_outputs()[0].name, self._outputs[slot]),
        ):
            bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        return binding

    def touch(self, slot: int) -> None:
        self._outputs[slot].fill(0)  # all else belongs to the session

    def _run(self, slot: int) -> Array:
        self._session.run_with_iobinding(self._bindings[slot])
        return self._outputs[slot]


class OnnxRuntimeDevice(DeviceBackend):
    name = "onnxruntime"

    def __init__(self, setup: Setup, device: Device, stream: Stream) -> None:
        super().__init__(setup, device, stream)
        self.version = f"onnxruntime {ort.__version__}"
        if setup.precision not in ("fp32", "fp16"):
            raise BackendError(
                f"onnxruntime on {setup.device} does not run {setup.precision} here; use --precision fp32 or fp16, or "
                "--backend tensorrt"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what it says of an error is in the exception
        try:
            network = network_of(setup.model, setup.batch)
            given = network if setup.precision == "fp32" else onnx_half.in_half(network)
            wanted = providers(device, stream)
            self._session = ort.InferenceSession(given, options, providers=wanted)
            self._check_provider(device)
        except (BackendError, ModelError):
            raise
        except Exception as error:
            raise ModelError(
                f"{setup.model.path}: ONNX Runtime refuses the network: {first_line(error)}; export it again"
            ) from error
        self.input, self._in = self._allocated(setup.input_shape, "float32", "input of the network")
        self.output, self._out = self._allocated(setup.output_shape, "float32", "output of the network")
        self._check_output(self._shape())
        where = ("cpu", 0) if device.name == SIMULATED else ("cuda", device.ordinal)
        self._binding = self._session.io_binding()
        first, last = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name
        self._binding.bind_input(first, *where, np.float32, self.input.shape, self.input.region.address)
        self._binding.bind_output(last, *where, np.float32, self.output.shape, self.output.region.address)
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def identity(self) -> dict[str, Any]:
        made = {"half": onnx_half.VERSION} if self.setup.precision == "fp16" else {}
        return {**super().identity(), **made}

    def _check_provider(self, device: Device) -> None:
        """Where CUDA cannot be loaded, ONNX Runtime makes a session of the CPU, which would take addresses on the
        device for its own."""
        found = self._session.get_providers()
        if device.name != SIMULATED and found[:1] != [_CUDA]:
            raise BackendError(
                f"ONNX Runtime cannot load CUDA for {device.name} and would run on the CPU "
                f"({', '.join(found) or 'no provider'}); install CUDA 13 and cuDNN 9 (pip install "
                "'onnxruntime-gpu[cuda,cudnn]'), or use --device cpu"
            )

    def _shape(self) -> tuple[int, ...]:
        """Of the output; one batch is computed through the host."""
        window = np.zeros(self.setup.input_shape, np.float32)
        try:
            shape: tuple[int, ...] = self._session.run(None, {self._session.get_inputs()[0].name: window})[0].shape
        except Exception as error:
            self.close()
            if "allocate memory" in str(error):
                raise BackendError(f"out of memory on {self.setup.device}: {first_line(error)}") from error
            raise ModelError(
                f"{self.setup.model.path} does not take windows of {times(self.setup.window)}: {first_line(error)}; "
                f"{OTHER_WINDOW}"
            ) from error
        return shape

    def run(self, stream: int) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            raise BackendError(f"onnxruntime failed on a batch: {first_line(error)}; {ANOTHER}") from error

    def close(self) -> None:
        for memory in (self._in, self._out):
            self.device.free(memory)


def providers(device: Device, stream: Stream) -> list[object]:
    """The provider for the device, on the pipeline's stream. Raises `BackendError` where this ONNX Runtime has none."""
    if device.name == SIMULATED:
        return ["CPUExecutionProvider"]
    _find_cuda()
    if not sees_gpu():
        raise BackendError(
            f"this ONNX Runtime has no CUDA; use --device cpu, or install onnxruntime-gpu to run on {device.name}"
        )
    options = {
        "device_id": str(device.ordinal),
        "user_compute_stream": str(stream.handle),
        "use_tf32": "0",
        # chosen without timing: the same algorithm, and so the same bytes, in every run
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return [(_CUDA, options)]
