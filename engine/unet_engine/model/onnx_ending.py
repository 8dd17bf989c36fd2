"""What the outputs of a foreign ONNX graph are, as far as the graph proves it: bounds of its tensors, from the first
node to the last.

A convolution is unbounded, whatever came before it, so a sigmoid in the middle (an attention gate, a Swish) tells
nothing of the output. A sigmoid at the end does, also behind an Identity, Clip, Reshape, Transpose or Resize, and so do
a softmax written out and the mean of several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, log, prod, tanh
from typing import Any

import numpy as np

from unet_engine.model.ending import SLACK, UNPROVED, Ending
from unet_engine.model.onnx_shapes import Shapes, attribute, images_of, inferred, is_own, opset_of

LOST = -1
"""The classes that excluded one another are no axis of the tensor any more."""
LARGEST_CONSTANT = 2**20
"""Elements of a constant that are looked at; a larger one is a weight."""


@dataclass(frozen=True)
class _Bound:
    """What is known of every element of a tensor."""

    low: float = -inf
    high: float = inf
    axis: int | None = None
    """The axis along which elements sum to `total`, as after a softmax; `LOST` where they did so once."""
    total: float = 1.0
    end: str = ""
    """The operator that bounds it, for people."""
    constant: bool = False
    whole: bool = False
    """Whether all are whole numbers: labels or masks, which no logits are."""


_UNKNOWN = _Bound()


def ending(graph: Any, opset: int, shapes: Shapes, output: str, channel: int = 1) -> Ending:
    """What bounds the tensor called `output`, with its channels along the axis `channel`. `shapes` by name, as far as
    they are known."""
    known: dict[str, _Bound] = {t.name: _constant(t) for t in graph.initializer}
    complements: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            known[node.output[0]] = _constant(node.attribute[0].t)
            continue
        own = is_own(node)
        given = [known.get(name, _UNKNOWN) for name in node.input]
        found = _Node(node, given, opset, shapes).bound() if own else _UNKNOWN
        if own and node.op_type == "Sub" and (given[0].constant and given[0].low == given[0].high == 1):
            complements[node.output[0]] = node.input[1]
        if own and node.op_type == "Concat" and _opposite(list(node.input), complements) and found.low >= -SLACK:
            found = replace(found, axis=attribute(node, "axis", 1) % max(1, len(shapes.get(node.output[0], [0]))))
        if found != _UNKNOWN and node.output:
            known |= dict.fromkeys(node.output if node.op_type == "Split" else node.output[:1], found)
    last = known.get(output, _UNKNOWN)
    axis = last.axis if last.axis is None or abs(last.total - 1) < SLACK else LOST
    return Ending(last.low, last.high, last.end, None if axis is None else axis == channel, last.whole)


def ending_for(model: Any, shape: Sequence[int]) -> Ending:
    """What bounds the first output of an ONNX model for an input of this shape."""
    graph = model.graph
    shapes = inferred(model, images_of(graph)[0].name, shape, strict=False).shapes
    return ending(graph, opset_of(model), shapes, graph.output[0].name)


_ROUNDING: dict[str, Callable[[float], Any]] = {"Round": np.rint, "Floor": np.floor, "Ceil": np.ceil}
_DECIDING = frozenset(
    {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not", "IsNaN", "IsInf"}
)
"""Operators whose output is true or false."""
_BOUNDING = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Exp", "Hardmax", *_ROUNDING, *_DECIDING})
"""Operators without one of which no graph has outputs that are probabilities, or whole numbers."""


def proved_of(model: Any, shape: Sequence[int]) -> Ending:
    """As `ending_for`, of a model that may be anything. Most U-Nets have nothing that bounds outputs: told without a
    copy."""
    if not any(node.op_type in _BOUNDING for node in model.graph.node):
        return UNPROVED
    try:
        return ending_for(model, shape)
    except Exception:  # shape inference raises what it likes; nothing is proved then
        return UNPROVED


def _opposite(names: list[str], complements: Mapping[str, str]) -> bool:
    """Whether these are two tensors of which one is 1 minus the other."""
    return len(names) == 2 and (complements.get(names[0]) == names[1] or complements.get(names[1]) == names[0])


def _constant(tensor: Any) -> _Bound:
    from onnx import numpy_helper

    if tensor.external_data or not 0 < prod(tensor.dims) <= LARGEST_CONSTANT or tensor.data_type == 8:  # 8: strings
        return _UNKNOWN
    values = np.asarray(numpy_helper.to_array(tensor), np.float64)
    if not np.isfinite(values).all():
        return _UNKNOWN
    whole = bool((values == np.rint(values)).all())
    return _Bound(float(values.min()), float(values.max()), constant=True, whole=whole)


class _Node:
    """The bound of one node's first output, from those of its inputs."""

    def __init__(self, node: Any, given: list[_Bound], opset: int, shapes: Shapes) -> None:
        self.node, self.given, self.opset, self.shapes = node, given, opset, shapes

    def bound(self) -> _Bound:
        rule: Callable[[], _Bound] | None = getattr(self, f"on_{self.node.op_type.lower()}", None)
        if rule is not None:
            return rule()
        kind = self.node.op_type
        if kind in _DECIDING:
            return _Bound(0, 1, end=kind, whole=True)
        if kind in _ROUNDING and self.given:
            low, high = (float(_ROUNDING[kind](bound)) for bound in (self.given[0].low, self.given[0].high))
            return _Bound(low, high, end=kind, whole=True)
        if kind in _SAME and self.given:
            return self._kept()
        if kind in _MONOTONE and self.given:
            found = _MONOTONE[kind]
            x = self.given[0]
            return _Bound(found(x.low), found(x.high), end=kind, whole=x.whole and kind == "Relu")
        return _UNKNOWN

    # --- axes ---

    def _shape(self, name: str) -> list[int]:
        return list(self.shapes.get(name, []))

    def _axis(self, default: int) -> int | None:
        """The axis that the node names, counted from the front; None where the rank is not known."""
        rank = len(self._shape(self.node.input[0])) or len(self._shape(self.node.output[0]))
        axis = int(attribute(self.node, "axis", default))
        return axis if axis >= 0 else axis + rank if rank else None

    def _kept(self) -> _Bound:
        """The same elements in another shape: the axis of the classes is where as many elements lie before it."""
        x = self.given[0]
        if x.axis in (None, LOST):
            return x
        before, after = self._shape(self.node.input[0]), self._shape(self.node.output[0])
        if not before or not all(before) or not all(after):
            same = self.node.op_type in ("Identity", "Cast", "Dropout")
            return x if same else replace(x, axis=LOST)
        assert x.axis is not None
        places = [
            a for a, size in enumerate(after) if size == before[x.axis] and prod(after[:a]) == prod(before[: x.axis])
        ]
        moved = prod(after) != prod(before) and len(after) != len(before)
        return replace(x, axis=LOST if not places or moved else places[0])

    def on_transpose(self) -> _Bound:
        x = self.given[0]
        if x.axis in (None, LOST):
            return x
        rank = len(self._shape(self.node.input[0]))
        order = list(attribute(self.node, "perm", range(rank)[::-1]))
        return replace(x, axis=order.index(x.axis) if x.axis in order else LOST)

    def on_slice(self) -> _Bound:
        """Part of the elements: the classes still exclude one another where all of them stay."""
        x = self.given[0]
        if x.axis in (None, LOST):
            return x
        before, after = self._shape(self.node.input[0]), self._shape(self.node.output[0])
        assert x.axis is not None
        stay = len(before) == len(after) and before[x.axis] and before[x.axis] == after[x.axis]
        return x if stay else replace(x, axis=LOST)

    on_gather = on_split = _resize_kept = on_slice

    def on_resize(self) -> _Bound:
        mode = attribute(self.node, "mode", b"nearest")
        return _UNKNOWN if mode not in (b"nearest", b"linear") else self._resize_kept()

    on_upsample = on_resize

    # --- activations ---

    def on_sigmoid(self) -> _Bound:
        return _Bound(0, 1, end=self.node.op_type)

    on_hardsigmoid = on_sigmoid

    def on_softmax(self) -> _Bound:
        axis = self._axis(1 if self.opset < 13 else -1)
        if axis is not None and self.opset < 13:  # older ones take all axes from there on as one
            rest = self._shape(self.node.input[0])[axis + 1 :]
            axis = axis if self._shape(self.node.input[0]) and all(n == 1 for n in rest) else None
        return _Bound(0, 1, axis=LOST if axis is None else axis, end="Softmax")

    def on_hardmax(self) -> _Bound:
        return replace(self.on_softmax(), end="Hardmax", whole=True)

    def on_logsoftmax(self) -> _Bound:
        return _Bound(-inf, 0, end="LogSoftmax")

    def on_clip(self) -> _Bound:
        x = self.given[0]
        least, most = float(attribute(self.node, "min", -inf)), float(attribute(self.node, "max", inf))
        least, most = (
            bound if len(self.given) <= i or not self.node.input[i] else getattr(self.given[i], side)
            for i, bound, side in ((1, least, "low"), (2, most, "high"))
        )
        if x.low >= least - SLACK and x.high <= most + SLACK:
            return x
        if x.low >= -SLACK and x.high <= 1 + SLACK and least <= SLACK and most >= 1 - SLACK:
            return x
        low, high = min(max(x.low, least), most), max(min(x.high, most), least)
        end = x.end if x.high <= most + SLACK else "Clip"
        return _Bound(low, high, LOST if x.axis is not None else None, end=end, whole=self._whole())

    # --- arithmetic ---

    def on_add(self) -> _Bound:
        low, high = sum(x.low for x in self.given), sum(x.high for x in self.given)
        axes = {x.axis for x in self.given}
        axis = next(iter(axes)) if len(axes) == 1 else LOST if axes - {None} else None
        return _Bound(low, high, axis, sum(x.total for x in self.given), self._end(), whole=self._whole())

    on_sum = on_add

    def on_mean(self) -> _Bound:
        return self._scaled(self.on_add(), 1 / len(self.given))

    def on_neg(self) -> _Bound:
        return self._scaled(self.given[0], -1)

    def on_sub(self) -> _Bound:
        a, b = self.given
        axis = None if a.axis is None and b.axis is None else LOST
        return _Bound(a.low - b.high, a.high - b.low, axis, end=self._end(), whole=self._whole())

    def on_mul(self) -> _Bound:
        a, b = self.given
        for x, factor in ((a, b), (b, a)):
            if factor.constant and factor.low == factor.high:
                return self._scaled(x, factor.low)
        ends = [_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        axis = None if a.axis is None and b.axis is None else LOST
        return _Bound(min(ends), max(ends), axis, end=self._end(), whole=self._whole())

    def on_div(self) -> _Bound:
        a, b = self.given
        if b.constant and b.low == b.high != 0:
            return self._scaled(a, 1 / b.low)
        if a.low >= 0 and (axis := self._share()) is not None:
            return _Bound(0, 1, axis, end="Softmax")
        if b.low <= 0 or a.low < 0:
            return _UNKNOWN
        return _Bound(a.low / b.high, a.high / b.low if a.high < inf else inf, end=self._end())

    def _share(self) -> int | None:
        """The axis, where what is divided by is the sum of what is divided along it: a softmax written out."""
        summed = self.given[1].end.split(" ")
        if summed[0] != "ReduceSum" or summed[1] != self.node.input[0]:
            return None
        return int(summed[2])

    def on_reducesum(self) -> _Bound:
        """Says what was summed and along which axis, where it was one that stayed."""
        x = self.given[0]
        before, after = self._shape(self.node.input[0]), self._shape(self.node.output[0])
        axes = [a for a, (n, m) in enumerate(zip(before, after, strict=False)) if n != m]
        if x.low < 0 or len(before) != len(after) or len(axes) != 1:
            return _UNKNOWN
        return _Bound(x.low, inf, end=f"ReduceSum {self.node.input[0]} {axes[0]}")

    def on_reciprocal(self) -> _Bound:
        x = self.given[0]
        return _Bound(1 / x.high, 1 / x.low, end="Reciprocal") if x.low > 0 else _UNKNOWN

    def on_concat(self) -> _Bound:
        along, axes = self._axis(1), {x.axis for x in self.given}
        axis = next(iter(axes)) if len(axes) == 1 else LOST
        axis = LOST if axis is not None and axis == along else axis
        axis = None if axes == {None} else axis
        low, high = min(x.low for x in self.given), max(x.high for x in self.given)
        return _Bound(low, high, axis, self.given[0].total, self._end(), whole=self._whole())

    def on_max(self) -> _Bound:
        low, high = max(x.low for x in self.given), max(x.high for x in self.given)
        return _Bound(low, high, self._one(), end=self._end(), whole=self._whole())

    def on_min(self) -> _Bound:
        low, high = min(x.low for x in self.given), min(x.high for x in self.given)
        return _Bound(low, high, self._one(), end=self._end(), whole=self._whole())

    def on_where(self) -> _Bound:
        a, b = self.given[1:]
        end = a.end or b.end or self.node.op_type
        return _Bound(min(a.low, b.low), max(a.high, b.high), self._one(), end=end, whole=a.whole and b.whole)

    def on_maxpool(self) -> _Bound:
        return replace(self.given[0], axis=self._one())

    on_reducemax = on_reducemin = on_reducemean = on_maxpool

    def _whole(self) -> bool:
        return all(x.whole for x in self.given)

    def _one(self) -> int | None:
        """Classes that excluded one another do no longer."""
        return None if all(x.axis is None for x in self.given) else LOST

    def _end(self) -> str:
        return next((x.end for x in self.given if x.end and not x.constant), self.node.op_type)

    @staticmethod
    def _scaled(x: _Bound, by: float) -> _Bound:
        ends = sorted((_times(x.low, by), _times(x.high, by)))
        whole = x.whole and by == round(by)
        return replace(x, low=ends[0], high=ends[1], total=x.total * by, constant=False, whole=whole)


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


_SAME = frozenset({"Identity", "Cast", "Dropout", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile"})
"""Operators whose output has the elements of their first input."""
_MONOTONE: dict[str, Callable[[float], float]] = {
    "Relu": lambda x: max(0.0, x),
    "Tanh": tanh,
    "Softplus": lambda x: x if x > 30 else log(1 + exp(x)) if x > -inf else 0.0,
    "Exp": lambda x: exp(x) if x < 700 else inf,
    "Log": lambda x: log(x) if 0 < x < inf else inf if x > 0 else -inf,
    "Sqrt": lambda x: max(0.0, x) ** 0.5,
}
"""Operators that keep the order of what they are given."""
