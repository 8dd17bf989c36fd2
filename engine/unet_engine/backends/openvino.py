"""OpenVINO on the CPU: the default there. Asynchronous requests, one thread per stream."""

from __future__ import annotations

import importlib
import io
import sys
import tempfile
import threading
import zipfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from unet_engine import machine
from unet_engine.backends import engine_cache
from unet_engine.backends.base import ANOTHER, Array, Backend, Setup, slots_for
from unet_engine.errors import BackendError, ModelError, first_line
from unet_engine.model.file import attached_network
from unet_engine.model.onnx_means import NAMED
from unet_engine.model.onnx_network import exact_network_of, network_of
from unet_engine.units import times

# The telemetry package is made unimportable before the first import of OpenVINO, which then uses its own silent stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
_CONVERTER = "openvino.tools.ovc"


class _WithoutConverter:
    """Keeps OpenVINO's converter of other formats, half of the time of its import, out of an import by this thread."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)

    def find_spec(self, name: str, *_: object) -> None:
        if name == _CONVERTER and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is imported where it is used", name=name)


with _WithoutConverter():
    import openvino as ov


def _later(name: str) -> Any:
    """What was left out of OpenVINO, for others in this process that ask for it."""
    if name == "convert_model":
        with suppress(ImportError):
            return importlib.import_module(_CONVERTER).convert_model
    raise AttributeError(f"module 'openvino' has no attribute {name!r}")


if "convert_model" not in vars(ov):
    ov.__getattr__ = _later

__all__ = ["OpenVINOBackend", "library", "ov", "packed", "precisions", "unpacked"]

FORMAT = 2
KIND = "openvino"
"""Of what is kept in the user's cache: see `engine_cache`."""
KEPT = 2**28
"""Bytes of the largest compiled network that is kept: it has the weights in it."""
LATEST = 32
"""Compiled networks that are kept."""
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_ABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}


@cache
def shared_core() -> Any:
    """The one that all networks of this process are compiled with: with the last of them its plugin for CPUs would go,
    to be loaded again by the next."""
    return ov.Core()


def precisions(device: str) -> tuple[str, ...]:
    """What this processor computes with instructions of its own; int8 needs a quantised network besides."""
    abilities = shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(p for p, ability in _ABILITIES.items() if ability in abilities)


def library(device: str) -> str:
    """What a verdict is bound to: rounding differs between versions and between instruction sets."""
    return f"openvino {ov.__version__} with {', '.join(precisions(device))}"


def packed(model: Any) -> bytes:
    """An OpenVINO model as one zip archive of its two files, the same bytes for the same model."""
    with tempfile.TemporaryDirectory() as folder:
        ov.serialize(model, Path(folder, "net.xml"), Path(folder, "net.bin"))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("net.xml", "net.bin"):
                archive.writestr(zipfile.ZipInfo(name), Path(folder, name).read_bytes(), zipfile.ZIP_DEFLATED)
        return buffer.getvalue()


