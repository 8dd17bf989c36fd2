"""TensorRT on an NVIDIA GPU: an engine between two arrays on the device, as one CUDA graph. Everything that is decided
on the host is tested without a GPU; throughput is not measured yet."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

from unet_engine.backends import engine_cache, tensorrt_api
from unet_engine.backends.base import ANOTHER, Setup
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.out_of_memory import is_out_of_memory
from unet_engine.devices.base import Device, Graph, Memory, Stream
from unet_engine.devices.opening import open_device
from unet_engine.errors import BackendError, ModelError, first_line
from unet_engine.model import onnx_network
from unet_engine.model.file import attached_network

FORMAT = 2
"""Changes when an engine would be built in another way from the same key."""


def library(device: str) -> str:
    """What a verdict is bound to."""
    opened = open_device(device)
    try:
        return f"{tensorrt_api.version()} on {opened.describe()}"
    finally:
        opened.close()


class TensorRTDevice(DeviceBackend):
    name = "tensorrt"

    def __init__(self, setup: Setup, device: Device, stream: Stream) -> None:
        super().__init__(setup, device, stream)
        # asked once more: TensorRT itself may be there and not load, and TensorRT-RTX stand in for it
        if said := tensorrt_api.refuses(device.capability):
            raise BackendError(f"{setup.device}: {said}")
        self.version = tensorrt_api.version()
        network = network_of(setup)
        self._key = key_of(setup, network, device.describe())
        self._load(engine_for(setup, network, device.describe(), device.use))
        self._make_context()
        self.input, self._in = self._allocated(setup.input_shape, "float32", "input of the network")
        self.output, self._out = self._allocated(setup.output_shape, "float32", "output of the network")
        self._graph = self._recorded()
        self.recorded, self._closed = self._graph is not None, False

    def _load(self, engine: bytes) -> None:
        self._logger = tensorrt_api.logger()
        self._runtime = tensorrt_api.module().Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise BackendError(
                f"TensorRT does not load the engine it built: {self._logger.said()}; delete the cache and run again"
            )

    def _make_context(self) -> None:
        """The execution context, whose scratch memory is ours."""
        trt, setup = tensorrt_api.module(), self.setup
        kernels = engine_cache.load("kernels", self._key) or b""
        self._context, self._kernels = tensorrt_api.context_of(self._engine, kernels)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1 or len(names) != 2:
            raise ModelError(
                f"{setup.model.path} has {len(names)} inputs and outputs; export it again: one of each is needed"
            )
        self._names = inputs[0], next(n for n in names if n != inputs[0])
        self._context.set_input_shape(self._names[0], setup.input_shape)
        self._check_output(tuple(self._context.get_tensor_shape(self._names[1])))
        count = int(self._context.update_device_memory_size_for_shapes())
        self._scratch: Memory | None = self.device.allocate(count, "TensorRT's scratch memory") if count else None
        if self._scratch:
            self._context.set_device_memory(self._scratch.address, count)

    def _recorded(self) -> Graph | None:
        """Run once, as TensorRT asks before recording, and record; None where the network cannot be, which is noted."""
        for name, tensor in zip(self._names, (self.input, self.output), strict=True):
            self._context.set_tensor_address(name, tensor.region.address)
        self._enqueue(self.stream.handle)
        done = self.device.event()
        self.device.record(done, self.stream)
        self.device.synchronize(done)
        if self._kernels is not None:
            engine_cache.store("kernels", self._key, bytes(self._kernels.serialize()))
        capturable = getattr(self._context, "is_stream_capturable", lambda stream: True)
        try:
            if capturable(self.stream.handle):
                return self.device.capture(self.stream, "recording the network", self._enqueue)
            said = "TensorRT says so"
        except BackendError as error:
            if is_out_of_memory(error):
                raise
            said = first_line(error)
        self.note = f"the network cannot be recorded as a CUDA graph and runs call by call: {said}"
        return None

    def _enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise BackendError(f"TensorRT failed on a window: {self._logger.said()}; {ANOTHER}")

    def run(self, stream: int) -> None:
        if self._closed:
            raise BackendError("the network was closed")
        if self._graph is not None:
            self._graph.launch(stream)
        else:
            self._enqueue(stream)

    def close(self) -> None:
        self.device.drain()
        self._closed = True
        if self._graph:
            self._graph.close()
        self._graph = self._context = self._engine = self._runtime = self._kernels = None
        for memory in (self._scratch, self._in, self._out):
            if memory:
                self.device.free(memory)


# --- engines ---


def network_of(setup: Setup) -> bytes:
    """The ONNX graph that `setup` names: the one attached, or for fp32 the file's own.

    Raises `BackendError` for a precision without a graph of its own: TensorRT computes in the types that the graph
    says.
    """
    if setup.network:
        return attached_network(setup.model, setup.network)
    if setup.precision != "fp32":
        raise BackendError(
            f"{setup.model.path.name} has no {setup.precision} graph for TensorRT; run: unet-engine quantize "
            f"{setup.model.path} --calibrate SCAN.zarr --backend tensorrt --precision {setup.precision}"
        )
    import onnx

    found = onnx_network.network_of(setup.model, setup.batch)
    if isinstance(found, bytes):
        return found
    try:
        network: bytes = onnx.load(found).SerializeToString()
    except Exception as error:
        raise ModelError(f"{setup.model.path}: the graph cannot be read: {error}; export it again") from error
    return network


def key_of(setup: Setup, network: bytes, gpu: str) -> dict[str, object]:
    """All that decides the engine's bytes: another value of any of these is another file in the cache."""
    return {
        "format": FORMAT,
        "network": sha256(network).hexdigest(),
        "library": tensorrt_api.version(),
        "gpu": gpu,
        "shape": list(setup.input_shape),
    }


def engine_for(setup: Setup, network: bytes, gpu: str, enter: Callable[[], None] = lambda: None) -> bytes:
    """The engine from the cache, or built and kept. A damaged or foreign file counts as none. `enter` makes the GPU
    current in the thread that builds.

    Raises `ModelError` or `BackendError` as building does; Ctrl-C ends a build.
    """
    key = key_of(setup, network, gpu)
    stored = engine_cache.load("engine", key)
    if stored is not None:
        return stored
    tensorrt_api.check_sizes(setup.model.path, network, setup.input_shape)
    shape = setup.input_shape
    timing_key = {name: key[name] for name in ("format", "library", "gpu")}
    timing = engine_cache.load("timing", timing_key) or b""
    what = f"{setup.model.path.name} in {setup.precision} on {gpu}"
    engine, timing = tensorrt_api.build(
        network, tensorrt_api.Shapes(shape, shape, shape), timing=timing, progress=tensorrt_api.Printer(what),
        enter=enter,
    )  # fmt: skip
    engine_cache.store("engine", key, engine)
    engine_cache.store("timing", timing_key, timing)
    return engine
