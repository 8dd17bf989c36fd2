"""PyTorch: ``.pt2`` (torch.export), TorchScript and, operator by operator, ONNX, on the CPU and on device memory.
Imported only where it is used.

On a GPU it goes through cuDNN, channels last, a batch recorded as one CUDA graph; it is the one back end there that
needs nothing but PyTorch. fp16 and bf16 run under autocast, whose input and output are of that type; int8 is a network that was
judged, with convolutions in INT8 (`int8_convolution.py`) and the rest in fp16. InstanceNorm is
our own (`torch_norm.py`). Algorithms are cuDNN's deterministic ones, chosen without timing them, so that two runs give
the same bytes; TF32 is off, as fp32 means fp32. (Timed, MLPerf's 3D U-Net ran no faster on an H200.)
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any

import numpy as np
import torch

from unet_engine.backends import int8_convolution, onnx_torch, torch_norm
from unet_engine.backends.base import ANOTHER, OTHER_WINDOW, Array, Setup, ThreadedBackend
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.device_tensor import Borrowed, DeviceTensor
from unet_engine.backends.one_output import OneOutput
from unet_engine.devices.base import Device, Region, Stream
from unet_engine.devices.opening import SIMULATED, is_gpu, open_device
from unet_engine.errors import BackendError, ModelError, first_line
from unet_engine.model.file import attached_network
from unet_engine.model.onnx_network import network_of
from unet_engine.units import times

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float16}
"""Of what is not quantised."""
FEW_CLASSES = 8
"""Up to so many, a voxel's classes share a sector of 32 bytes, and channels last costs nothing in reading."""
WARM_UP = 3
"""Batches before recording, as PyTorch asks: libraries set themselves up in the first."""


def library(device: str) -> str:
    """What a verdict is bound to."""
    versions = f"torch {torch.__version__}{int8_convolution.version()}"
    if not is_gpu(device):
        return versions
    opened = open_device(device)
    try:
        return f"{versions} on {opened.describe()}"
    finally:
        opened.close()


def sees_gpu() -> bool:
    """Whether PyTorch here can use one."""
    return bool(torch.cuda.is_available())


class PyTorchBackend(ThreadedBackend):
    name = "pytorch"

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.version = f"torch {torch.__version__}"
        self._refuse_precision("fp32", "bf16")
        self._network = loaded(setup)
        super().__init__(setup)
        self._in = [torch.from_numpy(array) for array in self._inputs]
        self._out = [torch.zeros(setup.output_shape) for _ in range(self.slots)]
        try:
            with torch.inference_mode():
                out = self._network(self._in[0])
                self._network.check_rim(self._in[0], out)
        except ModelError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise ModelError(
                f"{setup.model.path} does not take windows of {times(setup.window)}: {first_line(error)}; {OTHER_WINDOW}"
            ) from error
        self._check_output(tuple(out.shape))
        self.note = self._network.note

    def identity(self) -> dict[str, Any]:
        return _named(self._network)

    def _thread_setup(self) -> None:
        # several windows at once: see `Setup.threads`. Intra-op threads are set per calling thread.
        torch.set_num_threads(self.setup.window_threads)

    def touch(self, slot: int) -> None:
        self._out[slot].zero_()  # all else is given back after each window

    def _run(self, slot: int) -> Array:
        exact = self.setup.precision == "fp32"
        with torch.inference_mode(), nullcontext() if exact else torch.autocast("cpu", _TYPES[self.setup.precision]):
            self._out[slot].copy_(self._network(self._in[slot]))
        out: Array = self._out[slot].numpy()
        return np.asarray(out)


