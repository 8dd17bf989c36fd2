"""What of a foreign ONNX graph is changed before a library sees it, whichever library it is: one output, float32 in and
out, (batch, channel, *space), and the batch that is asked for.

Nothing inside the graph is renamed: its input and its output get new names and come to be through nodes in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unet_engine.errors import ModelError
from unet_engine.model.onnx_batch import freed
from unet_engine.model.onnx_chance import rows_meet
from unet_engine.model.onnx_shapes import (
    SOFTMAXES,
    attribute,
    dims,
    images_of,
    inferred,
    is_own,
    is_trained,
    opset_of,
    read_by,
)

FLOAT = 1
"""Of ONNX's TensorProto.DataType: float32."""
NUMBERS = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 10: "float16", 11: "float64",
    12: "uint32",
    13: "uint64", 16: "bfloat16",
}  # fmt: skip
"""Types that voxels and results can be cast to and from, by ONNX's number."""
RANGES: dict[int, tuple[float, float]] = {
    2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767), 6: (-(2**31), 2**31 - 128),
    7: (-(2.0**63), 2.0**63 - 2**39),
    12: (0, 2**32 - 256), 13: (0, 2.0**64 - 2**40), 10: (-65504, 65504),
}  # fmt: skip
"""What fits them, as float32 holds it."""
INTEGERS = (2, 3, 4, 5, 6, 7, 12, 13)
LARGEST = 2**31 - 1
"""Bytes of a protobuf message."""


@dataclass(frozen=True)
class Rewriting:
    """How a graph is changed. What it does to values names the network; the batch does nothing to them."""

    output: str
    """The tensor that is the output; it may lie inside the graph."""
    takes: int = FLOAT
    """Type of the graph's own input, and of that tensor."""
    gives: int = FLOAT
    input_axes: tuple[int, ...] = ()
    """Axes of (batch, channel, *space) in the graph's order; empty: as they are. A channel that is not there has one
    element."""
    output_axes: tuple[int | None, ...] = ()
    """For each axis of (batch, channel, *space) its place in that tensor, None for a channel it lacks; empty: as they
    are."""
    changes: bool = True
    """Whether there is anything to change but the batch."""
    alone: bool = False
    """Whether a normalisation by the statistics of a batch becomes one by those of each window: what it is for a batch
    of one, as libraries run it that keep no state and see no other window."""
    joint: bool = False
    """Whether a Softmax of several axes as one, as it was before opset 13, is written as one of a single axis: OpenVINO
    takes it for that of one axis."""

    @property
    def text(self) -> str:
        """What names the network beside the bytes of its file."""
        said = f"{self.output} {self.takes} {self.gives} {self.input_axes} {self.output_axes}" if self.changes else ""
        return said + " alone" * self.alone + " joint" * self.joint


def rewritten(model: Any, how: Rewriting, batch: int, source: object) -> bytes:
    """The graph as `how` says, for `batch` windows at once, as bytes. `model` is changed, and has its weights inside.

    Raises `ModelError` where it becomes larger than a message may be.
    """
    image = images_of(model.graph)[0]
    _prepare(model.graph, how)
    saved = dims(image)[0]
    whole = _batched(model, image.name, batch) if saved not in (0, batch) else model
    repeated = saved if whole is None else 1  # a batch that cannot be changed is filled with the same window
    model = model if whole is None else whole
    model.ir_version = max(model.ir_version, 4)  # a constant need not be an input from there on
    _front(model, how, batch, repeated)
    _back(model, how, repeated)
    if model.ByteSize() > LARGEST:
        raise ModelError(f"{source} holds more than 2 GiB and has to be changed to be run; export it as it is needed")
    data: bytes = model.SerializeToString()
    return data


def rows_are_free(model: Any, how: Rewriting) -> bool:
    """Whether a graph computes batches of any size, each row of them as it does that row alone; `model` is changed."""
    image = images_of(model.graph)[0]
    _prepare(model.graph, how)
    if dims(image)[0] == 0:
        return not rows_meet(model.graph, how.output)
    return _batched(model, image.name, 0) is not None


def _batched(model: Any, name: str, batch: int) -> Any | None:
    """The model for `batch` rows, where its rows are proved to be independent."""
    image = next(i for i in model.graph.input if i.name == name)
    shape = [size or 1 for size in dims(image)]
    for axis, size in enumerate(dims(image)):
        if axis and not size:  # a free size may be any; one that all poolings divide is what shapes are found for
            shape[axis] = 64 if axis > 1 else 1
    copy = freed(model, name, inferred(model, name, shape, strict=False).shapes)
    if copy is not None:
        image = next(i for i in copy.graph.input if i.name == name)
        _sized(image.type.tensor_type.shape.dim[0], batch)
    return copy


def _sized(dim: Any, size: int) -> None:
    dim.Clear()
    if size:
        dim.dim_value = size


def _prepare(graph: Any, how: Rewriting) -> None:
    _keep(graph, how.output)
    if how.alone:
        _part(graph)
    if how.joint:
        _unfold(graph)


def _part(graph: Any) -> None:
    """Every BatchNormalization that works as in training, whose statistics nobody reads, becomes the
    InstanceNormalization that it is for a batch of one. ONNX Runtime also writes what it would learn to the constants of
    the graph, which others may share: one window then changed the next."""
    from onnx import helper

    read = set().union(*map(read_by, graph.node))
    for i, node in enumerate(graph.node):
        if is_trained(node) and not read & set(node.output[1:]):
            eps = attribute(node, "epsilon", 1e-5)
            made = helper.make_node(
                "InstanceNormalization", node.input[:3], node.output[:1], name=node.name, epsilon=eps
            )
            graph.node[i].CopyFrom(made)


