"""Which axis of a foreign graph's input and outputs is the channel: what its convolutions take it for.

The axes of the input are followed through the graph. Where they reach a convolution, a pooling or a normalisation over
channels, the second axis there is the channel, whatever its place in the input: networks that come from Keras and
TensorFlow have it last, and a Transpose in front of the first convolution. The output is read in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unet_engine.model.onnx_shapes import Shapes, attribute, integers, is_own

CHANNEL, NEW = -1, -2
"""Marks of axes: made by a convolution; put in, of one element. Other marks are places in the input."""
Marks = tuple[int, ...]

_BY_CHANNEL = frozenset(
    ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "BatchNormalization", "InstanceNormalization",
     "GroupNormalization", "GlobalAveragePool", "GlobalMaxPool", "LRN", "DepthToSpace", "SpaceToDepth")
)  # fmt: skip
"""Operators whose input is (batch, channel, *space) always."""


@dataclass(frozen=True)
class Layout:
    """What the axes of tensors are."""

    order: Marks | None
    """Places in the input of (batch, channel, *space) as the first convolution takes them, `NEW` for an axis that the
    input lacks; None where no convolution tells."""
    channels: int
    """Input channels of that convolution; 0 where they are not known."""
    marks: Mapping[str, Marks]
    """Of the tensors whose axes could be followed: places in the input, `CHANNEL` or `NEW`."""

    def input_axes(self, rank: int) -> tuple[int, ...] | None:
        """Axes of (batch, channel, *space) in the order that the input has them; None where it is not known. The
        channel is left out where the input has none."""
        if self.order is None or NEW in (self.order[0], *self.order[2:]):
            return None
        batch, channel = self.order[:2]
        space = sorted(self.order[2:])
        if sorted(i for i in self.order if i != NEW) != list(range(rank)):
            return None
        meaning = {batch: 0, channel: 1, **{place: 2 + i for i, place in enumerate(space)}}
        return tuple(meaning[place] for place in range(rank))

    def output_axes(self, name: str) -> tuple[int | None, ...] | None:
        """For each axis of (batch, channel, *space) its place in the tensor called `name`, None for a channel that it
        lacks; None where that is not known."""
        marks = self.marks.get(name)
        if marks is None or self.order is None:
            return None
        wanted = [self.order[0], CHANNEL, *sorted(self.order[2:])]
        marks = tuple(CHANNEL if m == self.order[1] != NEW else m for m in marks)
        places = [marks.index(w) if marks.count(w) == 1 else None for w in wanted]
        if places[1] is None and marks.count(NEW) == 1:
            places[1] = marks.index(NEW)
        found = [p for p in places if p is not None]
        if len(found) != len(marks) or any(p is None for p in (places[0], *places[2:])):
            return None
        return tuple(places)


def layout_of(graph: Any, name: str, rank: int, shapes: Shapes) -> Layout:
    """Follow the axes of the input called `name`, which has `rank` of them. `shapes`: as far as they are known."""
    walk = _Walk(graph, shapes)
    walk.marks[name] = tuple(range(rank))
    for node in graph.node:
        if is_own(node) and node.output:
            walk.step(node)
    return Layout(walk.order, walk.channels, walk.marks)


class _Walk:
    def __init__(self, graph: Any, shapes: Shapes) -> None:
        self.marks: dict[str, Marks] = {}
        self.order: Marks | None = None
        self.channels = 0
        self._shapes, self._numbers = shapes, integers(graph)
        self._weights = {t.name: list(t.dims) for t in graph.initializer}

    def step(self, node: Any) -> None:
        given = [self.marks.get(name) for name in node.input]
        first = next((m for m in given if m is not None), None)
        if first is None:
            return
        found: Marks | None
        if node.op_type in _BY_CHANNEL:
            found = self._by_channel(node, given[0])
        elif node.op_type == "MatMul":
            found = self._dense(node, given[0])
        else:
            rule: Callable[[Any, Marks], Marks | None] = getattr(self, f"on_{node.op_type.lower()}", self._kept)
            found = rule(node, max((m for m in given if m is not None), key=len))
        if found is not None:
            for output in node.output if node.op_type == "Split" else node.output[:1]:
                self.marks[output] = found

    def _by_channel(self, node: Any, marks: Marks | None) -> Marks | None:
        if marks is None or len(marks) < 3:
            return None
        if self.order is None:
            self.order = marks
            if node.op_type == "Conv" and len(weights := self._dims(node, 1)) > 1:
                self.channels = weights[1] * int(attribute(node, "group", 1))
        return (marks[0], CHANNEL, *marks[2:])

    def _dense(self, node: Any, marks: Marks | None) -> Marks | None:
        """A matrix that is applied to the last axis of an image makes channels of channels."""
        weights = self._dims(node, 1)
        if marks is None or len(marks) < 4 or len(weights) != 2 or marks[-1] != CHANNEL:
            return None
        return (*marks[:-1], CHANNEL)

    def _dims(self, node: Any, i: int) -> list[int]:
        name = node.input[i] if len(node.input) > i else ""
        return self._weights.get(name) or self._shapes.get(name, [])

    def _rank(self, name: str) -> int | None:
        return len(self._shapes[name]) if name in self._shapes else None

    def _kept(self, node: Any, marks: Marks) -> Marks | None:
        """Operators that leave axes where they are; of others, a rank that changed says so."""
        rank = self._rank(node.output[0])
        return marks if rank in (None, len(marks)) and node.op_type not in _LOSES else None

    # --- operators that move axes ---

    def on_transpose(self, node: Any, marks: Marks) -> Marks | None:
        order = attribute(node, "perm", list(range(len(marks)))[::-1])
        return tuple(marks[i] for i in order)

    def _axes(self, node: Any, rank: int) -> list[int] | None:
        axes = attribute(node, "axes", None)
        if axes is None and len(node.input) > 1:
            axes = self._numbers.get(node.input[1])
        return None if axes is None else [a % rank for a in axes]

    def on_squeeze(self, node: Any, marks: Marks) -> Marks | None:
        axes = self._axes(node, len(marks))
        return None if axes is None else tuple(m for i, m in enumerate(marks) if i not in axes)

    def on_unsqueeze(self, node: Any, marks: Marks) -> Marks | None:
        before = attribute(node, "axes", None) or self._numbers.get(node.input[1] if len(node.input) > 1 else "")
        if before is None:
            return None
        rank = len(marks) + len(before)
        axes, rest = {a % rank for a in before}, iter(marks)
        return tuple(NEW if i in axes else next(rest) for i in range(rank))

    def on_argmax(self, node: Any, marks: Marks) -> Marks | None:
        axis = int(attribute(node, "axis", 0)) % len(marks)
        keep = int(attribute(node, "keepdims", 1))
        return tuple(m for i, m in enumerate(marks) if keep or i != axis)

    on_argmin = on_argmax

    def _reduced(self, node: Any, marks: Marks) -> Marks | None:
        if int(attribute(node, "keepdims", 1)):
            return marks
        axes = self._axes(node, len(marks))
        return None if axes is None else tuple(m for i, m in enumerate(marks) if i not in axes)

    on_reducemax = on_reducemin = on_reducemean = on_reducesum = on_reducel2 = on_reduceprod = _reduced

    def on_reshape(self, node: Any, marks: Marks) -> Marks | None:
        """Axes of one element may come, go and move; the others must stay in their order."""
        before, after = self._shapes.get(node.input[0], []), self._shapes.get(node.output[0], [])
        if len(before) != len(marks) or not all(before) or not all(after):
            return None
        large = [(n, m) for n, m in zip(before, marks, strict=True) if n != 1]
        if [n for n, _ in large] != [n for n in after if n != 1]:
            return None
        ones, rest = [m for n, m in zip(before, marks, strict=True) if n == 1], iter([m for _, m in large])
        more = after.count(1) - len(ones)
        if more < 0:
            return None
        spare = iter([*ones, *[NEW] * more])
        return tuple(next(spare) if n == 1 else next(rest) for n in after)


_LOSES = frozenset(
    ("Flatten", "Gemm", "Shape", "Size", "NonZero", "Einsum", "Gather", "GatherND", "ScatterND", "TopK", "Det")
)
"""Operators after which nothing is known of the axes."""
