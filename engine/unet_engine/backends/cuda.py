"""The few CUDA calls a back end needs, each checked. Through NVIDIA's own bindings, which import without a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.errors import BackendError

Array = npt.NDArray[Any]


class Cuda:
    """One device. Streams, events, graphs and device pointers are plain handles of the runtime.

    Raises `BackendError` with CUDA's own words where a call fails.
    """

    def __init__(self, device: int) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise BackendError("TensorRT needs cuda-bindings; run: pip install 'unet-engine[tensorrt]'") from error
        self._rt, self._device = runtime, device
        self.use()

    def _checked(self, result: tuple[Any, ...]) -> Any:
        code, *values = result
        if int(code) != 0:
            _, text = self._rt.cudaGetErrorString(code)
            words = text.decode() if isinstance(text, bytes) else str(text)
            raise BackendError(
                f"CUDA on GPU {self._device}: {words}; use a smaller --window, another --device, or --device cpu"
            )
        return values[0] if len(values) == 1 else values

    def use(self) -> None:
        """Make the device current on this thread."""
        self._checked(self._rt.cudaSetDevice(self._device))

    def describe(self) -> str:
        """Name and compute capability, e.g. ``NVIDIA H200 (9.0)``."""
        about = self._checked(self._rt.cudaGetDeviceProperties(self._device))
        name = about.name.decode().rstrip("\0") if isinstance(about.name, bytes) else str(about.name)
        return f"{name} ({about.major}.{about.minor})"

    # --- memory ---

    def pinned(self, shape: tuple[int, ...]) -> tuple[int, Array]:
        """Page-locked host memory as its address and as a float32 array of zeros in it."""
        import ctypes

        count = int(np.prod(shape))
        address = int(self._checked(self._rt.cudaHostAlloc(4 * count, self._rt.cudaHostAllocDefault)))
        array = np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)
        array[...] = 0
        return address, array

    def allocate(self, count: int) -> int:
        """Device memory of `count` bytes: its address. No bytes have no address."""
        return int(self._checked(self._rt.cudaMalloc(count))) if count else 0

    def free(self, address: int) -> None:
        if address:
            self._checked(self._rt.cudaFree(address))

    def unpin(self, address: int) -> None:
        self._checked(self._rt.cudaFreeHost(address))

    def copy(self, target: int, source: int, count: int, stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDefault
        self._checked(self._rt.cudaMemcpyAsync(target, source, count, kind, stream))

    # --- order ---

    def stream(self) -> Any:
        return self._checked(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking))

    def event(self) -> Any:
        return self._checked(self._rt.cudaEventCreateWithFlags(self._rt.cudaEventDisableTiming))

    def record(self, event: Any, stream: Any) -> None:
        self._checked(self._rt.cudaEventRecord(event, stream))

    def wait(self, stream: Any, event: Any) -> None:
        """What is put on `stream` from now on begins after `event`."""
        self._checked(self._rt.cudaStreamWaitEvent(stream, event, 0))

    def finish(self, waited_for: Any) -> None:
        """Wait on the host for an event."""
        self._checked(self._rt.cudaEventSynchronize(waited_for))

    def drain(self, stream: Any) -> None:
        self._checked(self._rt.cudaStreamSynchronize(stream))

    def destroy_stream(self, stream: Any) -> None:
        self._checked(self._rt.cudaStreamDestroy(stream))

    def destroy_event(self, event: Any) -> None:
        self._checked(self._rt.cudaEventDestroy(event))

    # --- graphs ---

    def begin_capture(self, stream: Any) -> None:
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked(self._rt.cudaStreamBeginCapture(stream, mode))

    def end_capture(self, stream: Any) -> Any:
        """The executable graph of what was put on `stream` since `begin_capture`."""
        graph = self._checked(self._rt.cudaStreamEndCapture(stream))
        ready = self._checked(self._rt.cudaGraphInstantiate(graph, 0))
        self._checked(self._rt.cudaGraphDestroy(graph))
        return ready

    def launch(self, graph: Any, stream: Any) -> None:
        self._checked(self._rt.cudaGraphLaunch(graph, stream))

    def destroy_graph(self, graph: Any) -> None:
        self._checked(self._rt.cudaGraphExecDestroy(graph))
