"""What an ONNX graph does to an image before its first layer: many networks scale the grey levels themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.model.onnx_shapes import flat

Interval = tuple[float, float]
_SAME = frozenset({"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Pad", "Dropout"})
_STATISTICS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool")
_NORMALISES = frozenset(
    {
        "InstanceNormalization",
        "LayerNormalization",
        "GroupNormalization",
        "MeanVarianceNormalization",
        "LpNormalization",
    }
)
_LONGEST = 32
"""Nodes that are followed; scaling takes fewer."""


def first_layer(path: Path, low: float, high: float, channel: int = 0) -> Interval | None:
    """Where values of `channel` between `low` and `high` lie for the first layer that is no mere scaling.

    None: the graph takes statistics of the image, so that it does not matter. A graph that cannot be read is taken to
    scale nothing.
    """
    import onnx

    try:
        return _Beginning(flat(onnx.load(path, load_external_data=False)).graph, channel).of((low, high))
    except Exception:  # what is wrong with the file is said where it is opened
        return low, high


class _Beginning:
    def __init__(self, graph: Any, channel: int) -> None:
        from onnx import numpy_helper

        small = [t for t in graph.initializer if not t.external_data and np.prod(t.dims) <= 2**16]
        self._constants = {t.name: numpy_helper.to_array(t) for t in small}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        named = {t.name for t in graph.initializer}
        self._name = next(i.name for i in graph.input if i.name not in named)
        self._graph, self._channel = graph, channel

    def of(self, values: Interval) -> Interval | None:
        name = self._name
        for _ in range(_LONGEST):
            readers = [n for n in self._graph.node if name in n.input and n.op_type not in ("Shape", "Size")]
            if any(n.op_type in _STATISTICS or n.op_type in _NORMALISES for n in readers):
                return None
            if len(readers) != 1 or not readers[0].output:
                return values
            found = self._step(readers[0], name, values)
            if found is None:
                return values
            values, name = found, readers[0].output[0]
        return values

    def _step(self, node: Any, name: str, values: Interval) -> Interval | None:
        """The values behind one node; None where it is more than scaling."""
        if node.op_type in _SAME:
            return values
        if node.op_type == "BatchNormalization":
            return self._normalised(node, values)
        if node.op_type == "Clip":
            low, high = (self._bound(node, i) for i in (1, 2))
            ends = [min(max(v, -np.inf if low is None else low), np.inf if high is None else high) for v in values]
            return float(ends[0]), float(ends[1])
        if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
            return None
        other = self._of_channel(node.input[1 if node.input[0] == name else 0])
        if other is None:
            return None
        return _apply(node.op_type, values, other, swapped=node.input[0] != name)

    def _normalised(self, node: Any, values: Interval) -> Interval | None:
        scale, shift, mean, variance = (self._of_channel(i) for i in node.input[1:5])
        if scale is None or shift is None or mean is None or variance is None:
            return None
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        low, high = sorted((v - mean) / (variance + epsilon) ** 0.5 * scale + shift for v in values)
        return low, high

    def _bound(self, node: Any, place: int) -> float | None:
        if len(node.input) <= place or not node.input[place]:
            return next((a.f for a in node.attribute if a.name == ("min", "max")[place - 1]), None)
        return self._of_channel(node.input[place])

    def _of_channel(self, name: str) -> float | None:
        """A constant of one value, or that of the channel where it has one for each."""
        found: npt.NDArray[Any] | None = self._constants.get(name)
        if found is None or not found.size:
            return None
        flat = np.asarray(found, np.float64).ravel()
        return float(flat[self._channel] if self._channel < flat.size else flat[0])


def _apply(operator: str, values: Interval, by: float, *, swapped: bool) -> Interval | None:
    if swapped and operator == "Div":
        return None
    ends = {
        "Add": [v + by for v in values],
        "Sub": [by - v if swapped else v - by for v in values],
        "Mul": [v * by for v in values],
        "Div": [v / by if by else v for v in values],
    }[operator]
    return min(ends), max(ends)