def _unfold(graph: Any) -> None:
    """Every Softmax (or its like) becomes one of the last axis of a matrix whose rows are all axes before its own."""
    from onnx import helper

    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type not in SOFTMAXES or not is_own(node):
            graph.node.append(node)
            continue
        given, made = node.input[0], node.output[0]
        shape, rows, found = (f"{made}.{part}" for part in ("shape", "rows", "found"))
        graph.node.extend([
            helper.make_node("Shape", [given], [shape]),
            helper.make_node("Flatten", [given], [rows], axis=attribute(node, "axis", 1)),
            helper.make_node(node.op_type, [rows], [found], axis=1),
            helper.make_node("Reshape", [found, shape], [made]),
        ])  # fmt: skip


def _keep(graph: Any, output: str) -> None:
    """Leave one output, and of the nodes those that lead to it."""
    import onnx

    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= read_by(node)
            nodes.append(node)
    nodes.reverse()
    del graph.node[:]
    graph.node.extend(nodes)
    unused = {t.name for t in (*graph.initializer, *graph.input)} - needed
    for listed in (graph.initializer, graph.input):  # old files list weights as inputs too
        kept = [item for item in listed if item.name not in unused]
        del listed[:]
        listed.extend(kept)
    del graph.output[:], graph.value_info[:]
    graph.output.append(onnx.ValueInfoProto(name=output))


def _front(model: Any, how: Rewriting, batch: int, repeated: int) -> None:
    """A new input (batch, channel, *space) in float32, and nodes from it to the old one."""
    from onnx import helper

    graph = model.graph
    old = images_of(graph)[0]
    sizes = dict(zip(how.input_axes or range(len(dims(old))), dims(old), strict=True))
    sizes[0] = 0 if dims(old)[0] == 0 else batch
    new: list[int | None] = [sizes.get(axis, 1) or None for axis in range(max(sizes) + 1)]
    name, chain = f"{old.name}.voxels", _Chain(model, f"{old.name}.voxels", first=True)
    if repeated > 1:
        chain.tile(repeated, len(new))
    if how.input_axes:
        order = list(how.input_axes)
        if 1 not in order:
            chain.squeeze(1)
            order = [axis - (axis > 1) for axis in order]
        chain.transpose(order)
    if how.takes in RANGES:
        chain.bounded(*RANGES[how.takes], whole=how.takes in INTEGERS)
    chain.cast(how.takes, FLOAT)
    chain.ends_as(old.name)
    graph.input.remove(old)
    graph.input.insert(0, helper.make_tensor_value_info(name, FLOAT, new))


def _back(model: Any, how: Rewriting, repeated: int) -> None:
    """A new output (batch, channel, *space) in float32 behind the old one."""
    chain = _Chain(model, how.output, first=False)
    chain.cast(FLOAT, how.gives)
    if how.output_axes:
        there = [place for place in how.output_axes if place is not None]
        chain.transpose(there)
        if None in how.output_axes:
            chain.unsqueeze(1)
    if repeated > 1:
        chain.first_row()
    del model.graph.output[:]
    chain.ends_as(f"{how.output}.numbers")
    output = model.graph.output.add()
    output.name = f"{how.output}.numbers"
    output.type.tensor_type.elem_type = FLOAT


class _Chain:
    """Nodes one after the other, in front of a graph's or behind them."""

    def __init__(self, model: Any, start: str, *, first: bool) -> None:
        self._model, self._at, self._start, self._first = model, start, start, first
        self._nodes: list[Any] = []
        self._opset = opset_of(model)

    def _add(self, kind: str, more: Sequence[str] = (), **attributes: Any) -> None:
        from onnx import helper

        out = f"{self._start}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, [self._at, *more], [out], **attributes))
        self._at = out

    def _constant(self, values: Any, kind: str) -> str:
        import numpy as np
        from onnx import numpy_helper

        name = f"{self._start}.constant{len(self._nodes)}"
        self._model.graph.initializer.append(numpy_helper.from_array(np.array(values, kind), name))
        return name

    def cast(self, to: int, given: int) -> None:
        if to != given:
            self._add("Cast", to=to)

    def bounded(self, low: float, high: float, *, whole: bool) -> None:
        """Cut off at what the type holds, and to the nearest whole number: a cast alone would wrap and cut."""
        if whole:
            self._add("Add", [self._constant(0.5, "float32")])
            self._add("Floor")
        self._add("Max", [self._constant(low, "float32")])
        self._add("Min", [self._constant(high, "float32")])

    def transpose(self, order: Sequence[int]) -> None:
        if list(order) != sorted(order):
            self._add("Transpose", perm=list(order))

    def _axis(self, kind: str, axis: int) -> None:
        if self._opset < 13:
            self._add(kind, axes=[axis])
        else:
            self._add(kind, [self._constant([axis], "int64")])

    def squeeze(self, axis: int) -> None:
        self._axis("Squeeze", axis)

    def unsqueeze(self, axis: int) -> None:
        self._axis("Unsqueeze", axis)

    def tile(self, times: int, rank: int) -> None:
        self._add("Tile", [self._constant([times] + [1] * (rank - 1), "int64")])

    def first_row(self) -> None:
        self._add("Gather", [self._constant([0], "int64")], axis=0)

    def ends_as(self, name: str) -> None:
        """Call the last tensor `name`, and put the nodes where they belong."""
        if not self._nodes:
            self._add("Identity")
        self._nodes[-1].output[0] = name
        graph = self._model.graph
        others = list(graph.node)
        del graph.node[:]
        graph.node.extend([*self._nodes, *others] if self._first else [*others, *self._nodes])
