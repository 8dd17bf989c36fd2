"""Small operations before and behind a network that become part of its graph: for PyTorch and for ONNX alike.

Each takes and gives float32 (n, c, [z,] y, x), but for those that `Reorder` is made for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Protocol

import numpy as np


class Step(Protocol):
    def on_torch(self, x: Any) -> Any:
        """The tensor that follows from `x`."""
        ...

    def on_onnx(self, graph: Graph, name: str) -> str:
        """Add nodes to `graph` for the value `name`; returns the name of what they give."""
        ...


@dataclass(frozen=True)
class Affine:
    """x * gain + offset, one pair for all channels or one for each."""

    gain: tuple[float, ...]
    offset: tuple[float, ...]

    def on_torch(self, x: Any) -> Any:
        gain, offset = (self._shaped(x, v) for v in (self.gain, self.offset))
        return x * gain + offset

    @staticmethod
    def _shaped(x: Any, values: Sequence[float]) -> Any:
        import torch

        return torch.tensor(values, dtype=x.dtype, device=x.device).reshape(1, -1, *(1,) * (x.dim() - 2))

    def on_onnx(self, graph: Graph, name: str) -> str:
        gain, offset = (
            np.reshape(np.asarray(v, np.float32), (1, -1, *(1,) * graph.space)) for v in (self.gain, self.offset)
        )
        return graph.add("Add", graph.add("Mul", name, graph.value(gain)), graph.value(offset))


@dataclass(frozen=True)
class Clip:
    low: float | None
    high: float | None

    def on_torch(self, x: Any) -> Any:
        return x.clamp(self.low, self.high)

    def on_onnx(self, graph: Graph, name: str) -> str:
        ends = ["" if v is None else graph.value(np.asarray(v, np.float32)) for v in (self.low, self.high)]
        return graph.add("Clip", name, *ends)


@dataclass(frozen=True)
class Sigmoid:
    def on_torch(self, x: Any) -> Any:
        return x.sigmoid()

    def on_onnx(self, graph: Graph, name: str) -> str:
        return graph.add("Sigmoid", name)


@dataclass(frozen=True)
class Softmax:
    """Over the channels."""

    def on_torch(self, x: Any) -> Any:
        return x.softmax(1)

    def on_onnx(self, graph: Graph, name: str) -> str:
        return graph.softmax(name)


@dataclass(frozen=True)
class Above:
    """1 where x is above a threshold, else 0; one for all channels or one for each."""

    threshold: tuple[float, ...]

    def on_torch(self, x: Any) -> Any:
        return (x > Affine._shaped(x, self.threshold)).to(x.dtype)

    def on_onnx(self, graph: Graph, name: str) -> str:
        limit = graph.value(np.reshape(np.asarray(self.threshold, np.float32), (1, -1, *(1,) * graph.space)))
        return graph.cast(graph.add("Greater", name, limit), "float32")


@dataclass(frozen=True)
class Cast:
    """To another type, e.g. whole numbers, which cuts off what follows the point."""

    dtype: str

    def on_torch(self, x: Any) -> Any:
        import torch

        return x.to(getattr(torch, self.dtype))

    def on_onnx(self, graph: Graph, name: str) -> str:
        return graph.cast(name, self.dtype)


@dataclass(frozen=True)
class Reorder:
    """Axes of size 1 taken out, the others brought into another order, axes of size 1 put in."""

    leaving: tuple[int, ...]
    permutation: tuple[int, ...]
    entering: tuple[int, ...]

    def on_torch(self, x: Any) -> Any:
        for axis in reversed(self.leaving):
            x = x.squeeze(axis)
        x = x.permute(self.permutation)
        for axis in self.entering:
            x = x.unsqueeze(axis)
        return x.contiguous()

    def on_onnx(self, graph: Graph, name: str) -> str:
        if self.leaving:
            name = graph.add("Squeeze", name, graph.value(np.asarray(self.leaving, np.int64)))
        if self.permutation != tuple(range(len(self.permutation))):
            name = graph.add("Transpose", name, perm=list(self.permutation))
        if self.entering:
            name = graph.add("Unsqueeze", name, graph.value(np.asarray(self.entering, np.int64)))
        return name


@dataclass(frozen=True)
class Crop:
    """What lies less than `margin` voxels from the sides is cut off."""

    margin: tuple[int, ...]

    def on_torch(self, x: Any) -> Any:
        return x[(..., *(slice(m, -m or None) for m in self.margin))]

    def on_onnx(self, graph: Graph, name: str) -> str:
        cut = [(a + 2, m) for a, m in enumerate(self.margin) if m]
        axes, margins = (np.asarray([pair[i] for pair in cut], np.int64) for i in (0, 1))
        return graph.add("Slice", name, *map(graph.value, (margins, -margins, axes))) if cut else name


@dataclass(frozen=True)
class Finer:
    """Outputs on a coarser grid, brought to that of the input: linear, between the centres of voxels."""

    scale: tuple[int, ...]

    def on_torch(self, x: Any) -> Any:
        from torch.nn import functional

        mode = "bilinear" if len(self.scale) == 2 else "trilinear"
        return functional.interpolate(x, scale_factor=tuple(map(float, self.scale)), mode=mode, align_corners=False)

    def on_onnx(self, graph: Graph, name: str) -> str:
        scales = graph.value(np.asarray([1, 1, *self.scale], np.float32))
        return graph.add("Resize", name, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")


class Graph:
    """Nodes that are added to a graph of ONNX, whose spatial axes are `space`, and which calls things by the names that
    are `taken`. The same steps are called the same each time, as names are part of a model's hash."""

    def __init__(self, opset: int, space: int, taken: Iterable[str] = ()) -> None:
        self.opset, self.space = opset, space
        self.nodes: list[Any] = []
        self.values: list[Any] = []
        self._taken = set(taken)

    def named(self, what: str) -> str:
        """A name that nothing else in the graph has."""
        tries = chain([f"unet_engine_{what}"], (f"unet_engine_{what}_{n}" for n in count()))
        name = next(name for name in tries if name not in self._taken)
        self._taken.add(name)
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        import onnx

        name = self.named(kind.lower())
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def value(self, array: Any) -> str:
        import onnx

        name = self.named("value")
        self.values.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def cast(self, name: str, dtype: str) -> str:
        import onnx

        return self.add("Cast", name, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def softmax(self, name: str) -> str:
        return self.add("Softmax", name, axis=1)


LEAST_OPSET = 13
"""From which on all these operations have the form that is written here."""


def wrapped_graph(proto: Any, before: Sequence[Step], after: Sequence[Step], output: str, space: int) -> Any:
    """A copy of the ModelProto with one input and the one output `output`, called by the engine's axes: `before`
    between its new input and its own, `after` between its output and a new one.

    Raises whatever ONNX's converter raises where the operator set is too old and cannot be converted."""
    import onnx

    proto = _new_enough(proto)
    graph, opset = proto.graph, next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    inner = _images(graph)[0]
    given = onnx.TensorProto.DataType.Name(inner.type.tensor_type.elem_type).lower()
    made = Graph(opset, space, _names(graph))
    name = given_name = made.named("input")
    for step in before:
        name = step.on_onnx(made, name)
    own = {"float": "float32", "double": "float64"}.get(given, given)
    name = made.cast(name, own) if own != "float32" else name
    # by its own name, branches and loops read it, too
    made.nodes.append(onnx.helper.make_node("Identity", [name], [inner.name]))
    first, made.nodes = made.nodes, []
    name = made.cast(output, "float32")
    for step in after:
        name = step.on_onnx(made, name)
    output_name = made.named("output")
    made.nodes.append(onnx.helper.make_node("Identity", [name], [output_name]))
    nodes = [*first, *graph.node, *made.nodes]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(made.values)
    shape = ["batch", None, *(f"n{axis}" for axis in range(space))]
    graph.input.append(onnx.helper.make_tensor_value_info(given_name, 1, shape))
    graph.output.append(onnx.helper.make_tensor_value_info(output_name, 1, [None] * len(shape)))
    return proto


def _names(graph: Any) -> Iterator[str]:
    """Of all values and nodes, those of branches and loops too."""
    for values in (graph.input, graph.initializer, graph.output):
        yield from (value.name for value in values)
    for node in graph.node:
        yield from (node.name, *node.output)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _names(inner)


def _images(graph: Any) -> list[Any]:
    held = {value.name for value in graph.initializer}
    return [value for value in graph.input if value.name not in held]


def _new_enough(proto: Any) -> Any:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    opset = next(o.version for o in copy.opset_import if o.domain in ("", "ai.onnx"))
    return onnx.version_converter.convert_version(copy, LEAST_OPSET) if opset < LEAST_OPSET else copy
