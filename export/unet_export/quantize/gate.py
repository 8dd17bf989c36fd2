"""The gate: the same windows through fp32 and through a candidate, what differs, and how long both take."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine import machine
from unet_engine.backends.base import Backend, Setup
from unet_engine.backends.libraries import open_backend
from unet_engine.errors import ModelError, first_line
from unet_engine.model import attachments
from unet_engine.model.attached import NETWORK
from unet_engine.model.file import ModelFile, open_model
from unet_engine.model.onnx_network import network_of
from unet_engine.model.spec import EXPORT_KEY, ModelSpec
from unet_engine.model.verdict import Thresholds
from unet_export.quantize.metrics import Comparison

Array = npt.NDArray[Any]
Infer = Callable[[Array], Array]
"""Windows (n, channels in, *window) float32 to logits (n, channels out, *output)."""
MEASURED, ROUNDS = 0.5, 3
"""Seconds that a network runs for its time to be taken, and how often, in turn with the one it is compared with."""


class Exam:
    """Windows to try candidates on, with what fp32 makes of them. Logits lie in a temporary `file`: they may be
    large."""

    def __init__(
        self,
        windows: Sequence[Array],
        reference: Infer,
        spec: ModelSpec,
        file: Path,
        thresholds: Mapping[str, Thresholds],
    ) -> None:
        """`thresholds`: per precision, what a candidate must reach here."""
        self.windows, self.spec, self.thresholds = windows, spec, thresholds
        first = reference(windows[0][None])[0]
        self._logits = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(len(windows), *first.shape))
        for i, window in enumerate(windows):
            self._logits[i] = first if i == 0 else reference(window[None])[0]
        if not np.isfinite(self._logits).all():
            raise ModelError(
                f"{spec.name} gives NaN or infinity in fp32 already; check its weights, and what --normalize makes of the voxels"
            )

    def compare(self, infer: Infer) -> Comparison:
        found = Comparison(self.spec.class_names, self.spec.activation, self.spec.threshold)
        for window, expected in zip(self.windows, self._logits, strict=True):
            found.add(window, np.asarray(expected), np.asarray(infer(window[None])[0], np.float32))
        return found


# --- fp32 ---


def reference(model: ModelFile, path: str | None, window: tuple[int, ...]) -> tuple[Infer, str]:
    """What candidates are compared with, and its name: PyTorch on the `.pt2` or TorchScript at `path`, else the ONNX in
    ONNX Runtime.

    Export has compared that ONNX with PyTorch, and the name says how far apart they were; without ONNX Runtime,
    OpenVINO in fp32 takes its place.
    """
    from importlib.util import find_spec

    if path is not None:
        original = open_model(path, window, model.spec.activation)
        if (original.spec.axes, original.spec.channels_in, original.spec.channels_out) != (
            model.spec.axes, model.spec.channels_in, model.spec.channels_out,
        ):  # fmt: skip
            raise ModelError(f"--reference {path} has other axes or channels than {model.path}; give what it came from")
        name = "onnxruntime" if original.format == "onnx" else "pytorch"
        backend = open_backend(name, Setup(original, window))
        return backend.infer, f"{backend.version} on {Path(path).name}"
    name = "onnxruntime" if find_spec("onnxruntime") else "openvino"
    if name == "openvino":
        backend = open_backend(name, Setup(model, window))
        return backend.infer, f"{backend.version}, fp32"
    return session(network_of(model)), f"onnxruntime, fp32{_checked(model.path)}"


def _checked(path: Path) -> str:
    """How far the file was from what it was exported from, as it remembers; in words, empty where it does not."""
    import onnx

    notes = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    if EXPORT_KEY not in notes:
        return ""
    note = json.loads(notes[EXPORT_KEY])
    return (
        f", at most {note['largest_difference']:.1e} of the largest output from {note['origin']} when it was exported"
    )


def session(network: Path | bytes) -> Infer:
    """An ONNX network in ONNX Runtime on all cores, as written: nothing is rearranged that could change what is rounded
    when."""
    import onnxruntime

    options = _session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        opened = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime refuses the network: {first_line(error)}; export it again") from error
    name = opened.get_inputs()[0].name

    def infer(batch: Array) -> Array:
        return np.asarray(opened.run(None, {name: np.ascontiguousarray(batch, np.float32)})[0])

    return infer


def session_of_outputs(proto: Any, tensors: Sequence[str]) -> Callable[[Array], list[Array]]:
    """What `tensors` inside an ONNX graph are for a batch, in their order."""
    import onnx
    import onnxruntime

    opened = onnx.ModelProto()
    opened.CopyFrom(proto)
    del opened.graph.output[:]
    inputs = {i.name for i in proto.graph.input}
    opened.graph.output.extend(onnx.helper.make_empty_tensor_value_info(t) for t in tensors if t not in inputs)
    ready = (
        onnxruntime.InferenceSession(opened.SerializeToString(), _session_options(), providers=["CPUExecutionProvider"])
        if opened.graph.output
        else None
    )
    name = proto.graph.input[0].name

    def fetch(batch: Array) -> list[Array]:
        x = np.ascontiguousarray(batch, np.float32)
        outputs = iter(ready.run(None, {name: x}) if ready else ())
        return [x if t in inputs else np.asarray(next(outputs)) for t in tensors]

    return fetch


def _session_options() -> Any:
    """All cores, and no warnings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = machine.cpu_count()
    options.log_severity_level = 3
    return options


# --- a candidate on its back end ---


@dataclass(frozen=True)
class Candidate:
    """A candidate: how to open it, and what the file would have to carry."""

    setup: Setup
    backend: str
    data: bytes | None
    """The network to attach; None where the library computes the file's own in another arithmetic."""

    @property
    def network(self) -> str | None:
        return None if self.data is None else sha256(self.data).hexdigest()


@contextmanager
def opened(candidate: Candidate) -> Iterator[Backend]:
    """The candidate exactly as a run would open it: from a model file that has it attached."""
    with tempfile.TemporaryDirectory() as folder:
        setup = candidate.setup
        if candidate.data is not None:
            import base64

            path = Path(folder, "candidate.onnx")
            path.write_bytes(b"")
            attachments.attach(path, path, {f"{NETWORK}{candidate.network}": base64.b64encode(candidate.data)})
            setup = replace(setup, model=replace(setup.model, path=path), network=candidate.network)
        backend = open_backend(candidate.backend, setup)
        try:
            yield backend
        finally:
            backend.close()


def both_seconds(candidate: Backend, fp32: Backend, windows: Sequence[Array]) -> tuple[float, float]:
    """Seconds per window of both, the least of rounds in turn: other work on the machine only ever adds."""
    rounds = [(seconds_per_window(candidate, windows), seconds_per_window(fp32, windows)) for _ in range(ROUNDS)]
    return min(r[0] for r in rounds), min(r[1] for r in rounds)


def seconds_per_window(backend: Backend, windows: Sequence[Array], seconds: float = MEASURED) -> float:
    """Throughput with every slot in flight, as a run keeps them; after one round to warm up."""
    for slot in range(backend.slots):
        backend.input(slot)[...] = windows[slot % len(windows)]
        backend.start(slot)
    done, begun = 0, time.perf_counter()
    while done < backend.slots or time.perf_counter() - begun < seconds:
        slot = done % backend.slots
        backend.result(slot)
        if done == backend.slots - 1:
            begun = time.perf_counter()
        backend.start(slot)
        done += 1
    elapsed = time.perf_counter() - begun
    for slot in range(backend.slots):
        backend.result(slot)
    return elapsed / max(1, done - backend.slots)
