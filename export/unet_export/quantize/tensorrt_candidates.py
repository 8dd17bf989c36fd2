"""Candidates for TensorRT: FP16 and INT8 as typed ONNX graphs. Judged on the GPU where there is one, else emulated in
ONNX Runtime.

An emulated verdict has figures and names layers, and the graph is attached; but it permits nothing until it was
repeated on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unet_engine.backends import tensorrt_api
from unet_engine.backends.libraries import library
from unet_engine.errors import BackendError, ModelError
from unet_engine.model.onnx_half import LARGEST, to_half
from unet_engine.model.onnx_layers import Graph
from unet_engine.model.onnx_network import network_of
from unet_engine.model.onnx_transposed import as_convolutions
from unet_engine.model.verdict import shortfall
from unet_export.quantize.fallback import Attempt
from unet_export.quantize.gate import Candidate, Exam, Infer, session, session_of_outputs
from unet_export.quantize.half import emulated
from unet_export.quantize.judging import SENSITIVITY_WINDOWS, Judging, Outcome, by_error, judge, outcome_of, search
from unet_export.quantize.metrics import distance
from unet_export.quantize.qdq import quantizable, thresholds, to_qdq

Array = npt.NDArray[Any]
NO_GPU = "none"
"""Device of candidates that are emulated."""
SAFE = 0.5
"""Activations above this part of the FP16 range on the calibration windows are taken to leave it on others."""


def candidates(device: str, judging: Judging) -> Iterator[Outcome]:
    """FP16 and INT8, as the request asks. On the device `NO_GPU` they are emulated."""
    wanted = judging.request.precision
    if wanted == "bf16":
        raise BackendError("bf16 is not made for TensorRT; use --precision fp16 or int8")
    proto = _proto(judging)
    tensorrt_api.check_sizes(judging.model.path, proto.SerializeToString(), judging.setup("cuda:0").input_shape)
    graph = Graph(as_convolutions(proto))
    if wanted in ("auto", "fp16"):
        yield _judged("fp16", device, judging, _Half(graph, judging))
    if wanted in ("auto", "int8"):
        yield _judged("int8", device, judging, _Int8(graph, judging))


def _proto(judging: Judging) -> Any:
    import onnx

    network = network_of(judging.model)
    proto = onnx.load_from_string(network) if isinstance(network, bytes) else onnx.load(network)
    del proto.metadata_props[:]
    return Graph(proto).proto


def _judged(precision: str, device: str, judging: Judging, form: _Half | _Int8) -> Outcome:
    setup = judging.setup("cuda:0" if device == NO_GPU else device, precision, form.rest)

    def attempt(kept: tuple[str, ...], exam: Exam) -> Attempt:
        try:
            data = form.typed(kept).SerializeToString(deterministic=True)
        except ModelError as error:
            # weights that do not fit: a candidate that cannot be written down fails like one that computes nonsense
            judging.tell(f"{precision}: {error}")
            data = b""
        candidate = Candidate(setup, "tensorrt", data)
        if device != NO_GPU and data:
            return judge(candidate, kept, exam)
        compared = exam.compare(_emulating(form, kept))
        return Attempt(kept, compared, shortfall(compared.figures, exam.thresholds[precision]), None, None, candidate)

    def order() -> tuple[str, ...]:
        judging.tell(f"{precision}: measuring the sensitivity of {len(form.layers)} layers")
        return form.order(lambda label: error_alone(form, label, judging))

    chosen = search(precision, attempt, order, judging)
    where = "ONNX Runtime, emulated" if device == NO_GPU else library("tensorrt", device)
    return outcome_of(chosen, precision, "tensorrt", where, judging)


class Form(Protocol):
    """Of a network in a lower precision."""

    @property
    def layers(self) -> Sequence[str]:
        """Those that have it, unless they are kept."""

    def emulation(self, kept: Sequence[str]) -> Any:
        """The same computed in fp32, rounded where the form is, as an ONNX graph."""


def _emulating(form: Form, kept: Sequence[str]) -> Infer:
    return session(form.emulation(kept).SerializeToString())


def error_alone(form: Form, label: str, judging: Judging) -> float:
    """Mean `distance` when that layer alone has the lower precision; on windows that are calibrated on, not judged."""
    infer = _emulating(form, [other for other in form.layers if other != label])
    exact = session(network_of(judging.model))
    windows = judging.sample.calibration[:SENSITIVITY_WINDOWS]
    return float(
        np.mean([distance(exact(w[None])[0], infer(w[None])[0], judging.model.spec.activation) for w in windows])
    )


# --- typed graphs ---


class _Half:
    """FP16 throughout, but for layers kept."""

    rest = "fp32"

    def __init__(self, graph: Graph, judging: Judging) -> None:
        self._graph, self._windows = graph, judging.sample.calibration
        self.layers = graph.layers

    def typed(self, kept: Sequence[str]) -> Any:
        return to_half(self._graph.proto, kept)

    def emulation(self, kept: Sequence[str]) -> Any:
        return emulated(self._graph.proto, kept)

    def order(self, alone: Callable[[str], float]) -> tuple[str, ...]:
        """Layers whose activations leave FP16 and those that read them come first, in the order of computation; then by
        error."""
        first = _overflowing(self._graph, self._windows[:SENSITIVITY_WINDOWS])
        return (*first, *by_error({label: alone(label) for label in self.layers if label not in first}))


class _Int8:
    """Convolutions in INT8, what is between them in FP16, or in fp32 where it leaves FP16's range; layers kept
    likewise."""

    rest = "fp16"

    def __init__(self, graph: Graph, judging: Judging) -> None:
        self._graph = graph
        nodes = quantizable(graph)
        self.layers = tuple(dict.fromkeys(graph.label(n) for n in nodes))
        self._single = _overflowing(graph, judging.sample.calibration[:SENSITIVITY_WINDOWS])
        self._limits = thresholds(graph, [n.input[0] for n in nodes], judging.sample.calibration)

    def typed(self, kept: Sequence[str]) -> Any:
        return to_half(to_qdq(self._graph, self._limits, kept), self._single)

    def emulation(self, kept: Sequence[str]) -> Any:
        return emulated(to_qdq(self._graph, self._limits, kept), self._single)

    def order(self, alone: Callable[[str], float]) -> tuple[str, ...]:
        # one layer has to stay quantised: with none of them the network is the FP16 candidate
        return by_error({label: alone(label) for label in self.layers})[:-1]


def _overflowing(graph: Graph, windows: Sequence[Array]) -> tuple[str, ...]:
    """Layers whose results leave FP16 on `windows`, and those that read them, in the order of computation."""
    touched: set[str] = set()
    tensors = [o for n in graph.proto.graph.node for o in n.output if o in graph.floats]
    for first in range(0, len(tensors), 8):
        group = tensors[first : first + 8]
        fetch = session_of_outputs(graph.proto, group)
        for window in windows:
            for name, values in zip(group, fetch(window[None]), strict=True):
                if not np.abs(values).max(initial=0) <= SAFE * LARGEST:
                    touched |= {graph.layer[name], *(graph.layer[o] for r in graph.readers(name) for o in r.output)}
    return tuple(label for label in graph.layers if label in touched)
