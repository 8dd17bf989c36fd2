"""TensorRT on an NVIDIA GPU. Everything that is decided on the host is tested without one; throughput is not measured yet.

    start(slot):  host in --copy--> device in --graph--> device out --copy--> host out       result(slot) waits for `done`
    streams:              "in"                 "compute"             "out"

One execution context computes slot after slot, so all share its scratch memory, which is ours. Each slot has buffers of its own and a
CUDA graph recorded on them; the copies of other slots go on meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from math import prod
from typing import Any

from unet_engine import machine
from unet_engine.backends import engine_cache, tensorrt_api
from unet_engine.backends.base import Array, Backend, Setup
from unet_engine.backends.cuda import Cuda
from unet_engine.errors import BackendError, ModelError
from unet_engine.model.file import attached_network

SLOTS = 4
"""Batches in flight: one computes, one is copied in, one out, one is filled."""
FORMAT = 1
"""Changes when an engine would be built in another way from the same key."""


def library(device: str) -> str:
    """What a verdict is bound to."""
    return f"{tensorrt_api.version()} on {_cuda(device).describe()}"


def _cuda(device: str) -> Cuda:
    # a runtime without a GPU ends the process: the driver is asked first
    number, found = int(device.partition(":")[2] or 0), machine.gpu_count()
    if number >= found:
        raise BackendError(f"TensorRT needs a GPU, and this machine shows {found}; use --device cpu")
    return Cuda(number)


@dataclass
class _Slot:
    host_in: int
    host_out: int
    input: Array
    output: Array
    device_in: int
    device_out: int
    copied_in: Any
    computed: Any
    done: Any
    graph: Any = None


class Execution:
    """An engine with its execution context, whose scratch memory is ours. Input and output are bound by address."""

    def __init__(self, setup: Setup, cuda: Cuda) -> None:
        self._cuda, self.version = cuda, tensorrt_api.version()
        network = network_of(setup)
        engine = engine_for(setup, network, cuda.describe())
        trt_module = tensorrt_api.module()
        self._logger = tensorrt_api.logger()
        self._runtime = trt_module.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise BackendError(
                f"TensorRT does not load the engine it built: {self._logger.said()}; delete the cache and run again"
            )
        self._make_context(setup, trt_module)

    def _make_context(self, setup: Setup, trt_module: Any) -> None:
        strategy = trt_module.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = self._engine.create_execution_context(strategy)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt_module.TensorIOMode.INPUT]
        if len(inputs) != 1 or len(names) != 2:
            raise ModelError(
                f"{setup.model.path} has {len(names)} inputs and outputs; export it again: one of each is needed"
            )
        self._in, self._out = inputs[0], next(n for n in names if n != inputs[0])
        self._context.set_input_shape(self._in, setup.input_shape)
        self.output_shape = tuple(self._context.get_tensor_shape(self._out))
        scratch = int(self._context.update_device_memory_size_for_shapes())
        self._scratch = self._cuda.allocate(scratch)
        if scratch:
            self._context.set_device_memory(self._scratch, scratch)

    def bind(self, source: int, target: int) -> None:
        """Read the input from, and write the output to, device memory at these addresses."""
        self._context.set_tensor_address(self._in, source)
        self._context.set_tensor_address(self._out, target)

    def enqueue(self, stream: Any) -> None:
        if not self._context.execute_async_v3(int(stream)):
            raise BackendError(f"TensorRT failed on a window: {self._logger.said()}")

    def close(self) -> None:
        self._context = self._engine = self._runtime = None
        self._cuda.free(self._scratch)


class TensorRTBackend(Backend):
    name = "tensorrt"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._cuda = _cuda(setup.device)
        self.slots = SLOTS
        self._execution = Execution(setup, self._cuda)
        self.version = self._execution.version
        self._check_output(self._execution.output_shape)
        self._streams = [self._cuda.stream() for _ in range(3)]
        self._ring = [self._make_slot() for _ in range(self.slots)]
        self._record_graphs()

    def _make_slot(self) -> _Slot:
        cuda, setup = self._cuda, self.setup
        host_in, array_in = cuda.pinned(setup.input_shape)
        host_out, array_out = cuda.pinned(setup.output_shape)
        return _Slot(
            host_in, host_out, array_in, array_out,
            cuda.allocate(4 * prod(setup.input_shape)), cuda.allocate(4 * prod(setup.output_shape)),
            cuda.event(), cuda.event(), cuda.event(),
        )  # fmt: skip

    def _record_graphs(self) -> None:
        """Run each slot once, as TensorRT asks before recording, and record its computation."""
        compute = self._streams[1]
        for slot in self._ring:
            self._execution.bind(slot.device_in, slot.device_out)
            self._cuda.copy(slot.device_in, slot.host_in, slot.input.nbytes, compute)
            self._execution.enqueue(compute)
            self._cuda.drain(compute)
            self._cuda.begin_capture(compute)
            self._execution.enqueue(compute)
            slot.graph = self._cuda.end_capture(compute)

    def input(self, slot: int) -> Array:
        return self._ring[slot].input

    def start(self, slot: int) -> None:
        s, cuda = self._ring[slot], self._cuda
        cuda.use()  # the thread that fills slots need not be the one that opened them
        copy_in, compute, copy_out = self._streams
        cuda.copy(s.device_in, s.host_in, s.input.nbytes, copy_in)
        cuda.record(s.copied_in, copy_in)
        cuda.wait(compute, s.copied_in)
        cuda.launch(s.graph, compute)
        cuda.record(s.computed, compute)
        cuda.wait(copy_out, s.computed)
        cuda.copy(s.host_out, s.device_out, s.output.nbytes, copy_out)
        cuda.record(s.done, copy_out)

    def result(self, slot: int) -> Array:
        self._cuda.finish(self._ring[slot].done)
        return self._ring[slot].output

    def close(self) -> None:
        cuda = self._cuda
        for stream in self._streams:
            cuda.drain(stream)
        for s in self._ring:
            cuda.destroy_graph(s.graph)
            for event in (s.copied_in, s.computed, s.done):
                cuda.destroy_event(event)
            for address in (s.device_in, s.device_out):
                cuda.free(address)
            for address in (s.host_in, s.host_out):
                cuda.unpin(address)
        for stream in self._streams:
            cuda.destroy_stream(stream)
        self._ring, self._streams = [], []
        self._execution.close()


# --- engines ---


def network_of(setup: Setup) -> bytes:
    """The ONNX graph that `setup` names: the one attached, or for fp32 the file's own.

    Raises `BackendError` for a precision without a graph of its own: TensorRT computes in the types that the graph says.
    """
    if setup.network:
        return attached_network(setup.model, setup.network)
    if setup.precision != "fp32":
        raise BackendError(
            f"{setup.model.path.name} has no {setup.precision} graph for TensorRT; run: unet-engine quantize {setup.model.path} "
            f"--calibrate SCAN.zarr --backend tensorrt --precision {setup.precision}"
        )
    import onnx

    try:
        network: bytes = onnx.load(setup.model.path).SerializeToString()
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


def engine_for(setup: Setup, network: bytes, gpu: str) -> bytes:
    """The engine from the cache, or built and kept. A damaged or foreign file counts as none.

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
        network, tensorrt_api.Shapes(shape, shape, shape), timing=timing, progress=tensorrt_api.Printer(what)
    )
    engine_cache.store("engine", key, engine)
    engine_cache.store("timing", timing_key, timing)
    return engine
