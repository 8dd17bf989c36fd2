"""The outputs of a foreign ONNX graph as the rule for several of them sees them, and where labels are cut off again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unet_engine.errors import ModelError
from unet_engine.model.onnx_layout import Layout
from unet_engine.model.onnx_rewrite import INTEGERS, NUMBERS
from unet_engine.model.onnx_shapes import Tensors, attribute, is_own
from unet_engine.model.outputs import Output

_VOXEL_BY_VOXEL = frozenset(
    ("Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Identity", "Cast", "Clip", "Round", "ArgMax", "Squeeze",
     "Unsqueeze", "Transpose", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not")
)  # fmt: skip
"""Operators whose result tells nothing that their first input does not tell."""
_AFTER_ARGMAX = frozenset(("Identity", "Cast", "Squeeze", "Unsqueeze", "Transpose"))
"""Operators that leave labels what they are."""
_TYPES = {8: "string", 9: "bool", 14: "complex64", 15: "complex128"}


@dataclass(frozen=True)
class Head:
    """An output of the graph, and the tensor that is taken for it."""

    name: str
    tensor: str
    """Itself, or what goes into the ArgMax that it comes from."""
    shape: tuple[int, ...] | None
    """(channel, *space) of that tensor; its own axes but the first where these are not an image's; None where it is not
    known."""
    axes: tuple[int | None, ...]
    """As `Rewriting.output_axes`."""
    type: int
    """ONNX's number of the type of that tensor."""
    labels: bool
    """Whether the output itself is of a type that is not blended."""
    made_by: str
    """The operator that gives it."""
    root: str
    """The tensor that it is made from voxel by voxel."""

    @property
    def is_cut(self) -> bool:
        return self.tensor != self.name

    def output(self) -> Output:
        return Output(self.name, self.shape, "" if self.root == self.name else self.root, self.labels)


class Heads:
    """Reads the outputs of a graph."""

    def __init__(
        self, graph: Any, tensors: Tensors, layout: Layout, input_axes: tuple[int, ...], window: tuple[int, ...]
    ) -> None:
        """`input_axes`: as `Rewriting.input_axes`. `window`: sizes of the input's spatial axes, for tensors whose axes
        could not be followed."""
        self._graph, self._tensors, self._layout = graph, tensors, layout
        self._input_axes, self._window = input_axes, window
        self._makers = {name: node for node in graph.node for name in node.output}

    def all(self) -> list[Head]:
        return [self._head(output) for output in self._graph.output]

    def _head(self, output: Any) -> Head:
        name = output.name
        whole = output.type.HasField("tensor_type") or not output.type.WhichOneof("value")
        kind = self._tensors.types.get(name) or output.type.tensor_type.elem_type or (1 if whole else 0)
        tensor = self._before_argmax(name) or name
        axes, shape = self._axes(tensor)
        maker = self._makers.get(name)
        return Head(
            name, tensor, shape, axes,
            self._tensors.types.get(tensor, 1) or 1 if tensor != name else kind,
            labels=kind in (*INTEGERS, *_TYPES, 0), made_by=maker.op_type if maker is not None else "",
            root=self._root(name),
        )  # fmt: skip

    def _root(self, name: str) -> str:
        while (node := self._makers.get(name)) is not None and node.op_type in _VOXEL_BY_VOXEL and is_own(node):
            name = node.input[0]
        return name

    def _before_argmax(self, name: str) -> str | None:
        """The tensor whose largest channel the output called `name` tells; None where it is no such thing."""
        while (node := self._makers.get(name)) is not None and node.op_type in _AFTER_ARGMAX and is_own(node):
            name = node.input[0]
        if node is None or node.op_type != "ArgMax" or attribute(node, "select_last_index", 0):
            return None
        before = str(node.input[0])
        rank = len(self._layout.marks.get(before) or self._tensors.shapes.get(before, []))
        places = self._axes(before)[0]
        channel = places[1] if places else 1
        return before if rank and int(attribute(node, "axis", 0)) % rank == channel else None

    def _axes(self, name: str) -> tuple[tuple[int | None, ...], tuple[int, ...] | None]:
        """Where (batch, channel, *space) lie in a tensor, empty where they lie in this order, and its shape in this
        order without the batch."""
        shape = self._tensors.shapes.get(name)
        axes = self._layout.output_axes(name)
        if shape is None or not all(shape):
            return _plain(axes or ()), None
        if axes is None:
            axes = self._by_size(shape)
        if axes is None or len([a for a in axes if a is not None]) != len(shape):
            return (), tuple(shape[1:])
        return _plain(axes), tuple(1 if a is None else shape[a] for a in axes[1:])

    def _by_size(self, shape: list[int]) -> tuple[int | None, ...] | None:
        """Of a tensor whose axes were lost on the way: those of the input, or without channels where one is missing."""
        n = len(self._window)
        if len(shape) == n + 1 and tuple(shape[1:]) == self._window:
            return (0, None, *range(1, n + 1))
        if len(shape) != n + 2:
            return None
        last = (0, n + 1, *range(1, n + 1))
        fits_last, fits_first = tuple(shape[1:-1]) == self._window, tuple(shape[2:]) == self._window
        if self._input_axes and (fits_last or not fits_first):
            return last
        return tuple(range(n + 2))


def _plain(axes: tuple[int | None, ...]) -> tuple[int | None, ...]:
    return () if axes == tuple(range(len(axes))) else axes


def _type_name(kind: int) -> str:
    """Of a type that nothing is blended in, e.g. numbers of 8 bits with a point."""
    import onnx

    known = kind in onnx.TensorProto.DataType.values() and kind
    return onnx.TensorProto.DataType.Name(kind).lower() if known else "no tensor"


def checked(path: object, head: Head, activation_said: bool) -> Head:  # noqa: FBT001  # a fact, not a choice
    """The head, where its numbers can be blended. Raises `ModelError` that names its type and what to do."""
    if not head.made_by:
        raise ModelError(f"{path}: nothing in its graph makes its output {head.name}; export it again")
    what = "" if head.type in NUMBERS else _TYPES.get(head.type) or _type_name(head.type)
    said = f"{path}: its output {head.name} holds {what or NUMBERS[head.type]}, made by {head.made_by}"
    if what:
        raise ModelError(f"{said}; export the network with the numbers that lie before it as its output")
    channels = head.shape[0] if head.shape else 0
    if head.type in INTEGERS and (head.made_by == "ArgMax" or (channels < 2 and not activation_said)):
        raise ModelError(
            f"{said}: labels cannot be blended; export the network with the numbers that lie before it as its output"
            + ("" if head.made_by == "ArgMax" else ", or say what they are with --activation")
        )
    return head
