"""ONNX Runtime: CPU, or CUDA where its GPU build is installed. Inputs and outputs are bound once, so nothing is allocated per window."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from unet_engine.backends.base import Array, Setup, ThreadedBackend
from unet_engine.errors import BackendError, ModelError, first_line


class OnnxRuntimeBackend(ThreadedBackend):
    name = "onnxruntime"

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.version = f"onnxruntime {ort.__version__}"
        self._refuse_precision("fp32")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(setup.model.path), options, providers=_providers(setup.device))
        except BackendError:
            raise
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
                f"{setup.model.path} does not take windows of {setup.window}: {first_line(error)}"
            ) from error
        self._check_output(shape)

    def _bound(self, slot: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        for bind, name, array in (
            (binding.bind_input, self._session.get_inputs()[0].name, self._inputs[slot]),
            (binding.bind_output, self._session.get_outputs()[0].name, self._outputs[slot]),
        ):
            bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        return binding

    def _run(self, slot: int) -> Array:
        self._session.run_with_iobinding(self._bindings[slot])
        return self._outputs[slot]


def _providers(device: str) -> list[object]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise BackendError(
            f"this ONNX Runtime has no CUDA; use --device cpu, or install onnxruntime-gpu to run on {device}"
        )
    return [("CUDAExecutionProvider", {"device_id": int(device.partition(":")[2] or 0)})]
