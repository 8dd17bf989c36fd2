"""OpenVINO on the CPU: the default there. Asynchronous requests, one thread per stream."""

from __future__ import annotations

import sys

from unet_engine.backends.base import Array, Backend, Setup
from unet_engine.errors import BackendError, ModelError, first_line

# The telemetry package is made unimportable before the first import of OpenVINO, which then uses its own silent stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402  # after the line above

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVINOBackend(Backend):
    name = "openvino"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.version = f"openvino {ov.__version__}"
        core = ov.Core()
        abilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._refuse_precision(
            "fp32", *(p for p, ability in (("bf16", "BF16"), ("fp16", "FP16")) if ability in abilities)
        )
        try:
            model = core.read_model(setup.model.path)
            model.reshape(list(setup.input_shape))
            # One thread per stream keeps every window's bytes independent of the number of threads.
            compiled = core.compile_model(model, "CPU", {
                "NUM_STREAMS": str(setup.threads),
                "INFERENCE_NUM_THREADS": str(setup.threads),
                "INFERENCE_PRECISION_HINT": _HINTS[setup.precision],
            })  # fmt: skip
        except (RuntimeError, UnicodeDecodeError) as error:
            raise ModelError(
                f"{setup.model.path}: OpenVINO refuses the network at windows of {setup.window}: {_cause(error)}; "
                "check that --window divides by the network's pooling, or export the model again"
            ) from error
        self.slots = setup.threads + 2
        self._requests = [compiled.create_infer_request() for _ in range(self.slots)]
        self._inputs: list[Array] = [r.get_input_tensor(0).data for r in self._requests]
        self._outputs: list[Array] = [r.get_output_tensor(0).data for r in self._requests]
        self._check_output(self._outputs[0].shape)

    def input(self, slot: int) -> Array:
        return self._inputs[slot]

    def start(self, slot: int) -> None:
        self._requests[slot].start_async()

    def result(self, slot: int) -> Array:
        try:
            self._requests[slot].wait()
        except RuntimeError as error:
            raise BackendError(f"openvino failed on a window: {_cause(error)}") from error
        return self._outputs[slot]

    def close(self) -> None:
        self._requests, self._inputs, self._outputs = [], [], []


def _cause(error: RuntimeError | UnicodeDecodeError) -> str:
    """OpenVINO puts the place in its own sources first and the reason last, and quotes names from corrupt files as they are."""
    text = error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else first_line(error)