def unpacked(data: bytes, most: int) -> Any:
    """The model that `packed` made. Raises `ModelError` where it is larger than `most` bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(archive.getinfo(name).file_size for name in ("net.xml", "net.bin"))
        if size > most:
            raise ModelError(
                f"the network of lower precision in the model file unpacks to {size} bytes, far more than the model it "
                "stands for; quantize again"
            )
        return shared_core().read_model(archive.read("net.xml"), archive.read("net.bin"))


def _most(setup: Setup) -> int:
    """Bytes that a network attached to the model may unpack to: it has the model's weights, and a little around
    them."""
    model = setup.model
    return 2**26 + 4 * sum(p.stat().st_size for p in (model.path, *(model.path.parent / o for o in model.outside)))


def _compiled(core: ov.Core, setup: Setup, computed: str) -> Any:
    """The network for windows of one size: as an earlier run of this user left it, else compiled and kept."""
    how = {
        # One thread per stream keeps every window's bytes independent of the number of threads; of more that is proved.
        "NUM_STREAMS": str(setup.threads),
        "INFERENCE_NUM_THREADS": str(setup.threads * setup.window_threads),
        "INFERENCE_PRECISION_HINT": _HINTS[computed],
        # pinned, the streams of several worker processes would all sit on the first cores; OpenVINO deals streams to
        # NUMA nodes without that
        "ENABLE_CPU_PINNING": False,
    }
    if setup.window_threads > 1:  # else a single stream leaves out every second thread of a core
        how["ENABLE_HYPER_THREADING"] = True
    # read before anything is taken from the cache: a file that is damaged is refused, whatever was made of it before
    attached = attached_network(setup.model, setup.network) if setup.network else None
    key = _key(setup, how)
    with suppress(BackendError, RuntimeError):  # no cache, or nothing that this library takes
        kept = engine_cache.load(KIND, key)
        if kept is not None:
            return core.import_model(io.BytesIO(kept), "CPU", how)
    if attached:
        model = unpacked(attached, _most(setup))
    elif computed == "fp32":
        model = core.read_model(exact_network_of(setup.model, setup.input_shape))
    else:  # in fewer bits steps would be rounded where the library's own norms compute in float32
        model = core.read_model(network_of(setup.model, setup.batch))
    model.reshape(list(setup.input_shape))
    compiled = core.compile_model(model, "CPU", how)
    with suppress(BackendError, RuntimeError):
        made = io.BytesIO()
        compiled.export_model(made)
        if made.tell() <= KEPT:
            engine_cache.store(KIND, key, made.getvalue())
            engine_cache.keep(KIND, LATEST)
    return compiled


def _key(setup: Setup, how: dict[str, Any]) -> engine_cache.Key:
    """All that decides what is compiled."""
    return {
        "format": FORMAT,
        "network": setup.network or setup.model.sha256,
        "features": setup.model.gives_features,
        "split": setup.model.splits,
        "library": library(setup.device),
        "processor": machine.processor(),
        "shape": list(setup.input_shape),
        "how": how,
    }


class OpenVINOBackend(Backend):
    name = "openvino"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.version = f"openvino {ov.__version__}"
        core = shared_core()
        able = precisions(setup.device)
        self._refuse_precision(*(p for p in able if p != "int8" or setup.network))
        computed = setup.rest if setup.precision == "int8" else setup.precision
        if computed not in able:
            raise BackendError(
                f"this processor does not compute in {computed}, in which {setup.model.path.name} was judged; quantize "
                "here again"
            )
        try:
            compiled = _compiled(core, setup, computed)
        except (RuntimeError, UnicodeDecodeError) as error:
            raise ModelError(
                f"{setup.model.path}: OpenVINO refuses the network at windows of {times(setup.window)}: {_cause(error)}; "
                "check that --window divides by the network's pooling, or export the model again"
            ) from error
        self.slots = slots_for(setup.threads)
        self._requests = [compiled.create_infer_request() for _ in range(self.slots)]
        self._inputs: list[Array] = [r.get_input_tensor(0).data for r in self._requests]
        self._outputs: list[Array] = [r.get_output_tensor(0).data for r in self._requests]
        self._check_output(self._outputs[0].shape)

    def identity(self) -> dict[str, Any]:
        return NAMED if self.setup.precision == "fp32" and not self.setup.network else {}

    def input(self, slot: int) -> Array:
        return self._inputs[slot]

    def start(self, slot: int) -> None:
        self._requests[slot].start_async()

    def result(self, slot: int) -> Array:
        try:
            self._requests[slot].wait()
        except RuntimeError as error:
            raise BackendError(f"openvino failed on a window: {_cause(error)}; {ANOTHER}") from error
        return self._outputs[slot]

    def touch(self, slot: int) -> None:
        self._outputs[slot].fill(0)  # all else belongs to the streams

    def close(self) -> None:
        self._requests, self._inputs, self._outputs = [], [], []


def _cause(error: RuntimeError | UnicodeDecodeError) -> str:
    """OpenVINO puts the place in its own sources first and the reason last, and quotes names from corrupt files as they
    are."""
    text = error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else first_line(error)