class PyTorchDevice(DeviceBackend):
    name = "pytorch"

    def __init__(self, setup: Setup, device: Device, stream: Stream) -> None:
        super().__init__(setup, device, stream)
        self.version = f"torch {torch.__version__}"
        able = [precision for precision in _TYPES if precision != "int8" or setup.network]
        if setup.precision not in able:
            raise BackendError(
                f"pytorch on {setup.device} does not run {setup.precision} here; use --precision {', '.join(able)}"
            )
        self._where = torch.device("cpu" if device.name == SIMULATED else setup.device)
        if self._where.type == "cuda" and not sees_gpu():
            raise BackendError(f"this PyTorch sees no GPU for {setup.device}; use --device cpu")
        if setup.precision == "int8":
            if lacking := int8_convolution.lacking(device.capability) if device.name != SIMULATED else "":
                raise BackendError(
                    f"pytorch on {setup.device} does not run int8 here: {lacking}, or use --precision fp16"
                )
            self.version += int8_convolution.version()
        self._type = _TYPES[setup.precision]
        self._graph: Any = None
        self._network = loaded(setup).to(self._where)
        with self._in_context():
            self._static = torch.zeros(setup.input_shape, dtype=self._type, device=self._where)
            self._static = self._static.contiguous(memory_format=_channels_last(self._static))
            prepare_weights(self._network, self._type)
            try:
                for _ in range(WARM_UP):
                    out = self._computed()
                self._network.check_rim(self._static, out)
                if setup.model.format != "onnx":  # of a graph it is proved, see `largest_batch`
                    self._network.part_rows(self._static)
            except ModelError:
                raise
            except Exception as error:
                if "out of memory" in str(error).lower():
                    raise BackendError(f"{setup.device}: {first_line(error)}") from error
                raise ModelError(
                    f"{setup.model.path} does not take windows of {times(setup.window)}: {first_line(error)}; {OTHER_WINDOW}"
                ) from error
            self._check_output(tuple(out.shape))
            made = torch_norm.rewritten(self._network, self._static)
            self._head = _named(self._network) | ({"instance_norm": torch_norm.VERSION} if made.network else {})
            self.note = "; ".join(filter(None, (self._network.note, made.why)))
            if made.network:
                self._network = made.network
                out = self._computed()
            self._out = torch.zeros_like(out)
            self._record()
        self.input, self.output = _tensor(self._static), _tensor(self._out)

    def _computed(self) -> Any:
        """A batch through the network. Many classes are put channels first: what adds windows up reads along rows."""
        out = self._network(self._static)
        return out.contiguous() if out.shape[1] > FEW_CLASSES else out

    def _in_context(self) -> ExitStack:
        """The stream the pipeline computes on, and how to compute."""
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        if self._where.type == "cuda":
            torch.cuda.set_device(self._where)  # of this thread, to which leaving the stream goes back
            set_algorithms()
            stack.enter_context(torch.cuda.stream(torch.cuda.ExternalStream(self.stream.handle, device=self._where)))
        if self._type is not torch.float32:
            # no cache of converted weights: a graph would keep reading one that was freed
            stack.enter_context(torch.autocast(self._where.type, self._type, cache_enabled=False))
        return stack

    def _record(self) -> None:
        """Record a batch as a CUDA graph; networks that wait for the host half-way cannot be, and run call by call."""
        if self._where.type != "cuda":
            return
        graph = torch.cuda.CUDAGraph()
        try:
            torch.cuda.synchronize(self._where)
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                self._out = self._computed()
        except RuntimeError as error:
            if "out of memory" in str(error).lower():
                raise BackendError(f"{self.setup.device}: {first_line(error)}") from error
            torch.cuda.synchronize(self._where)
            self._out = torch.zeros_like(self._computed())
            reason = f"the network cannot be recorded as a CUDA graph and runs call by call: {first_line(error)}"
            self.note = "; ".join(filter(None, (self.note, reason)))
            return
        self._graph, self.recorded = graph, True

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **self._head}

    def run(self, stream: int) -> None:
        try:
            if self._graph is not None:
                torch.cuda.set_device(self._where)
                with torch.cuda.stream(torch.cuda.ExternalStream(stream, device=self._where)):
                    self._graph.replay()
                return
            with self._in_context():
                self._out.copy_(self._computed())
        except RuntimeError as error:
            raise BackendError(f"pytorch failed on a batch: {first_line(error)}; {ANOTHER}") from error

    def close(self) -> None:
        self._graph = self._network = self._static = self._out = None
        if self._where.type == "cuda":
            torch.cuda.empty_cache()


def _named(network: OneOutput) -> dict[str, Any]:
    """What names the run: the output that is taken, where there are several."""
    return {"head": network.head} if network.head else {}


def _tensor(tensor: Any) -> DeviceTensor:
    """Of any strides: channels last stays what it is."""
    size = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.element_size()
    region = Region(Borrowed(tensor.data_ptr(), size), 0, size)
    return DeviceTensor(region, tuple(tensor.shape), tuple(tensor.stride()), str(tensor.dtype).removeprefix("torch."))


def _channels_last(tensor: Any) -> Any:
    return torch.channels_last_3d if tensor.dim() == 5 else torch.channels_last


def set_algorithms() -> None:
    """Of this process: cuDNN's deterministic ones, chosen without timing them, and fp32 means fp32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True


def prepare_weights(network: Any, kind: torch.dtype) -> None:
    """The weights of convolutions, in place: channels last and in the type computed in, so that nothing converts them
    batch by batch."""
    for parameter in network.parameters():
        if parameter.dim() in (4, 5) and parameter.dtype is torch.float32:
            parameter.data = parameter.data.to(kind).contiguous(memory_format=_channels_last(parameter))


def loaded(setup: Setup) -> OneOutput:
    """The network with its one output, on the CPU. Raises `ModelError` where PyTorch cannot load the file, or the user
    does not trust it."""
    path = setup.model.path
    setup.model.check_trust()
    if setup.network:
        # made of the graph for one window
        batch = None if setup.model.saved_batch is None else 1
        return OneOutput(onnx_torch.imported(attached_network(setup.model, setup.network)), setup, batch)
    if setup.model.format == "onnx":
        # the graph is made for the batch: nothing is left to be cut into the batches that it was saved for
        return OneOutput(onnx_torch.imported(network_of(setup.model, setup.batch)), setup, saved_batch=None)
    try:
        if setup.model.format == "pt2":
            return OneOutput(torch.export.load(path).module(), setup, setup.model.saved_batch)
        return OneOutput(torch.jit.load(str(path), map_location="cpu").eval(), setup, setup.model.saved_batch)
    except Exception as error:
        raise ModelError(f"{path}: PyTorch cannot load it: {first_line(error)}; export it again") from error
