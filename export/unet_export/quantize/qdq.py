"""INT8 for TensorRT: an ONNX graph with QuantizeLinear and DequantizeLinear, signed and symmetric, as its explicit
quantisation wants.

Weights have one scale per output channel and are stored as int8; activations have one scale per tensor, on the input of
a convolution. What a convolution reads from a concatenation so has one scale for all branches. Left out are the
convolutions that give the output, which decide the labels, and transposed convolutions, which fall to FP16 in TensorRT,
but for those that were made plain ones before (`unet_engine.model.onnx_transposed`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.errors import ModelError
from unet_engine.model.onnx_layers import BACK, INT8, Graph
from unet_export.quantize.gate import session_of_outputs

Array = npt.NDArray[Any]
BINS = 2048
LEVELS = 127
"""Largest quantised magnitude: -128 is not used, so that the range is symmetric."""


def quantizable(graph: Graph) -> list[Any]:
    """The convolutions that are quantised unless the gate says otherwise."""
    return [
        n
        for n in graph.proto.graph.node
        if n.op_type == "Conv" and graph.is_weighted(n) and not _gives_output(n, graph)
    ]


def _gives_output(node: Any, graph: Graph) -> bool:
    """Whether no other weights come between the node and the output."""
    outputs = {o.name for o in graph.proto.graph.output}
    front, seen = list(node.output), set()
    while front:
        tensor = front.pop()
        if tensor in outputs:
            return True
        for reader in graph.readers(tensor):
            if not graph.is_weighted(reader) and reader.output[0] not in seen:
                seen.update(reader.output)
                front += reader.output
    return False


def thresholds(graph: Graph, tensors: Iterable[str], windows: Sequence[Array]) -> dict[str, float]:
    """Per tensor the magnitude that the largest quantised value stands for.

    Chosen among 100 fractions of the largest magnitude seen, for the least squared error of rounding plus clipping on a
    histogram of `windows` (channels, *window). Tensors are fetched in groups, to bound memory.
    """
    wanted = list(dict.fromkeys(tensors))
    found: dict[str, float] = {}
    for first in range(0, len(wanted), 8):
        group = wanted[first : first + 8]
        fetch = session_of_outputs(graph.proto, group)
        largest = dict.fromkeys(group, 0.0)
        for window in windows:
            for name, values in zip(group, fetch(window[None]), strict=True):
                largest[name] = max(largest[name], float(np.abs(values).max()))
        counts = {name: np.zeros(BINS) for name in group}
        for window in windows:
            for name, values in zip(group, fetch(window[None]), strict=True):
                counts[name] += np.histogram(np.abs(values), BINS, (0, largest[name] or 1.0))[0]
        found |= {name: _least_error(counts[name], largest[name]) for name in group}
    return found


def _least_error(counts: Array, largest: float) -> float:
    """`counts` of magnitudes in `BINS` equal bins from 0 to `largest`."""
    if not 0 < largest < np.inf:
        return 1.0
    middles = (np.arange(BINS) + 0.5) * largest / BINS
    best, least = largest, np.inf
    for fraction in np.linspace(0.01, 1, 100):
        limit = fraction * largest
        step = limit / LEVELS
        error = float(counts @ np.where(middles <= limit, step * step / 12, np.square(middles - limit)))
        if error < least:
            best, least = float(limit), error
    return best


def to_qdq(graph: Graph, limits: dict[str, float], kept: Collection[str] = ()) -> Any:
    """The graph with all of `quantizable` quantised but the layers `kept`. `limits`: `thresholds` of their inputs.

    Raises `ModelError` where no layer would be quantised.
    """
    import onnx

    chosen = {n.output[0] for n in quantizable(graph) if graph.label(n) not in kept}
    if not chosen:
        raise ModelError("no convolution is left to quantise; use --precision fp16")
    result = onnx.ModelProto()
    result.CopyFrom(graph.proto)
    del result.graph.node[:], result.graph.value_info[:]
    made = _Quantised(graph, limits)
    for old in graph.proto.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(old)
        if old.output[0] in chosen:
            node.input[0], node.input[1] = made.input(old.input[0]), made.weights(old.input[1])
        made.nodes.append(node)
    result.graph.node.extend(made.nodes)
    used = {name for node in result.graph.node for name in node.input}
    unused = [t for t in result.graph.initializer if t.name not in used]
    for t in unused:
        result.graph.initializer.remove(t)
    result.graph.initializer.extend(made.tensors)
    return result


class _Quantised:
    """Nodes and tensors of the graph as it grows; each tensor is quantised once, whoever reads it."""

    def __init__(self, graph: Graph, limits: dict[str, float]) -> None:
        self.nodes, self.tensors = list[Any](), list[Any]()
        self._graph, self._limits = graph, limits
        self._done: dict[str, str] = {}

    def input(self, name: str) -> str:
        """The name of a layer's input as INT8 gives it back."""
        if name not in self._done:
            scale = self._tensor(f"{name}/scale", np.array(self._limits[name] / LEVELS, np.float32))
            zero = self._tensor(f"{name}/zero", np.array(0, np.int8))
            self._node("QuantizeLinear", [name, scale, zero], f"{name}{INT8}", f"{name}/quantize")
            self._back(name, [f"{name}{INT8}", scale, zero])
        return self._done[name]

    def weights(self, name: str) -> str:
        """The same of weights, which are stored as INT8, with a scale for each output channel."""
        if name not in self._done:
            weights = self._graph.values(name)
            scale = np.maximum(np.abs(weights).reshape(len(weights), -1).max(1), 1e-30) / LEVELS
            shape = (-1,) + (1,) * (weights.ndim - 1)
            values = np.clip(np.rint(weights / scale.reshape(shape)), -LEVELS, LEVELS).astype(np.int8)
            inputs = [
                self._tensor(f"{name}{INT8}", values),
                self._tensor(f"{name}/scale", scale.astype(np.float32)),
                self._tensor(f"{name}/zero", np.zeros(len(scale), np.int8)),
            ]
            self._back(name, inputs, axis=0)
        return self._done[name]

    def _back(self, name: str, inputs: list[str], **attributes: int) -> None:
        self._done[name] = f"{name}{BACK}"
        self._node("DequantizeLinear", inputs, self._done[name], f"{name}/dequantize", **attributes)

    def _node(self, kind: str, inputs: list[str], output: str, name: str, **attributes: int) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))

    def _tensor(self, name: str, values: Array) -> str:
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(values, name))
        return name
