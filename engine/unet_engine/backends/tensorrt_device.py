"""TensorRT on device memory: the engine of `unet_engine.backends.tensorrt` between two arrays of the pipeline, as one CUDA graph."""

from __future__ import annotations

from typing import Any

from unet_engine.backends.base import Setup
from unet_engine.backends.cuda import Cuda
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.tensorrt import Execution
from unet_engine.devices.base import Device, Stream
from unet_engine.errors import BackendError


def _cuda(device: Device) -> Cuda:
    return Cuda(device.ordinal)


class TensorRTDevice(DeviceBackend):
    name = "tensorrt"

    def __init__(self, setup: Setup, device: Device, stream: Stream) -> None:
        super().__init__(setup, device, stream)
        self._cuda = _cuda(device)
        self._execution = Execution(setup, self._cuda)
        self.version = self._execution.version
        self._check_output(self._execution.output_shape)
        self.input, self._in = self._allocated(setup.input_shape, "float32", "input of the network")
        self.output, self._out = self._allocated(setup.output_shape, "float32", "output of the network")
        self._graph = self._record()
        self.recorded = True

    def _record(self) -> Any:
        """Run once, as TensorRT asks before recording, and record."""
        cuda, stream = self._cuda, self.stream.handle
        self._execution.bind(self.input.region.address, self.output.region.address)
        self._execution.enqueue(stream)
        cuda.drain(stream)
        cuda.begin_capture(stream)
        self._execution.enqueue(stream)
        return cuda.end_capture(stream)

    def run(self, stream: int) -> None:
        if self._graph is None:
            raise BackendError("the network was closed")
        self._cuda.launch(self._graph, stream)

    def close(self) -> None:
        self._cuda.drain(self.stream.handle)
        self._cuda.destroy_graph(self._graph)
        self._graph = None
        self._execution.close()
        for memory in (self._in, self._out):
            self.device.free(memory)
