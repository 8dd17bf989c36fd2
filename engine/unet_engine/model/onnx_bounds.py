"""What is known of every element of a tensor of an ONNX graph, and how a node's first output follows from its inputs.

Bounds are of intervals. Beside them goes whether channels exclude one another, which a softmax says and what follows
may keep or lose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import atan, erf, exp, inf, log, prod, tanh
from typing import Any

import numpy as np

from unet_engine.model.ending import SLACK
from unet_engine.model.onnx_shapes import Shapes, attribute

LOST = -1
"""The classes that excluded one another are no axis of the tensor any more."""
LARGEST_CONSTANT = 2**20
"""Elements of a constant that are looked at; a larger one is a weight."""


@dataclass(frozen=True)
class Bound:
    """What is known of every element of a tensor."""

    low: float = -inf
    high: float = inf
    axis: int | None = None
    """The axis along which elements sum to `total`, as after a softmax; `LOST` where they did so once."""
    total: float = 1.0
    end: str = ""
    """The operator that bounds it, for people."""
    logs: int | None = None
    """The axis along which their exponentials sum to 1, as after a log-softmax."""
    constant: bool = False
    whole: bool = False
    """Whether all are whole numbers: labels or masks, which no logits are."""


UNKNOWN = Bound()


_ROUNDING: dict[str, Callable[[float], Any]] = {"Round": np.rint, "Floor": np.floor, "Ceil": np.ceil}
_DECIDING = frozenset(
    {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not", "IsNaN", "IsInf"}
)
"""Operators whose output is true or false."""
INDICES = {"TopK": 1, "Unique": 1, "NonZero": 0}
"""Operators that say where something is, and from which output on they do."""
BOUNDING = frozenset(
    {"Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Exp", "Hardmax", "Tanh", "Erf", "Softsign", "Softplus"}
    | {"ArgMax", "ArgMin", "OneHot", "Sign", *INDICES}
    | {*_ROUNDING, *_DECIDING}
)
"""Operators without one of which no graph has outputs that are probabilities, or whole numbers."""


def constant(tensor: Any) -> Bound:
    """What is known of a constant: its least and largest element."""
    from onnx import numpy_helper

    if tensor.external_data or not 0 < prod(tensor.dims) <= LARGEST_CONSTANT or tensor.data_type == 8:  # 8: strings
        return UNKNOWN
    values = np.asarray(numpy_helper.to_array(tensor), np.float64)
    if not np.isfinite(values).all():
        return UNKNOWN
    whole = bool((values == np.rint(values)).all())
    return Bound(float(values.min()), float(values.max()), constant=True, whole=whole)


class NodeBound:
    """The bound of one node's first output, from those of its inputs."""

    def __init__(self, node: Any, given: list[Bound], opset: int, shapes: Shapes) -> None:
        self.node, self.given, self.opset, self.shapes = node, given, opset, shapes

    def bound(self) -> Bound:
        found = self._found()
        if found.constant and not all(given.constant for given in self.given):  # one element or another of a table
            return replace(found, constant=False, end=found.end or self.node.op_type)
        return found

    def _found(self) -> Bound:
        rule: Callable[[], Bound] | None = getattr(self, f"on_{self.node.op_type.lower()}", None)
        if rule is not None:
            return rule()
        kind = self.node.op_type
        if kind in _DECIDING:
            return Bound(0, 1, end=kind, whole=True)
        if kind in _ROUNDING and self.given:
            low, high = (float(_ROUNDING[kind](bound)) for bound in (self.given[0].low, self.given[0].high))
            return Bound(low, high, end=kind, whole=True)
        if kind in _SAME and self.given:
            return self._kept()
        if kind in _MONOTONE and self.given:
            found = _MONOTONE[kind]
            x = self.given[0]
            return Bound(found(x.low), found(x.high), end=kind, whole=x.whole and kind == "Relu")
        return UNKNOWN

    # --- axes ---

    def _shape(self, name: str) -> list[int]:
        return list(self.shapes.get(name, []))

    def _axis(self, default: int) -> int | None:
        """The axis that the node names, counted from the front; None where the rank is not known."""
        rank = len(self._shape(self.node.input[0])) or len(self._shape(self.node.output[0]))
        axis = int(attribute(self.node, "axis", default))
        return axis if axis >= 0 else axis + rank if rank else None

    def _moved(self, where: Callable[[int], int | None]) -> Bound:
        """What goes in, with its axes of classes where they lie now; `where` gives None for one that is lost."""
        x = self.given[0]
        axis = x.axis
        if axis is not None and axis != LOST:
            axis = LOST if (found := where(axis)) is None else found
        return replace(x, axis=axis, logs=None if x.logs is None else where(x.logs))

    def _kept(self) -> Bound:
        """The same elements in another shape: the axis of the classes is where as many elements lie before it."""
        before, after = self._shape(self.node.input[0]), self._shape(self.node.output[0])
        if self.node.op_type in _IN_PLACE:
            return self.given[0]

        def where(axis: int) -> int | None:
            if not before or not all(before) or not all(after):
                return None
            if prod(after) != prod(before) and len(after) != len(before):
                return None
            same = (a for a, n in enumerate(after) if n == before[axis] and prod(after[:a]) == prod(before[:axis]))
            return next(same, None)

        return self._moved(where)

    def on_transpose(self) -> Bound:
        rank = len(self._shape(self.node.input[0]))
        order = list(attribute(self.node, "perm", range(rank)[::-1]))
        return self._moved(lambda axis: order.index(axis) if axis in order else None)

    def on_slice(self) -> Bound:
        """Part of the elements, or others beside them: classes still exclude one another where all of them stay."""
        before, after = self._shape(self.node.input[0]), self._shape(self.node.output[0])
        same = len(before) == len(after)
        return self._moved(lambda axis: axis if same and before[axis] and before[axis] == after[axis] else None)

    on_gather = on_gathernd = on_split = _resize_kept = on_slice

    def on_pad(self) -> Bound:
        """With what is put around it, which is 0 where nothing is said."""
        x = replace(self.on_slice(), logs=None)
        if attribute(self.node, "mode", b"constant") != b"constant":
            return x
        said = len(self.given) > 2 and self.node.input[2]
        value = self.given[2] if said else Bound(0, 0) if self.opset >= 11 else UNKNOWN
        return replace(x, low=min(x.low, value.low), high=max(x.high, value.high), whole=x.whole and value.whole)

    def on_averagepool(self) -> Bound:
        """Means over space; zeros may count among them at the border."""
        x = self.given[0]
        return replace(x, low=min(x.low, 0), high=max(x.high, 0), logs=None, whole=False)

    def on_reducemean(self) -> Bound:
        """Of several answers, or over space: classes still exclude one another where none were averaged."""
        before, axes = self._shape(self.node.input[0]), self._reduced()
        stays = bool(attribute(self.node, "keepdims", 1))

        def where(axis: int) -> int | None:
            if not before or axes is None or axis in axes:
                return None
            return axis if stays else axis - sum(a < axis for a in axes)

        return replace(self._moved(where), logs=None, whole=False)

    def _reduced(self) -> list[int] | None:
        """The axes that a reduction is over; None where they are not known, or all."""
        said = attribute(self.node, "axes", None)
        if said is None and len(self.given) > 1 and self.given[1].constant and self.given[1].low == self.given[1].high:
            said = [int(self.given[1].low)]
        rank = len(self._shape(self.node.input[0]))
        return [a + rank if a < 0 else a for a in said] if said and rank else None

    def on_resize(self) -> Bound:
        mode = attribute(self.node, "mode", b"nearest")
        return UNKNOWN if mode not in (b"nearest", b"linear") else self._resize_kept()

    on_upsample = on_resize

    # --- activations ---

    def on_sigmoid(self) -> Bound:
        return Bound(0, 1, end=self.node.op_type)

    on_hardsigmoid = on_sigmoid

    def on_softmax(self) -> Bound:
        axis = self._axis(1 if self.opset < 13 else -1)
        if axis is not None and self.opset < 13:  # older ones take all axes from there on as one
            rest = self._shape(self.node.input[0])[axis + 1 :]
            axis = axis if self._shape(self.node.input[0]) and all(n == 1 for n in rest) else None
        return Bound(0, 1, axis=LOST if axis is None else axis, end="Softmax")

    def on_hardmax(self) -> Bound:
        return replace(self.on_softmax(), end="Hardmax", whole=True)

    def on_logsoftmax(self) -> Bound:
        axis = self.on_softmax().axis
        return Bound(-inf, 0, logs=None if axis == LOST else axis, end="LogSoftmax")

    def on_exp(self) -> Bound:
        x = self.given[0]
        low, high = (exp(bound) if bound < 700 else inf for bound in (x.low, x.high))
        return Bound(low, high, x.logs, end="Softmax" if x.logs is not None else self.node.op_type)

    def on_log(self) -> Bound:
        x = self.given[0]
        low, high = (log(bound) if 0 < bound < inf else inf if bound > 0 else -inf for bound in (x.low, x.high))
        shared = x.axis not in (None, LOST) and abs(x.total - 1) < SLACK
        return Bound(low, high, logs=x.axis if shared else None, end="LogSoftmax" if shared else self.node.op_type)

    def on_reducelogsumexp(self) -> Bound:
        """As `on_reducesum`."""
        axes = self._reduced()
        stays = bool(attribute(self.node, "keepdims", 1))
        return Bound(end=f"ReduceLogSumExp {self.node.input[0]} {axes[0]}") if axes and stays else UNKNOWN

    def on_abs(self) -> Bound:
        x = self.given[0]
        least = 0.0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high))
        return Bound(least, max(abs(x.low), abs(x.high)), self._one(), end=x.end or self.node.op_type, whole=x.whole)

    def on_pow(self) -> Bound:
        x, by = self.given
        if not by.constant or by.low != by.high or by.low <= 0:
            return UNKNOWN
        x = x if x.low >= 0 else self.on_abs() if by.low % 2 == 0 else UNKNOWN
        if x.low < 0:
            return UNKNOWN
        low, high = (bound if bound == inf else bound**by.low for bound in (x.low, x.high))
        return Bound(low, high, self._one(), end=x.end or self.node.op_type)

    # --- whole numbers that stand for others ---

    def on_quantizelinear(self) -> Bound:
        """The whole numbers; what they stand for comes back with `on_dequantizelinear`."""
        x, step, zero = self._steps()
        if step is None:
            return UNKNOWN
        return replace(x, low=x.low / step + zero, high=x.high / step + zero, logs=None, whole=False)

    def on_dequantizelinear(self) -> Bound:
        x, step, zero = self._steps()
        if step is None:
            return UNKNOWN
        return replace(x, low=(x.low - zero) * step, high=(x.high - zero) * step, logs=None, whole=False)

    def _steps(self) -> tuple[Bound, float | None, float]:
        """What goes in, the one step that all elements share, and the number that stands for 0."""
        x, step, *zero = self.given
        whole = zero[0] if zero else Bound(0, 0, constant=True)
        known = all(c.constant and c.low == c.high for c in (step, whole)) and step.low > 0
        return x, step.low if known else None, whole.low if known else 0.0

    def on_clip(self) -> Bound:
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
        return Bound(low, high, LOST if x.axis is not None else None, end=end, whole=self._whole())

    # --- labels ---

    def on_argmax(self) -> Bound:
        return Bound(0, inf, end=self.node.op_type, whole=True)

    on_argmin = on_argmax

    def on_sign(self) -> Bound:
        return Bound(-1, 1, end=self.node.op_type, whole=True)

    def on_onehot(self) -> Bound:
        """One element of a row is "on", which is 1 as a rule, and the others "off"."""
        x = self.given[2]
        rank = len(self._shape(self.node.output[0]))
        axis = int(attribute(self.node, "axis", -1))
        axis = axis if axis >= 0 else axis + rank if rank else LOST
        return Bound(x.low, x.high, axis, end=self.node.op_type, whole=x.whole)

    # --- arithmetic ---

    def on_add(self) -> Bound:
        low, high = sum(x.low for x in self.given), sum(x.high for x in self.given)
        axes = {x.axis for x in self.given}
        axis = next(iter(axes)) if len(axes) == 1 else LOST if axes - {None} else None
        return Bound(low, high, axis, sum(x.total for x in self.given), self._end(), whole=self._whole())

    on_sum = on_add

    def on_mean(self) -> Bound:
        return self._scaled(self.on_add(), 1 / len(self.given))

    def on_neg(self) -> Bound:
        return self._scaled(self.given[0], -1)

    def on_sub(self) -> Bound:
        a, b = self.given
        summed = b.end.split(" ")
        if summed[0] == "ReduceLogSumExp" and summed[1] == self.node.input[0]:  # a log-softmax written out
            return Bound(-inf, 0, logs=int(summed[2]), end="LogSoftmax")
        axis = None if a.axis is None and b.axis is None else LOST
        return Bound(a.low - b.high, a.high - b.low, axis, end=self._end(), whole=self._whole())

    def on_mul(self) -> Bound:
        a, b = self.given
        for x, factor in ((a, b), (b, a)):
            if factor.constant and factor.low == factor.high:
                return self._scaled(x, factor.low)
        ends = [_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        axis = None if a.axis is None and b.axis is None else LOST
        return Bound(min(ends), max(ends), axis, end=self._end(), whole=self._whole())

    def on_div(self) -> Bound:
        a, b = self.given
        if b.constant and b.low == b.high != 0:
            return self._scaled(a, 1 / b.low)
        if a.low >= 0 and (axis := self._share()) is not None:
            return Bound(0, 1, axis, end="Softmax")
        if b.low <= 0 or a.low < 0:
            return UNKNOWN
        return Bound(a.low / b.high, a.high / b.low if a.high < inf else inf, end=self._end())

    def _share(self) -> int | None:
        """The axis, where what is divided by is the sum of what is divided along it: a softmax written out."""
        summed = self.given[1].end.split(" ")
        if summed[0] != "ReduceSum" or summed[1] != self.node.input[0]:
            return None
        return int(summed[2])

    def on_reducesum(self) -> Bound:
        """Says what was summed and along which axis, where it was one that stayed."""
        x = self.given[0]
        before, after = self._shape(self.node.input[0]), self._shape(self.node.output[0])
        axes = [a for a, (n, m) in enumerate(zip(before, after, strict=False)) if n != m]
        if x.low < 0 or len(before) != len(after) or len(axes) != 1:
            return UNKNOWN
        return Bound(x.low, inf, end=f"ReduceSum {self.node.input[0]} {axes[0]}")

    def on_reciprocal(self) -> Bound:
        x = self.given[0]
        return Bound(1 / x.high, 1 / x.low, end="Reciprocal") if x.low > 0 else UNKNOWN

    def on_concat(self) -> Bound:
        along, axes = self._axis(1), {x.axis for x in self.given}
        axis = next(iter(axes)) if len(axes) == 1 else LOST
        axis = LOST if axis is not None and axis == along else axis
        axis = None if axes == {None} else axis
        low, high = min(x.low for x in self.given), max(x.high for x in self.given)
        return Bound(low, high, axis, self.given[0].total, self._end(), whole=self._whole())

    def on_max(self) -> Bound:
        low, high = max(x.low for x in self.given), max(x.high for x in self.given)
        return Bound(low, high, self._one(), end=self._end(), whole=self._whole())

    def on_min(self) -> Bound:
        low, high = min(x.low for x in self.given), min(x.high for x in self.given)
        return Bound(low, high, self._one(), end=self._end(), whole=self._whole())

    def on_where(self) -> Bound:
        a, b = self.given[1:]
        end = a.end or b.end or self.node.op_type
        return Bound(min(a.low, b.low), max(a.high, b.high), self._one(), end=end, whole=a.whole and b.whole)

    def on_maxpool(self) -> Bound:
        return replace(self.given[0], axis=self._one())

    on_reducemax = on_reducemin = on_maxpool

    def on_scatternd(self) -> Bound:
        """Elements that are replaced by others."""
        a, b = self.given[0], self.given[2]
        return Bound(min(a.low, b.low), max(a.high, b.high), self._one(), end=self._end(), whole=a.whole and b.whole)

    on_scatterelements = on_scatternd

    def _whole(self) -> bool:
        return all(x.whole for x in self.given)

    def _one(self) -> int | None:
        """Classes that excluded one another do no longer."""
        return None if all(x.axis is None for x in self.given) else LOST

    def _end(self) -> str:
        return next((x.end for x in self.given if x.end and not x.constant), self.node.op_type)

    @staticmethod
    def _scaled(x: Bound, by: float) -> Bound:
        ends = sorted((_times(x.low, by), _times(x.high, by)))
        whole = x.whole and by == round(by)
        return replace(x, logs=None, low=ends[0], high=ends[1], total=x.total * by, constant=False, whole=whole)


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


_IN_PLACE = frozenset({"Identity", "Cast", "CastLike", "Dropout"})
"""Operators whose output has the elements of their first input where they were."""
_SAME = _IN_PLACE | {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile"}
"""Operators whose output has the elements of their first input."""
_MONOTONE: dict[str, Callable[[float], float]] = {
    "Relu": lambda x: max(0.0, x),
    "Tanh": tanh,
    "Softplus": lambda x: x if x > 30 else log(1 + exp(x)) if x > -inf else 0.0,
    "Erf": erf,
    "Softsign": lambda x: x / (1 + abs(x)) if abs(x) < inf else 1.0 if x > 0 else -1.0,
    "Atan": atan,
    "Sqrt": lambda x: max(0.0, x) ** 0.5,
}
"""Operators that keep the order of what they are given."""
